#include "src/base/pages.h"

#include "src/base/error.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>
#include <sys/mman.h>
#include <unistd.h>

namespace thermocline {

Pages::Pages(size_t size) : data_(nullptr), size_(size) {
    constexpr size_t kHuge = size_t{2} << 20;
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

Pages::~Pages() {
    if (data_ != nullptr) ::munmap(data_, size_);
}

void release_pages(const std::byte* data, int64_t size) {
    const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(size)) / page * page;
    if (begin < end) ::madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
}

int64_t available_memory() {
    std::ifstream file("/proc/meminfo");
    for (std::string key; file >> key;) {
        int64_t kib = 0;
        if (key == "MemAvailable:" && file >> kib) return kib << 10;
        file.ignore(256, '\n');
    }
    fail("/proc/meminfo: has no MemAvailable");
}

}  // namespace thermocline
