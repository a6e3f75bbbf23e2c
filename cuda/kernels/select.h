// The lightning indexer (deepseek-v4.md 2.7). The entries that a row sees are split into parts of equal size, a block
// each: it scores its entries tile by tile and keeps the best top_k of them, so that scratch memory does not depend on
// the length of the context. A second kernel chooses among what the parts of a row kept.
//
// All orders are those of the indices: a choice depends on the row alone, ties go to the lowest index.
#pragma once

#include "cuda/kernels/codes.h"
#include "cuda/kernels/kv.h"
#include "cuda/kernels/pieces.h"
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

/// What the kernels are given.
struct IndexInput {
    const float* q;         // [T, heads, width]
    const float* gates;     // [T, heads]
    Candidate* candidates;  // [T, parts, top_k] out, the first used * kept of a row
    Batch batch;
    int32_t keys;  // cache of the plan
    int32_t heads, width, rope, ratio, top_k, parts;
    KvFormat format;
};

inline constexpr int kMaxIndexHeads = 64, kMaxIndexWidth = 128, kMaxTopK = 1024;
inline constexpr int kIndexThreads = 256;

/// Scores in float32, for any cache format. Thread (k, h) has the entries k + 16 j and the heads h + 16 i of a tile.
/// Rows of numbers lie four words from a multiple of the banks. Heads behind the last are zero.
struct PlainScores {
    static constexpr const char* kName = "PlainScores";
    static constexpr int kSide = 16;

    GPU_CODE static constexpr int sets(int) { return 1; }
    GPU_CODE static constexpr int64_t tile_bytes(int width) { return int64_t{kIndexTile} * (width + 4) * 4; }
    GPU_CODE static constexpr int64_t query_bytes(int heads, int width) {
        return int64_t{blocks(heads)} * kSide * (width + 5) * 4;
    }
    GPU_CODE static constexpr int blocks(int heads) { return (heads + kSide - 1) / kSide; }

    template <typename Thread>
    GPU_CODE PlainScores(Thread& t, const IndexInput& in_, int64_t queries_at) : in(in_), at(queries_at) {
        auto q = t.template shared<float>(at, rows() * stride());
        auto gates = t.template shared<float>(gates_at(), rows());
        const float* from = in.q + t.block() * in.heads * in.width;
        for (int i = t.id(); i < rows() * in.width; i += t.threads())
            q.set(i / in.width * stride() + i % in.width, i < in.heads * in.width ? from[i] : 0.0f);
        for (int i = t.id(); i < rows(); i += t.threads())
            gates.set(i, i < in.heads ? in.gates[t.block() * in.heads + i] : 0.0f);
    }

    template <typename Thread>
    GPU_CODE void load_key(Thread& t, int i, const std::byte* row) const {
        auto tile = t.template shared<float>(0, kIndexTile * stride());
        for (int c = 4 * t.lane(); c < in.width; c += 4 * kWarp)
            tile.template set_as<Four>(i * stride() + c, decode_four(in.format, row, c, in.width, in.rope));
    }

    template <typename Thread, typename Scores>
    GPU_CODE void score(Thread& t, Scores& scores) const {
        const auto tile = t.template shared<float>(0, kIndexTile * stride());
        const auto q = t.template shared<float>(at, rows() * stride());
        const auto gates = t.template shared<float>(gates_at(), rows());
        constexpr int kEntries = kIndexTile / kSide;
        const int k = t.id() / kSide, h = t.id() % kSide;
        float score[kEntries] = {};
        for (int block = 0; block < blocks(in.heads); block += 2) {  // two heads at a time
            float dot[kEntries][2] = {};
            const int h0 = block * kSide + h, h1 = block + 1 < blocks(in.heads) ? h0 + kSide : h0;
            for (int c = 0; c < in.width; c += 4) {
                const Four q0 = q.template as<Four>(h0 * stride() + c), q1 = q.template as<Four>(h1 * stride() + c);
#pragma unroll
                for (int j = 0; j < kEntries; ++j) {
                    const Four key = tile.template as<Four>((k + j * kSide) * stride() + c);
#pragma unroll
                    for (int i = 0; i < 4; ++i) {
                        dot[j][0] = fmaf(q0.x[i], key.x[i], dot[j][0]);
                        dot[j][1] = fmaf(q1.x[i], key.x[i], dot[j][1]);
                    }
                }
            }
            const float g0 = gates[h0], g1 = h1 == h0 ? 0.0f : gates[h1];
#pragma unroll
            for (int j = 0; j < kEntries; ++j) {
                score[j] = fmaf(g0, dot[j][0] > 0.0f ? dot[j][0] : 0.0f, score[j]);
                score[j] = fmaf(g1, dot[j][1] > 0.0f ? dot[j][1] : 0.0f, score[j]);
            }
        }
#pragma unroll
        for (int j = 0; j < kEntries; ++j) {
            for (int mask = kSide / 2; mask > 0; mask /= 2) score[j] += t.shuffle_xor(score[j], mask);
            if (h == 0) scores.set(k + j * kSide, score[j]);
        }
    }

