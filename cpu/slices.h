// Hands the slices of packed matrices (src/quant/strips.h) out to the workers of their NUMA nodes.
#pragma once

#include "cpu/workers.h"
#include "src/quant/strips.h"

#include <algorithm>
#include <cstdint>

namespace thermocline::cpu {

inline constexpr int64_t kExpertStrip = 32;  // rows of an expert's matrix that are handed out

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

/// Whether every slice is for the workers of a node of its own; else all workers share everything.
inline bool by_node(const Workers& workers, const Slices& slices) {
    return slices.count > 1 && slices.count <= workers.node_count();
}

/// Cuts [begin, end) of the items of all slices, one after the other, into calls of body(slice, begin, end).
template <typename ItemsOf, typename Body>
void cut_at_slices(const ItemsOf& items_of, int64_t begin, int64_t end, Body& body) {
    for (int64_t slice = 0, first = 0; begin < end; first += items_of(slice++)) {
        const int64_t stop = std::min(end, first + items_of(slice));
        if (begin >= stop) continue;
        body(slice, begin - first, stop - first);
        begin = stop;
    }
}

/// Strips that a worker takes at least, where there are enough for all.
inline int64_t least_strips(int64_t strips, const Workers& workers) {
    return std::clamp<int64_t>(strips / (2 * workers.count()), 1, 4);
}

/// Covers the chunks of every slice, `times` over, with calls of body(slice, begin, end, worker), each of at least
/// `grain` items where there are as many. Slice j is for the workers of node j; if there are none, or one slice only,
/// all workers share everything.
template <typename Body>
void split_slices(Workers& workers, const Slices& slices, int64_t times, int64_t grain, Body body) {
    const auto items_of = [&](int64_t slice) { return slice < slices.count ? slices.chunks_of(slice) * times : 0; };
    if (by_node(workers, slices)) return workers.split_nodes(items_of, grain, body);
    int64_t total = 0;
    for (int64_t slice = 0; slice < slices.count; ++slice) total += items_of(slice);
    workers.split(total, grain, [&](int64_t begin, int64_t end, int worker) {
        const auto one = [&](int64_t slice, int64_t from, int64_t to) { body(slice, from, to, worker); };
        cut_at_slices(items_of, begin, end, one);
    });
}

/// The chunks that split_slices() once over has `worker` begin with, as calls of body(slice, begin, end).
template <typename Body>
void own_slices(const Workers& workers, int worker, const Slices& slices, Body body) {
    const auto items_of = [&](int64_t slice) { return slice < slices.count ? slices.chunks_of(slice) : 0; };
    int64_t total = 0;
    for (int64_t slice = 0; slice < slices.count; ++slice) total += items_of(slice);
    if (by_node(workers, slices)) {
        const int64_t node = workers.node_of(worker);
        const Workers::Part part = workers.part_in_node(worker, items_of(node), 1);
        if (part.begin < part.end) body(node, part.begin, part.end);
        return;
    }
    const Workers::Part part = workers.part_of(worker, total, 1);
    cut_at_slices(items_of, part.begin, part.end, body);
}

/// Items of `times` things of `chunks` chunks each, [begin, end), as calls of body(thing, first chunk, end), each a run
/// of one thing's chunks. Either all chunks of a thing come before those of the next, or, chunks_first, chunk 0 of all
/// things before chunk 1: then shares of all items hold about the same chunks of every thing, whatever their number.
template <typename Body>
void for_runs(int64_t times, int64_t chunks, bool chunks_first, int64_t begin, int64_t end, Body body) {
    if (chunks_first) {
        const auto upto = [&](int64_t items, int64_t thing) { return (items - thing + times - 1) / times; };
        for (int64_t thing = 0; thing < times; ++thing)
            if (upto(begin, thing) < upto(end, thing)) body(thing, upto(begin, thing), upto(end, thing));
        return;
    }
    for (int64_t item = begin, stop = 0; item < end; item = stop) {
        const int64_t first = item / chunks * chunks;
        stop = std::min(end, first + chunks);
        body(first / chunks, item - first, stop - first);
    }
}

}  // namespace thermocline::cpu
