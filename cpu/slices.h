// Hands the slices of packed matrices (src/quant/strips.h) out to the workers of their NUMA nodes.
#pragma once

#include "cpu/workers.h"
#include "src/quant/strips.h"

#include <algorithm>
#include <cstdint>

namespace thermocline::cpu {

/// The rows of a matrix: in slices, and these in chunks of `chunk` rows that a worker computes at a time.
struct Slices {
    int64_t rows, count, each, chunk;  // of each slice `each` rows, of the last one perhaps fewer

    Slices(const quant::Matrix& w, int64_t chunk_rows)
        : rows(w.rows),
          count(quant::slice_count(w)),
          each(count == 1 ? w.rows : w.slice_strips * quant::kStripRows),
          chunk(chunk_rows) {}

    int64_t first_row(int64_t slice) const { return slice * each; }
    int64_t rows_of(int64_t slice) const { return std::min(each, rows - slice * each); }
    int64_t chunks_of(int64_t slice) const { return (rows_of(slice) + chunk - 1) / chunk; }
};

/// Covers the chunks of every slice, `times` over, with calls of body(slice, begin, end, worker), each of at least
/// `grain` items where there are as many. Slice j is for the workers of node j; if there are none, or one slice only,
/// all workers share everything.
template <typename Body>
void split_slices(Workers& workers, const Slices& slices, int64_t times, int64_t grain, Body body) {
    const auto items_of = [&](int64_t slice) { return slice < slices.count ? slices.chunks_of(slice) * times : 0; };
    if (slices.count > 1 && slices.count <= workers.node_count()) return workers.split_nodes(items_of, grain, body);
    int64_t total = 0;
    for (int64_t slice = 0; slice < slices.count; ++slice) total += items_of(slice);
    workers.split(total, grain, [&](int64_t begin, int64_t end, int worker) {
        for (int64_t slice = 0, first = 0; begin < end; first += items_of(slice++)) {
            const int64_t stop = std::min(end, first + items_of(slice));
            if (begin >= stop) continue;
            body(slice, begin - first, stop - first, worker);
            begin = stop;
        }
    });
}

}  // namespace thermocline::cpu
