// What changes from step to step: the rows of one forward pass, which sequence each belongs to, and where that
// sequence's caches lie. All pointers are owned by the caller and outlive the pass.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace thermocline::ops {

/// Rows of one cache of one sequence, in pages of equal size.
struct CacheView {
    std::byte* const* pages = nullptr;  // each [page_rows * row_bytes]
    int64_t page_rows = 1;
    int64_t row_bytes = 0;
    int64_t ring_rows = 0;   // rings: modulus; entries: 0
    int64_t page_count = 0;  // of pages

    std::byte* row(int64_t index) const {
        if (ring_rows > 0) index %= ring_rows;
        return pages[index / page_rows] + (index % page_rows) * row_bytes;
    }
};

/// Consecutive rows of the batch that continue one sequence.
struct Segment {
    int32_t first_row = 0;
    int32_t rows = 0;
    int64_t position = 0;               // of first_row; tokens 0 .. position - 1 are in the caches
    const CacheView* caches = nullptr;  // [plan.caches.size()]
};

struct Batch {
    std::span<const int32_t> tokens;       // [rows]
    std::span<const int64_t> positions;    // [rows]
    std::span<const Segment> segments;     // in row order, covering all rows
    std::span<const int32_t> output_rows;  // rows whose logits are wanted, ascending
    int64_t rows() const { return static_cast<int64_t>(tokens.size()); }
    int64_t outputs() const { return static_cast<int64_t>(output_rows.size()); }
};

}  // namespace thermocline::ops
