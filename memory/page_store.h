// Where the pages of sequences lie: in the memory of the host, or of a card. Used by one thread at a time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace thermocline::memory {

class PageStore {
public:
    virtual ~PageStore() = default;
    /// Room for `bytes`; null: there is none.
    virtual std::byte* take(int64_t bytes) = 0;
    virtual void give_back(std::byte* page, int64_t bytes) noexcept = 0;
    /// Between a page and memory of the host; done when it returns. May throw Error.
    virtual void read(const std::byte* page, void* to, int64_t bytes) = 0;
    virtual void write(std::byte* page, const void* from, int64_t bytes) = 0;
};

/// In the memory of the host. From any thread.
PageStore& host_pages();

}  // namespace thermocline::memory
