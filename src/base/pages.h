// Anonymous memory for much data: zeroed, aligned to huge pages. A page lies on the NUMA node of the thread that
// touches it first, unless it is bound to another (memory/numa.h). Owned by one place at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

namespace thermocline {

class Pages {
public:
    static constexpr size_t kHuge = size_t{2} << 20, kGiant = size_t{1} << 30;

    /// The kernel is asked for huge pages and gives what it has. Throws Error if the system refuses.
    explicit Pages(size_t size);
    /// Of the huge pages that the administrator has set aside (vm.nr_hugepages): kHuge or kGiant, of which `size` is a
    /// multiple. Nothing if fewer are free. Those of the node that a page is bound to may run out even so: fill()
    /// first.
    static std::optional<Pages> reserved(size_t size, size_t page);
    /// Addresses alone: nothing is set aside for them, and pages are small.
    static Pages addresses(size_t size);
    Pages(Pages&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr; }
    ~Pages();
    Pages& operator=(Pages&&) = delete;

    std::span<std::byte> bytes() const { return {data_, size_}; }

private:
    Pages(std::byte* data, size_t size) : data_(data), size_(size) {}

    std::byte* data_;  // [size_]
    size_t size_;
};

/// Makes whole pages exist; false where it would have been an error to touch one.
bool fill(std::span<std::byte> pages);

/// Gives the whole pages in [data, data + size) back. Pages of a file can be read again, so a range that somebody still
/// needs costs time only; anonymous ones are zero from then on.
void release_pages(const std::byte* data, int64_t size);

/// Gives whole pages back, and whoever touches one before admit() is stopped by the system.
void forbid(std::span<std::byte> pages);
void admit(std::span<std::byte> pages);

/// Bytes that processes can still take without swapping, as the kernel estimates it.
int64_t available_memory();
/// All of this machine; and huge pages set aside by the administrator that nobody uses, which are not
/// available_memory().
int64_t total_memory();
int64_t free_huge_page_memory();
/// The same of one NUMA node: what is free there, or holds pages of files.
int64_t available_memory(int node);

}  // namespace thermocline
