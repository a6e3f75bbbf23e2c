// Shared-KV attention (deepseek-v4.md 2.5): window keys and compressed entries under one softmax with a sink. The keys
// of a row are split into parts, a block each per group of heads; a second kernel joins them in order. With one part
// the block finishes the row itself.
#pragma once

#include "cuda/kernels/kv.h"

#include <cmath>
#include <cstdint>
#include <limits>

namespace thermocline::cuda {

inline constexpr int kKeyTile = 16;    // keys in shared memory at a time
inline constexpr int kHeadGroup = 16;  // heads of a block, two a warp
inline constexpr int kKeyRows = 64;    // keys whose rows are looked up at a time

/// What every attention kernel is given, and where it finds keys.
struct AttentionInput {
    const float* q;            // [T, heads, width]
    const float* kv;           // [T, width] window keys of this batch
    const int32_t* selection;  // [T, 1 + top_k]; null: every visible entry
    const float* sinks;        // [heads]
    float* out;                // [T, heads, width]
    float* partial;            // [T, parts, heads, width] sums, then [T, parts, heads, 2] their maximum and weight
    Batch batch;
    int32_t window_cache, entries;  // caches of the plan; entries kNone: window only
    int32_t heads, width, ring_rope, entry_rope;
    int32_t window, ratio, top_k, parts;
    float scale;
    KvFormat ring_format, entry_format;

    GPU_CODE float* sum_of(int64_t row, int part, int head) const {
        return partial + ((row * parts + part) * heads + head) * width;
    }
    GPU_CODE float* state_of(int64_t row, int part, int head) const {
        return partial + batch.rows * parts * heads * width + ((row * parts + part) * heads + head) * 2;
    }
};

/// The keys of one row in visiting order: window, then entries.
struct RowKeys {
    const AttentionInput& in;
    int64_t row, window_begin;
    const Segment* segment;
    int window_count, entry_count;

    GPU_CODE RowKeys(const AttentionInput& input, int64_t row_) : in(input), row(row_) {
        const int64_t position = in.batch.positions[row];
        segment = in.batch.segments + in.batch.segment_of[row];
        window_begin = position - in.window + 1 > 0 ? position - in.window + 1 : 0;
        window_count = static_cast<int>(position - window_begin + 1);
        entry_count = in.entries < 0 ? 0
                      : in.selection ? in.selection[row * (1 + in.top_k)]
                                     : static_cast<int>((position + 1) / in.ratio);
    }

    GPU_CODE int count() const { return window_count + entry_count; }
    /// Keys of a part, a multiple of `tile`; the last part may have fewer.
    GPU_CODE int part_size(int tile) const {
        const int tiles = (count() + tile - 1) / tile;
        return (tiles + in.parts - 1) / in.parts * tile;
    }

    GPU_CODE bool in_batch(int key) const { return key < window_count && window_begin + key >= segment->position; }
    GPU_CODE KvFormat format_of(int key) const {
        return in_batch(key) ? KvFormat::kF32 : key < window_count ? in.ring_format : in.entry_format;
    }
    GPU_CODE const std::byte* find(int key) const {
        const CacheView* caches = in.batch.caches + in.batch.segment_of[row] * in.batch.cache_count;
        if (in_batch(key))
            return reinterpret_cast<const std::byte*>(
                in.kv + (segment->first_row + window_begin + key - segment->position) * in.width);
        if (key < window_count) return caches[in.window_cache].row(window_begin + key);
        const int entry = key - window_count;
        return entry_row(caches[in.entries], in.selection ? in.selection[row * (1 + in.top_k) + 1 + entry] : entry);
    }
    /// Channels [c, c + 4) of a key that find() found; zero behind the width.
    GPU_CODE Four channels(int key, const std::byte* from, int c) const {
        if (c >= in.width) return {};
        return decode_four(format_of(key), from, c, in.width, key < window_count ? in.ring_rope : in.entry_rope);
    }
};

/// x[i] of all lanes are added up; lane l keeps the sum of number l.
template <int kHalf, typename Thread>
GPU_CODE float scatter_sums(Thread& t, float (&x)[kWarp]) {
    const bool upper = (t.lane() & kHalf) != 0;
#pragma unroll
    for (int i = 0; i < kHalf; ++i) {
        const float kept = upper ? x[i + kHalf] : x[i], given = upper ? x[i] : x[i + kHalf];
        x[i] = kept + t.shuffle_xor(given, kHalf);
    }
    if constexpr (kHalf > 1) return scatter_sums<kHalf / 2>(t, x);
    return x[0];
}

/// out = sum / (weight + that of the sink): two heads of a row, whose state lies in the halves of the warp.
GPU_CODE inline float with_sink(float maximum, float weight, float sink) {
    const float top = fmaxf(maximum, sink), shrink = expf(maximum - top);
    return shrink / (weight * shrink + expf(sink - top));
}

/// In float32, for any cache format. A warp has two heads; a lane has kChannels channels of both: words of four, 128
/// apart. Grid: rows, parts * groups of heads; a warp for every two heads of a group; shared_bytes().
template <int kChannels>
struct AttentionParts {
    static constexpr const char* kName = "AttentionParts";
    static constexpr int kMostThreads = kHeadGroup / 2 * kWarp, kLeastBlocks = kChannels == 4 ? 3 : 2;
    static constexpr int kWide = kChannels * kWarp;  // channels with those that fill up
    static constexpr int64_t kTileBytes = kKeyTile * kWide * int64_t{sizeof(float)};
    static constexpr int64_t kRowsBytes = kKeyRows * int64_t{sizeof(std::byte*)};
    AttentionInput in;
    int32_t groups;

