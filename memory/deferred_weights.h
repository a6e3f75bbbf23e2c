// Weights in memory that need not exist before they are packed: whoever made the model says how they come about.
#pragma once

#include <cstddef>
#include <cstdint>

namespace thermocline::memory {

/// All views of the plans point into memory of the implementation, to be read and (by release_pages) given back.
class DeferredWeights {
public:
    virtual ~DeferredWeights() = default;
    /// Whether the bytes at `data` are still to be made; all of a matrix's codes are or none.
    virtual bool deferred(const std::byte* data) const = 0;
    /// Writes what shall stand in [data, data + size) to `out`, which may be `data`. From several threads at once;
    /// `data` and `size` are multiples of 8 from the first code of a matrix, or `size` goes to its end.
    virtual void make(const std::byte* data, int64_t size, std::byte* out) const = 0;
};

}  // namespace thermocline::memory
