// Anonymous memory for much data: zeroed, aligned to huge pages, which the kernel is asked for. A page lies on the NUMA
// node of the thread that touches it first. Owned by one place at a time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace thermocline {

class Pages {
public:
    /// Throws Error if the system refuses.
    explicit Pages(size_t size);
    Pages(Pages&& other) noexcept : data_(other.data_), size_(other.size_) { other.data_ = nullptr; }
    ~Pages();
    Pages& operator=(Pages&&) = delete;

    std::span<std::byte> bytes() const { return {data_, size_}; }

private:
    std::byte* data_;  // [size_]
    size_t size_;
};

/// Gives the whole pages in [data, data + size) back. Pages of a file can be read again, so a range that somebody still
/// needs costs time only; anonymous ones are zero from then on.
void release_pages(const std::byte* data, int64_t size);

/// Bytes that processes can still take without swapping, as the kernel estimates it.
int64_t available_memory();

}  // namespace thermocline