    static constexpr int64_t shared_bytes(int warps) {
        return kTileBytes + kRowsBytes + warps * kWarp * int64_t{sizeof(float)};
    }

    /// What a warp knows of its two heads: lanes 0-15 of the first, 16-31 of the second.
    struct State {
        float maximum, weight;
        float q[2][kChannels], sum[2][kChannels];
    };

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const int part = static_cast<int>(t.block_y()) / groups;
        const int head = static_cast<int>(t.block_y()) % groups * kHeadGroup + 2 * t.warp();
        const RowKeys keys(in, t.block());
        const int size = keys.part_size(kKeyTile), begin = part * size;
        const int end = begin + size < keys.count() ? begin + size : keys.count();
        if (begin >= end) return;
        auto rows = t.template shared<const std::byte*>(kTileBytes, kKeyRows);
        State state = {-std::numeric_limits<float>::max(), 0.0f, {}, {}};
        load_queries(t, head, state);
        for (int first = begin; first < end; first += kKeyTile) {
            const int n = end - first < kKeyTile ? end - first : kKeyTile;
            const int ahead = (first - begin) % kKeyRows;
            t.sync();
            if (ahead == 0) {
                for (int i = t.id(); i < kKeyRows && first + i < end; i += t.threads())
                    rows.set(i, keys.find(first + i));
                t.sync();
            }
            auto tile = t.template shared<float>(0, kKeyTile * kWide);
            for (int i = t.warp(); i < n; i += t.warps())
                for (int c = 4 * t.lane(); c < kWide; c += 4 * kWarp)
                    tile.template set_as<Four>(i * kWide + c, keys.channels(first + i, rows[ahead + i], c));
            t.sync();
            visit(t, n, state);
        }
        finish(t, part, head, state);
    }

    template <typename Thread>
    GPU_CODE void load_queries(Thread& t, int head, State& state) const {
#pragma unroll
        for (int h = 0; h < 2; ++h)
#pragma unroll
            for (int i = 0; i < kChannels; i += 4) {
                const int c = i * kWarp + 4 * t.lane();
                Four four = {};
                if (head + h < in.heads && c < in.width)
                    four = load_four(in.q + (t.block() * in.heads + head + h) * in.width + c);
#pragma unroll
                for (int j = 0; j < 4; ++j) state.q[h][i + j] = four.x[j];
            }
    }

