// The lightning indexer (deepseek-v4.md 2.7). The entries that a row sees are split into parts of equal size, a block
// each: it scores its entries tile by tile and keeps the best top_k of them, so that scratch memory does not depend on
// the length of the context. A second kernel chooses among what the parts of a row kept.
//
// All orders are those of the indices: a choice depends on the row alone, ties go to the lowest index.
#pragma once

#include "cuda/kernels/kv.h"
#include "cuda/kernels/top.h"

#include <cstdint>

namespace thermocline::cuda {

inline constexpr int kIndexTile = 64;  // entries scored at a time

/// How the `visible` entries of a row are split.
struct IndexParts {
    int size;  // entries of a part, a multiple of kIndexTile; the last may be shorter
    int kept;  // candidates that a part leaves
    int used;  // parts with entries

    GPU_CODE static IndexParts of(int64_t visible, int parts, int top_k) {
        const auto tiles = static_cast<int>((visible + kIndexTile - 1) / kIndexTile);
        const int size = (tiles + parts - 1) / parts * kIndexTile;
        return {size, size < top_k ? size : top_k, (static_cast<int>(visible) + size - 1) / size};
    }
};

/// The best entries of every part. Grid: rows, parts; kThreads; shared_bytes().
struct ScoreEntries {
    static constexpr const char* kName = "ScoreEntries";
    static constexpr int kThreads = 256;
    static constexpr int kMaxHeads = 64, kMaxWidth = 128, kMaxTopK = 1024;
    static constexpr int kSlack = 512;  // candidates beyond top_k that wait until it pays to sort them out
    static constexpr int kSide = 16;    // threads along the heads and along the entries

    const float* q;         // [T, heads, width]
    const float* gates;     // [T, heads]
    Candidate* candidates;  // [T, parts, top_k] out, the first used * kept of a row
    Batch batch;
    int32_t keys;  // cache of the plan
    int32_t heads, width, rope, ratio, top_k, parts;
    KvFormat format;

    /// Where things lie in shared memory. Rows of numbers are four apart from a multiple of 32 banks.
    struct Layout {
        int64_t q, gates, tile, scores, keys, indices, take, count, bytes;

        GPU_CODE static constexpr Layout of(int heads, int width, int top_k) {
            Layout l{};
            const int64_t stride = (width + 4) * 4, rows = (heads + kSide - 1) / kSide * kSide;
            const int64_t tile = kIndexTile * stride, counting = threshold_bytes(kThreads);
            l.tile = 0;  // and what find_threshold() counts
            l.q = tile > counting ? tile : counting;
            l.gates = l.q + rows * stride;
            l.scores = l.gates + rows * 4;
            l.keys = l.scores + kIndexTile * 4;
            l.indices = l.keys + (top_k + kSlack) * 4;
            l.take = l.indices + (top_k + kSlack) * 4;
            l.count = l.take + take_bytes(kThreads);
            l.bytes = l.count + 16;
            return l;
        }
    };

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const int64_t visible = (batch.positions[t.block()] + 1) / ratio;
        if (visible <= top_k) return;
        const IndexParts split = IndexParts::of(visible, parts, top_k);
        const auto part = static_cast<int>(t.block_y());
        if (part >= split.used) return;
        const Layout at = Layout::of(heads, width, top_k);
        const int begin = part * split.size;
        const int end = begin + split.size < visible ? begin + split.size : static_cast<int>(visible);
        const CacheView& cache = batch.caches[batch.segment_of[t.block()] * batch.cache_count + keys];

        load_queries(t, at);
        auto kept_keys = t.template shared<uint32_t>(at.keys, top_k + kSlack);
        auto kept_indices = t.template shared<int32_t>(at.indices, top_k + kSlack);
        auto shared_count = t.template shared<int32_t>(at.count, 1);
        uint32_t lowest = 0;  // keys up to this one are out of the race
        int count = 0;
        const auto sort_out = [&] {
            const auto load = [&](int i) { return Candidate{kept_keys[i], kept_indices[i]}; };
            const auto put = [&](int i, const Candidate& one) {
                kept_keys.set(i, one.key);
                kept_indices.set(i, one.index);
            };
            const auto key_of = [&](int i) { return kept_keys[i]; };
            const Threshold threshold = find_threshold(t, key_of, count, top_k, at.tile);
            t.sync();
            take_chosen(t, load, count, threshold, at.take, put);
            lowest = threshold.key;
            count = top_k;
        };
        for (int first = begin; first < end; first += kIndexTile) {
            const int n = end - first < kIndexTile ? end - first : kIndexTile;
            load_tile(t, at, cache, first, n);
            t.sync();
            score_tile(t, at);
            t.sync();
            if (t.warp() == 0) {
                const int now = append(t, at, first, n, lowest, count, kept_keys, kept_indices);
                if (t.lane() == 0) shared_count.set(0, now);
            }
            t.sync();
            count = shared_count[0];
            if (count + kIndexTile > top_k + kSlack) sort_out();
        }
        if (count > split.kept) sort_out();
        Candidate* out = candidates + (t.block() * parts * top_k + part * split.kept);
        for (int i = t.id(); i < split.kept; i += t.threads())
            out[i] = i < count ? Candidate{kept_keys[i], kept_indices[i]} : Candidate{0, 0};
    }

