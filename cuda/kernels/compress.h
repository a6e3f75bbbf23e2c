// The compressor (deepseek-v4.md 2.6): windows of tokens become cache entries. Which rows complete a window is seen on
// the card: there is a block for every row, and most end at once.
#pragma once

#include "cuda/kernels/kv.h"

#include <cmath>
#include <limits>

namespace thermocline::cuda {

/// Makes the entries that the batch completes. Grid: rows; threads >= width; shared_bytes().
struct MakeEntries {
    static constexpr const char* kName = "MakeEntries";
    static constexpr int kAhead = 8;  // slots whose numbers are loaded before any is used
    const float* values;              // [T, wide]
    const float* scores;              // [T, wide] without ape
    const float* ape;                 // [ratio, wide]
    const float* norm;                // [width]
    const float* frequencies;         // [dims / 2]
    Batch batch;
    int32_t state, entries;  // caches of the plan
    int32_t ratio, width, wide, dims, rope;
    float eps;
    KvFormat format;
    bool overlap, transform;

    static int64_t shared_bytes(int64_t slots, int64_t width) {
        return slots * 2 * static_cast<int64_t>(sizeof(float*)) + width * static_cast<int64_t>(sizeof(float)) +
               kBlockSumBytes;
    }

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const int64_t position = batch.positions[t.block()];
        if ((position + 1) % ratio != 0) return;
        const int64_t w = position / ratio;
        const int32_t index = batch.segment_of[t.block()];
        const CacheView* caches = batch.caches + index * batch.cache_count;
        const int count = overlap && w > 0 ? 2 * ratio : ratio;

        constexpr auto kPointer = static_cast<int64_t>(sizeof(float*));
        auto value_rows = t.template shared<const float*>(0, count);
        auto score_rows = t.template shared<const float*>(count * kPointer, count);
        auto vector = t.template shared<float>(2 * count * kPointer, width);
        find_slots(t, batch.segments[index], caches[state], position + 1 - count, count, value_rows, score_rows);
        t.sync();

        const int c = t.id();
        const int64_t older = batch.segments[index].position - (position + 1 - count);  // slots of the ring, if any
        const float pooled = c < width ? pool(c, count, older, value_rows, score_rows) : 0.0f;
        const int64_t sums = 2 * count * kPointer + width * static_cast<int64_t>(sizeof(float));
        const float factor = 1.0f / sqrtf(block_sum(t, pooled * pooled, sums) / static_cast<float>(width) + eps);
        if (c < width) vector.set(c, factor * pooled * norm[c]);
        t.sync();
        rotate(t, static_cast<float>(w * ratio), vector);
        t.sync();
        if (t.warp() > 0) return;
        LaneVector v = load_vector(t, vector, width);
        if (transform) hadamard(t, v, width);
        encode_row(t, format, v, width, rope, caches[entries].row(w));
    }

    /// Where the numbers of each slot lie, from the channels on that it gives: of the batch or of the ring.
    template <typename Thread, typename Rows>
    GPU_CODE void find_slots(Thread& t, const Segment& segment, const CacheView& ring, int64_t first, int count,
                             Rows& value_rows, Rows& score_rows) const {
        for (int i = t.id(); i < count; i += t.threads()) {
            const int64_t p = first + i;
            const float *value, *score;
            if (p >= segment.position) {
                const int64_t row = segment.first_row + p - segment.position;
                value = values + row * wide;
                score = scores + row * wide;
            } else {
                value = reinterpret_cast<const float*>(ring.row(p));
                score = value + wide;
            }
            value_rows.set(i, value + half_of(i, count));
            score_rows.set(i, score + half_of(i, count));
        }
    }

    /// The first channel that slot i gives: with overlap, slots of the window itself give the second half.
    GPU_CODE int half_of(int i, int count) const { return overlap && i >= count - ratio ? width : 0; }

    /// Softmax over the slots of channel c. Slots from `older` on have no ape yet.
    template <typename Rows>
    GPU_CODE float pool(int c, int count, int64_t older, const Rows& value_rows, const Rows& score_rows) const {
        float top = -std::numeric_limits<float>::max();  // finite: scores of -inf then have weight 0
        float weights = 0.0f, sum = 0.0f;
        for (int begin = 0; begin < count; begin += kAhead) {
            float value[kAhead], score[kAhead];
            for (int i = 0; i < kAhead; ++i) {
                const bool there = begin + i < count;
                const int slot = there ? begin + i : count - 1;
                const float added =
                    slot >= older ? ape[(slot < ratio ? slot : slot - ratio) * wide + half_of(slot, count) + c] : 0.0f;
                value[i] = value_rows[slot][c];
                score[i] = there ? score_rows[slot][c] + added : -std::numeric_limits<float>::infinity();
            }
            const float before = top;
            for (int i = 0; i < kAhead; ++i) top = fmaxf(top, score[i]);
            const float shrink = expf(before - top);
            weights *= shrink;
            sum *= shrink;
            for (int i = 0; i < kAhead; ++i) {
                const float weight = expf(score[i] - top);
                weights += weight;
                sum = fmaf(weight, value[i], sum);
            }
        }
        return sum / fmaxf(1e-30f, weights);
    }

    /// The rotary channels of the entry, as of its first token.
    template <typename Thread, typename Vector>
    GPU_CODE void rotate(Thread& t, float position, Vector& vector) const {
        for (int i = t.id(); i < dims / 2; i += t.threads()) {
            const double angle = position * frequencies[i];  // one float32 product, then exact trigonometry
            const auto c = static_cast<float>(cos(angle)), s = static_cast<float>(sin(angle));
            const int at = width - dims + 2 * i;
            const float a = vector[at], b = vector[at + 1];
            vector.set(at, a * c - b * s);
            vector.set(at + 1, a * s + b * c);
        }
    }
};

/// Puts the rows of the batch that still count into the ring; after MakeEntries. Grid: rows.
struct StoreState {
    static constexpr const char* kName = "StoreState";
    const float* values;  // [T, wide]
    const float* scores;  // [T, wide] without ape
    const float* ape;     // [ratio, wide]
    Batch batch;
    int32_t state;  // cache of the plan
    int32_t ratio, wide;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const int32_t index = batch.segment_of[t.block()];
        const Segment& segment = batch.segments[index];
        const CacheView& ring = batch.caches[index * batch.cache_count + state];
        if (t.block() - segment.first_row < segment.rows - ring.ring_rows) return;  // a later row takes its place
        const int64_t position = batch.positions[t.block()];
        auto* out = reinterpret_cast<float*>(ring.row(position));
        const float* added = ape + position % ratio * wide;
        for (int i = t.id(); i < wide; i += t.threads()) {
            out[i] = values[t.block() * wide + i];
            out[wide + i] = scores[t.block() * wide + i] + added[i];
        }
    }
};

}  // namespace thermocline::cuda