    GPU_CODE int stride() const { return in.width + 4; }
    GPU_CODE int rows() const { return blocks(in.heads) * kSide; }
    GPU_CODE int64_t gates_at() const { return at + int64_t{rows()} * stride() * 4; }

    const IndexInput& in;
    int64_t at;  // queries and gates in shared memory; the tile at 0
};

inline constexpr int kHeadSets = kMaxIndexHeads / 16;  // of 16 heads, the rows of a matrix instruction
GPU_CODE constexpr int head_sets(int heads) { return (heads + 15) / 16; }

/// Of a lane: the gates of heads g and g + 8 of its warp's set, with g = lane / 4.
struct TwoGates {
    float of[2];

    template <typename Thread>
    GPU_CODE TwoGates(Thread& t, const IndexInput& in) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int head = t.warp() % kHeadSets * 16 + t.lane() / 4 + i * 8;
            of[i] = head < in.heads ? in.gates[t.block() * in.heads + head] : 0.0f;
        }
    }
};

/// Scores of a tile by matrix instructions. Warp w has the heads 16 (w % 4) .. + 15 and the entries 32 (w / 4) .. + 31,
/// which multiply(entry, d) multiplies eight at a time: `entry` is the lane's own of them. Every 16 heads leave a set
/// of scores.
template <typename Thread, typename Scores, typename Multiply>
GPU_CODE void score_by_tiles(Thread& t, const IndexInput& in, const TwoGates& gates, Scores& scores,
                             Multiply multiply) {
    const int g = t.lane() / 4, c = t.lane() % 4, set = t.warp() % kHeadSets;
    if (set >= head_sets(in.heads)) return;
    for (int eight = t.warp() / kHeadSets * 4; eight < t.warp() / kHeadSets * 4 + 4; ++eight) {
        float d[4] = {};
        multiply(eight * 8 + g, d);
#pragma unroll
        for (int i = 0; i < 2; ++i) {  // entry 2c + i: heads g and g + 8, then all of the set
            const float upper = d[i] > 0.0f ? d[i] : 0.0f, lower = d[i + 2] > 0.0f ? d[i + 2] : 0.0f;
            float sum = fmaf(gates.of[0], upper, gates.of[1] * lower);
            for (int mask = 4; mask < kWarp; mask *= 2) sum += t.shuffle_xor(sum, mask);
            if (g == 0) scores.set(set * kIndexTile + eight * 8 + 2 * c + i, sum);
        }
    }
}

/// Scores by the matrix instruction, for keys that are exact in bf16; a warp's queries stay in registers.
struct TileScores {
    static constexpr const char* kName = "TileScores";
    static constexpr int kSteps = kMaxIndexWidth / 16;

    GPU_CODE static constexpr int sets(int heads) { return head_sets(heads); }
    GPU_CODE static constexpr int words(int width) { return (width + 15) / 16 * 8 + 4; }  // of a key, and four
    GPU_CODE static constexpr int64_t tile_bytes(int width) { return int64_t{kIndexTile} * words(width) * 4; }
    GPU_CODE static constexpr int64_t query_bytes(int, int) { return 0; }

    template <typename Thread>
    GPU_CODE TileScores(Thread& t, const IndexInput& in_, int64_t) : in(in_), gates(t, in_) {
        const int g = t.lane() / 4, c = t.lane() % 4, first = t.warp() % kHeadSets * 16;
        uint32_t low = 0;
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int head = first + g + i % 2 * 8, channel = step * 16 + 2 * c + i / 2 * 8;
                const bool there = head < in.heads && channel < in.width;
                const float* from = in.q + (t.block() * in.heads + head) * in.width + channel;
                q[step][i] = SplitPair::of(there ? from[0] : 0.0f, there ? from[1] : 0.0f);
                low |= q[step][i].low;
            }
        exact = t.ballot((low & 0x7fff7fff) != 0) == 0;
    }

    template <typename Thread>
    GPU_CODE void load_key(Thread& t, int i, const std::byte* row) const {
        auto tile = t.template shared<uint32_t>(0, kIndexTile * words(in.width));
        for (int c = 4 * t.lane(); c < (in.width + 15) / 16 * 16; c += 4 * kWarp) {
            Four four = {};
            if (c < in.width) four = decode_four(in.format, row, c, in.width, in.rope);
            const TwoWords two = {{bf16_pair(four.x[0], four.x[1]), bf16_pair(four.x[2], four.x[3])}};
            tile.template set_as<TwoWords>(i * words(in.width) + c / 2, two);
        }
    }

    template <typename Thread, typename Scores>
    GPU_CODE void score(Thread& t, Scores& scores) const {
        const auto tile = t.template shared<uint32_t>(0, kIndexTile * words(in.width));
        const int c = t.lane() % 4;
        score_by_tiles(t, in, gates, scores, [&](int entry, float(&d)[4]) {
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                if (step * 16 >= in.width) break;
                const int word = entry * words(in.width) + step * 8 + c;
                const uint32_t b[2] = {tile[word], tile[word + 4]};
                t.mma(d, {q[step][0].high, q[step][1].high, q[step][2].high, q[step][3].high}, b);
                if (!exact) t.mma(d, {q[step][0].low, q[step][1].low, q[step][2].low, q[step][3].low}, b);
            }
        });
    }

    const IndexInput& in;
    SplitPair q[kSteps][4];
    TwoGates gates;
    bool exact;  // nothing is left by the first pieces, as with queries in their trained FP4 form
};