    /// Heads behind the last are zero.
    template <typename Thread>
    GPU_CODE void load_queries(Thread& t, const Layout& at) const {
        const int rows = (heads + kSide - 1) / kSide * kSide, stride = width + 4;
        auto own_q = t.template shared<float>(at.q, rows * stride);
        auto own_gates = t.template shared<float>(at.gates, rows);
        const float* from = q + t.block() * heads * width;
        for (int i = t.id(); i < rows * width; i += t.threads())
            own_q.set(i / width * stride + i % width, i < heads * width ? from[i] : 0.0f);
        for (int i = t.id(); i < rows; i += t.threads())
            own_gates.set(i, i < heads ? gates[t.block() * heads + i] : 0.0f);
    }

    template <typename Thread>
    GPU_CODE void load_tile(Thread& t, const Layout& at, const CacheView& cache, int first, int n) const {
        auto tile = t.template shared<float>(at.tile, kIndexTile * (width + 4));
        for (int i = t.warp(); i < n; i += t.warps()) {
            const std::byte* row = entry_row(cache, first + i);
            for (int c = 4 * t.lane(); c < width; c += 4 * kWarp)
                tile.template set_as<Four>(i * (width + 4) + c, decode_four(format, row, c, width, rope));
        }
    }

    /// Thread (k, h) has the entries k + 16 j and the heads h + 16 i of the tile.
    template <typename Thread>
    GPU_CODE void score_tile(Thread& t, const Layout& at) const {
        const int stride = width + 4, blocks = (heads + kSide - 1) / kSide;
        const auto tile = t.template shared<float>(at.tile, kIndexTile * stride);
        const auto own_q = t.template shared<float>(at.q, blocks * kSide * stride);
        const auto own_gates = t.template shared<float>(at.gates, blocks * kSide);
        auto scores = t.template shared<float>(at.scores, kIndexTile);
        constexpr int kEntries = kIndexTile / kSide;
        const int k = t.id() / kSide, h = t.id() % kSide;
        float score[kEntries] = {};
        for (int block = 0; block < blocks; block += 2) {  // two heads at a time
            float dot[kEntries][2] = {};
            const int h0 = block * kSide + h, h1 = block + 1 < blocks ? h0 + kSide : h0;
            for (int c = 0; c < width; c += 4) {
                const Four q0 = own_q.template as<Four>(h0 * stride + c), q1 = own_q.template as<Four>(h1 * stride + c);
                for (int j = 0; j < kEntries; ++j) {
                    const Four key = tile.template as<Four>((k + j * kSide) * stride + c);
                    for (int i = 0; i < 4; ++i) {
                        dot[j][0] = fmaf(q0.x[i], key.x[i], dot[j][0]);
                        dot[j][1] = fmaf(q1.x[i], key.x[i], dot[j][1]);
                    }
                }
            }
            const float g0 = own_gates[h0], g1 = h1 == h0 ? 0.0f : own_gates[h1];
            for (int j = 0; j < kEntries; ++j) {
                score[j] = fmaf(g0, dot[j][0] > 0.0f ? dot[j][0] : 0.0f, score[j]);
                score[j] = fmaf(g1, dot[j][1] > 0.0f ? dot[j][1] : 0.0f, score[j]);
            }
        }
        for (int j = 0; j < kEntries; ++j) {
            for (int mask = kSide / 2; mask > 0; mask /= 2) score[j] += t.shuffle_xor(score[j], mask);
            if (h == 0) scores.set(k + j * kSide, score[j]);
        }
    }

    /// One warp: the entries of the tile that are still in the race, behind the `count` that wait; how many wait now.
    template <typename Thread, typename Keys, typename Indices>
    GPU_CODE int append(Thread& t, const Layout& at, int first, int n, uint32_t lowest, int count, Keys& kept_keys,
                        Indices& kept_indices) const {
        const auto scores = t.template shared<float>(at.scores, kIndexTile);
        for (int i = t.lane(); i < kIndexTile; i += kWarp) {
            const uint32_t key = order_key(scores[i]);
            const bool in = i < n && key > lowest;
            const uint32_t all = t.ballot(in);
            const int place = count + std::popcount(all & ((1u << t.lane()) - 1));
            if (in) {
                kept_keys.set(place, key);
                kept_indices.set(place, first + i);
            }
            count += std::popcount(all);
        }
        return count;
    }
};

/// Writes the selection of every row. Grid: rows; threshold_bytes() + take_bytes() shared.
struct ChooseEntries {
    static constexpr const char* kName = "ChooseEntries";
    const Candidate* candidates;  // [T, parts, top_k]
    const int64_t* positions;     // [T]
    int32_t* selection;           // [T, 1 + top_k]
    int32_t ratio, top_k, parts;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const int64_t visible = (positions[t.block()] + 1) / ratio;
        int32_t* out = selection + t.block() * (1 + top_k);
        if (visible <= top_k) {
            if (t.id() == 0) out[0] = static_cast<int32_t>(visible);
            for (int i = t.id(); i < visible; i += t.threads()) out[1 + i] = i;
            return;
        }
        const IndexParts split = IndexParts::of(visible, parts, top_k);
        const Candidate* own = candidates + t.block() * parts * top_k;
        const int count = split.used * split.kept;
        const auto load = [&](int i) { return own[i]; };
        const Threshold threshold = find_threshold(
            t, [&](int i) { return own[i].key; }, count, top_k, 0);
        if (t.id() == 0) out[0] = top_k;
        take_chosen(t, load, count, threshold, threshold_bytes(t.threads()),
                    [&](int i, const Candidate& one) { out[1 + i] = one.index; });
    }
};

}  // namespace thermocline::cuda