    /// The tile's first n keys.
    template <typename Thread>
    GPU_CODE void visit(Thread& t, int n, State& state) const {
        const auto tile = t.template shared<float>(0, kKeyTile * kWide);
        auto weights = t.template shared<float>(kTileBytes + kRowsBytes, t.warps() * kWarp);
        float scores[kWarp] = {};  // of this lane's channels: head by head, key by key
#pragma unroll
        for (int key = 0; key < kKeyTile; ++key)
#pragma unroll
            for (int i = 0; i < kChannels; i += 4) {
                const Four four = tile.template as<Four>(key * kWide + i * kWarp + 4 * t.lane());
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    scores[key] = fmaf(state.q[0][i + j], four.x[j], scores[key]);
                    scores[kKeyTile + key] = fmaf(state.q[1][i + j], four.x[j], scores[kKeyTile + key]);
                }
            }
        float score = in.scale * scatter_sums<kWarp / 2>(t, scores);  // key lane % 16 of head lane / 16
        if (t.lane() % kKeyTile >= n) score = -std::numeric_limits<float>::infinity();
        float top = score;
        for (int mask = kKeyTile / 2; mask > 0; mask /= 2) top = fmaxf(top, t.shuffle_xor(top, mask));
        top = fmaxf(top, state.maximum);
        const float shrink = expf(state.maximum - top), weight = expf(score - top);
        float sum = weight;
        for (int mask = kKeyTile / 2; mask > 0; mask /= 2) sum += t.shuffle_xor(sum, mask);
        state.maximum = top;
        state.weight = state.weight * shrink + sum;
        weights.set(t.warp() * kWarp + t.lane(), weight);
        const float shrinks[2] = {t.shuffle(shrink, 0), t.shuffle(shrink, kKeyTile)};
#pragma unroll
        for (int i = 0; i < kChannels; ++i) {
            state.sum[0][i] *= shrinks[0];
            state.sum[1][i] *= shrinks[1];
        }
        t.sync_warp();
        for (int key = 0; key < n; ++key) {
            const float w0 = weights[t.warp() * kWarp + key], w1 = weights[t.warp() * kWarp + kKeyTile + key];
#pragma unroll
            for (int i = 0; i < kChannels; i += 4) {
                const Four four = tile.template as<Four>(key * kWide + i * kWarp + 4 * t.lane());
#pragma unroll
                for (int j = 0; j < 4; ++j) {
                    state.sum[0][i + j] = fmaf(w0, four.x[j], state.sum[0][i + j]);
                    state.sum[1][i + j] = fmaf(w1, four.x[j], state.sum[1][i + j]);
                }
            }
        }
    }

    template <typename Thread>
    GPU_CODE void finish(Thread& t, int part, int head, const State& state) const {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const float maximum = t.shuffle(state.maximum, h * kKeyTile),
                        weight = t.shuffle(state.weight, h * kKeyTile);
            if (head + h >= in.heads) return;
            const bool alone = in.parts == 1;
            float* to =
                alone ? in.out + (t.block() * in.heads + head + h) * in.width : in.sum_of(t.block(), part, head + h);
            const float factor = alone ? with_sink(maximum, weight, in.sinks[head + h]) : 1.0f;
#pragma unroll
            for (int i = 0; i < kChannels; i += 4) {
                const int c = i * kWarp + 4 * t.lane();
                if (c >= in.width) continue;
                Four four;
#pragma unroll
                for (int j = 0; j < 4; ++j) four.x[j] = factor * state.sum[h][i + j];
                store_four(to + c, four);
            }
            if (alone || t.lane() > 0) continue;
            in.state_of(t.block(), part, head + h)[0] = maximum;
            in.state_of(t.block(), part, head + h)[1] = weight;
        }
    }
};

/// Joins the parts of a row, the sink first, then part by part. Grid: rows, heads.
struct JoinParts {
    static constexpr const char* kName = "JoinParts";
    AttentionInput in;
    int32_t tile;  // keys of a part are a multiple of it

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const auto head = static_cast<int>(t.block_y());
        const RowKeys keys(in, t.block());
        const int size = keys.part_size(tile), used = (keys.count() + size - 1) / size;
        const float sink = in.sinks[head];
        float top = sink;
        for (int part = 0; part < used; ++part) top = fmaxf(top, in.state_of(t.block(), part, head)[0]);
        float weight = expf(sink - top);
        for (int part = 0; part < used; ++part) {
            const float* state = in.state_of(t.block(), part, head);
            weight = fmaf(state[1], expf(state[0] - top), weight);
        }
        for (int c = 4 * t.id(); c < in.width; c += 4 * t.threads()) {
            Four sum = {};
            for (int part = 0; part < used; ++part) {
                const float shrink = expf(in.state_of(t.block(), part, head)[0] - top);
                const Four four = load_four(in.sum_of(t.block(), part, head) + c);
#pragma unroll
                for (int j = 0; j < 4; ++j) sum.x[j] = fmaf(shrink, four.x[j], sum.x[j]);
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) sum.x[j] /= weight;
            store_four(in.out + (t.block() * in.heads + head) * in.width + c, sum);
        }
    }
};

}  // namespace thermocline::cuda
