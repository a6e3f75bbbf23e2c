#include "src/base/pages.h"

#include "src/base/error.h"

#include <bit>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <initializer_list>
#include <string>
#include <sys/mman.h>
#include <unistd.h>

namespace thermocline {

Pages::Pages(size_t size) : data_(nullptr), size_(size) {
    void* mapped = ::mmap(nullptr, size + kHuge, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) fail("cannot allocate ", size, " bytes (", std::strerror(errno), ")");
    // Only whole aligned stretches become huge pages: what stands over at both ends is given back.
    auto* begin = static_cast<std::byte*>(mapped);
    const size_t head = (kHuge - reinterpret_cast<uintptr_t>(begin) % kHuge) % kHuge;
    const size_t page = 4096, used = (size + page - 1) / page * page;
    if (head > 0) ::munmap(begin, head);
    data_ = begin + head;
    if (const size_t whole = size + kHuge - head; whole > used) ::munmap(data_ + used, whole - used);
    ::madvise(data_, size, MADV_HUGEPAGE);  // a kernel without huge pages works too
}

std::optional<Pages> Pages::reserved(size_t size, size_t page) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | std::countr_zero(page) << MAP_HUGE_SHIFT;
    void* mapped = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (mapped == MAP_FAILED) return std::nullopt;
    return Pages(static_cast<std::byte*>(mapped), size);
}

Pages Pages::addresses(size_t size) {
    constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* mapped = ::mmap(nullptr, size, PROT_READ | PROT_WRITE, kFlags, -1, 0);
    if (mapped == MAP_FAILED) fail("cannot take addresses for ", size, " bytes (", std::strerror(errno), ")");
    ::madvise(mapped, size, MADV_NOHUGEPAGE);
    return Pages(static_cast<std::byte*>(mapped), size);
}

Pages::~Pages() {
    if (data_ != nullptr) ::munmap(data_, size_);
}

bool fill(std::span<std::byte> pages) { return ::madvise(pages.data(), pages.size(), MADV_POPULATE_WRITE) == 0; }

void release_pages(const std::byte* data, int64_t size) {
    const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(size)) / page * page;
    if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

void forbid(std::span<std::byte> pages) {
    ::mprotect(pages.data(), pages.size(), PROT_NONE);
    ::madvise(pages.data(), pages.size(), MADV_DONTNEED);
}

void admit(std::span<std::byte> pages) {
    if (::mprotect(pages.data(), pages.size(), PROT_READ | PROT_WRITE) != 0)
        fail("cannot take ", pages.size(), " bytes of memory (", std::strerror(errno), ")");
}

namespace {

/// Sum of the lines `keys` of a file like /proc/meminfo, in bytes. Throws Error if there are none.
int64_t sum_of_lines(const std::string& path, std::initializer_list<const char*> keys) {
    std::ifstream file(path);
    int64_t sum = 0;
    size_t found = 0;
    for (std::string word; file >> word;)
        for (const char* key : keys)
            if (int64_t kib = 0; word == key && file >> kib) {
                sum += kib << 10;
                ++found;
            }
    if (found != keys.size()) fail(path, ": has no ", *keys.begin());
    return sum;
}

}  // namespace

int64_t available_memory() { return sum_of_lines("/proc/meminfo", {"MemAvailable:"}); }

int64_t total_memory() { return sum_of_lines("/proc/meminfo", {"MemTotal:"}); }

int64_t free_huge_page_memory() {
    int64_t bytes = 0;
    for (const size_t page : {Pages::kHuge, Pages::kGiant}) {
        std::ifstream file("/sys/kernel/mm/hugepages/hugepages-" + std::to_string(page >> 10) + "kB/free_hugepages");
        if (int64_t count = 0; file >> count) bytes += count * static_cast<int64_t>(page);
    }
    return bytes;
}

int64_t available_memory(int node) {
    return sum_of_lines("/sys/devices/system/node/node" + std::to_string(node) + "/meminfo",
                        {"MemFree:", "Active(file):", "Inactive(file):", "SReclaimable:"});
}

}  // namespace thermocline