/// The best entries of every part. Grid: rows, parts; kIndexThreads; Layout::bytes.
template <typename Scorer>
struct ScoreEntries {
    static constexpr const char* kName = Scorer::kName;
    static constexpr int kMostThreads = kIndexThreads, kLeastBlocks = 2;
    static constexpr int kSlack = 512;  // candidates beyond top_k that wait until it pays to sort them out
    IndexInput in;

    /// Where things lie in shared memory.
    struct Layout {
        int64_t queries, scores, keys, indices, take, count, bytes;

        GPU_CODE static constexpr Layout of(int heads, int width, int top_k) {
            Layout l{};
            const int64_t tile = Scorer::tile_bytes(width), counting = threshold_bytes(kIndexThreads);
            l.queries = tile > counting ? tile : counting;  // they share the beginning
            l.scores = l.queries + Scorer::query_bytes(heads, width);
            l.keys = l.scores + int64_t{Scorer::sets(kMaxIndexHeads)} * kIndexTile * 4;
            l.indices = l.keys + (top_k + kSlack) * 4;
            l.take = l.indices + (top_k + kSlack) * 4;
            l.count = l.take + take_bytes(kIndexThreads);
            l.bytes = l.count + 16;
            return l;
        }
    };

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const int top_k = in.top_k;
        const int64_t visible = (in.batch.positions[t.block()] + 1) / in.ratio;
        if (visible <= top_k) return;
        const IndexParts split = IndexParts::of(visible, in.parts, top_k);
        const auto part = static_cast<int>(t.block_y());
        if (part >= split.used) return;
        const Layout at = Layout::of(in.heads, in.width, top_k);
        const int begin = part * split.size;
        const int end = begin + split.size < visible ? begin + split.size : static_cast<int>(visible);
        const CacheView& cache = in.batch.caches[in.batch.segment_of[t.block()] * in.batch.cache_count + in.keys];

        const Scorer scorer(t, in, at.queries);
        auto scores = t.template shared<float>(at.scores, Scorer::sets(kMaxIndexHeads) * kIndexTile);
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
            const Threshold threshold = find_threshold(t, key_of, count, top_k, 0);
            t.sync();
            take_chosen(t, load, count, threshold, at.take, put);
            lowest = threshold.key;
            count = top_k;
        };
        for (int first = begin; first < end; first += kIndexTile) {
            const int n = end - first < kIndexTile ? end - first : kIndexTile;
            for (int i = t.warp(); i < n; i += t.warps()) scorer.load_key(t, i, entry_row(cache, first + i));
            t.sync();
            scorer.score(t, scores);
            t.sync();
            if (t.warp() == 0) {
                const int now = append(t, scores, first, n, lowest, count, kept_keys, kept_indices);
                if (t.lane() == 0) shared_count.set(0, now);
            }
            t.sync();
            count = shared_count[0];
            if (count + kIndexTile > top_k + kSlack) sort_out();
        }
        if (count > split.kept) sort_out();
        Candidate* out = in.candidates + (t.block() * in.parts * top_k + part * split.kept);
        for (int i = t.id(); i < split.kept; i += t.threads())
            out[i] = i < count ? Candidate{kept_keys[i], kept_indices[i]} : Candidate{0, 0};
    }

    /// One warp: the entries of the tile that are still in the race, behind the `count` that wait; how many wait now.
    template <typename Thread, typename Scores, typename Keys, typename Indices>
    GPU_CODE int append(Thread& t, const Scores& scores, int first, int n, uint32_t lowest, int count, Keys& kept_keys,
                        Indices& kept_indices) const {
        for (int i = t.lane(); i < kIndexTile; i += kWarp) {
            float score = scores[i];
            for (int set = 1; set < Scorer::sets(in.heads); ++set) score += scores[set * kIndexTile + i];
            const uint32_t key = order_key(score);
            const bool waits = i < n && key > lowest;
            const uint32_t all = t.ballot(waits);
            const int place = count + std::popcount(all & ((1u << t.lane()) - 1));
            if (waits) {
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
    static constexpr int kMostThreads = 1024;
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
