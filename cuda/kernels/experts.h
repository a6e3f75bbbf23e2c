// Routed experts whose weights lie on the card, in slots of one size (hybrid-engine.md 3.3, K12 to K15).
//
// A pair is a row and one of its experts: number row * top_k + k. ListPairs sorts the pairs by expert, the product
// kernels multiply the matrices of each expert with the vectors of its pairs, and whatever belongs to pair q lies at
// row q of every buffer: sums over the experts of a row are formed at the end, in the order of its choices, whatever
// else is in the batch.
#pragma once

#include "cuda/kernels/block.h"
#include "cuda/kernels/codes.h"
#include "cuda/kernels/linear.h"
#include "cuda/kernels/rows.h"
#include "cuda/run.h"
#include "src/quant/strips.h"

namespace thermocline::cuda {

/// Sorts pairs by expert. One block; shared_bytes().
struct ListPairs {
    static constexpr const char* kName = "ListPairs";
    static constexpr int kThreads = 384;
    static constexpr int kPiece = 2048;  // pairs looked at between two barriers
    static constexpr int64_t shared_bytes(int64_t experts) { return (2 * experts + kPiece) * 4; }

    const int32_t* ids;      // [pairs] expert of each
    const int32_t* slot_of;  // [experts] -1: not here
    PairLists out;
    int64_t pairs;
    int32_t experts;
    Balance balance;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        auto own = t.template shared<int32_t>(0, experts);  // pairs of each expert, then where the next one goes
        auto place = t.template shared<int32_t>(int64_t{experts} * 4, experts);  // slot, -1: none
        for (int e = t.id(); e < experts; e += t.threads()) {
            own.set(e, 0);
            place.set(e, slot_of[e]);
        }
        const bool balances = balance.card_expert > 0.0f;
        each_pair(t, place, balances, [&](int e, int64_t) { own.set(e, own[e] + 1); });
        t.sync();
        if (balances) leave_to_cpu(t, own, place);
        for (int e = t.id(); e < experts; e += t.threads()) out.taken[e] = place[e];
        if (t.warp() == 0) begin_lists(t, own, place);
        each_pair(t, place, false, [&](int e, int64_t pair) {
            out.pairs[own[e]] = static_cast<int32_t>(pair);
            own.set(e, own[e] + 1);
        });
    }

private:
    /// body(expert, pair) for the pairs of experts that are here, or of all, by the thread that looks after the expert.
    template <typename Thread, typename Places, typename Body>
    GPU_CODE void each_pair(Thread& t, const Places& place, bool all, Body body) const {
        auto piece = t.template shared<int32_t>(int64_t{experts} * 8, kPiece);
        for (int64_t first = 0; first < pairs; first += kPiece) {
            const int count = static_cast<int>(pairs - first < kPiece ? pairs - first : kPiece);
            t.sync();
            for (int i = t.id(); i < count; i += t.threads()) piece.set(i, ids[first + i]);
            t.sync();
            for (int e = t.id(); e < experts; e += t.threads()) {
                if (place[e] < 0 && !all) continue;
                for (int i = 0; i < count; ++i)
                    if (piece[i] == e) body(e, first + i);
            }
        }
    }

    /// Experts that the CPU had better compute are no more here, and nobody has pairs of those that are not.
    template <typename Thread, typename Counts, typename Places>
    GPU_CODE void leave_to_cpu(Thread& t, Counts& own, Places& place) const {
        uint32_t left = 0;  // bit i: the thread's i-th expert
        int i = 0;
        for (int e = t.id(); e < experts; e += t.threads(), ++i)
            if (place[e] >= balance.core && own[e] > 0 && is_better_left(own, place, e)) left |= 1u << i;
        t.sync();
        i = 0;
        for (int e = t.id(); e < experts; e += t.threads(), ++i) {
            if ((left >> i & 1u) != 0) place.set(e, -1);
            if (place[e] < 0) own.set(e, 0);
        }
        t.sync();
    }

    /// Whether the layer ends earlier if the CPU computes expert e besides those before it. What the card takes falls
    /// and what the CPU takes grows with each, so this is so up to the best number and not beyond.
    template <typename Counts, typename Places>
    GPU_CODE bool is_better_left(const Counts& own, const Places& place, int e) const {
        const auto cost = [&](int pairs_of_one) {
            return fmaxf(balance.cpu_expert, static_cast<float>(pairs_of_one) * balance.cpu_pair);
        };
        float cpu = balance.cpu_rest;
        int here = 0;  // e and those after it
        bool any = false;
        for (int other = 0; other < experts; ++other) {
            const int count = own[other];
            if (count == 0) continue;
            const bool before = place[other] < 0 ||
                                (place[other] >= balance.core && (count < own[e] || (count == own[e] && other > e)));
            here += !before;
            any |= before;
            if (before) cpu += cost(count);
        }
        const float card = balance.card_rest + static_cast<float>(here) * balance.card_expert;
        return fmaxf(card - balance.card_expert, cpu + cost(own[e])) < fmaxf(card, any ? cpu : 0.0f);
    }

    /// One warp; a lane has a run of experts.
    template <typename Thread, typename Counts, typename Places>
    GPU_CODE void begin_lists(Thread& t, Counts& own, const Places& place) const {
        const int run = (experts + kWarp - 1) / kWarp;
        const int first = t.lane() * run, last = first + run < experts ? first + run : experts;
        int here = 0, listed = 0;  // pairs, experts with pairs
        for (int e = first; e < last; ++e) {
            here += own[e];
            listed += own[e] > 0;
        }
        int pair = 0, expert = 0, all_pairs = 0, all_experts = 0;  // before this lane, and of all
        for (int lane = 0; lane < kWarp; ++lane) {
            const int its_pairs = t.shuffle(here, lane), its_experts = t.shuffle(listed, lane);
            if (lane < t.lane()) {
                pair += its_pairs;
                expert += its_experts;
            }
            all_pairs += its_pairs;
            all_experts += its_experts;
        }
        for (int e = first; e < last; ++e) {
            const int count = own[e];
            own.set(e, pair);
            if (count == 0) continue;
            out.slots[expert] = place[e];
            out.begin[expert++] = pair;
            pair += count;
        }
        if (t.lane() != 0) return;
        out.begin[all_experts] = all_pairs;
        out.count[0] = all_experts;
        out.count[1] = static_cast<int>(pairs) - all_pairs;
    }
};

/// What the product kernels are given: out[q] = the matrices of the expert of pair q times vector q / pairs_per_vector.
struct PairsProduct {
    quant::Matrix w;           // in slot 0; kStrips, one slice
    int64_t slot_bytes;        // from one slot to the next
    int32_t matrices;          // 1, or 2: one of the same kind continues the rows,
    int64_t matrix_bytes;      // so far behind the first
    const float* multipliers;  // [slots, kMultipliers], of the first matrix
    PairLists lists;
    const uint16_t* x;  // [vectors, pieces, w.cols] bf16
    float* out;         // [pairs / pairs_per_out, matrices * w.rows]
    int32_t pairs_per_vector, pairs_per_out;

    GPU_CODE int64_t width() const { return matrices * w.rows; }
    GPU_CODE quant::Matrix matrix(int64_t slot, int64_t number) const {
        quant::Matrix own = w;
        const int64_t offset = slot * slot_bytes + number * matrix_bytes;
        own.data += offset;
        if (own.scales != nullptr) own.scales += offset;
        return own;
    }
    GPU_CODE float* result(int32_t pair) const { return out + int64_t{pair} / pairs_per_out * width(); }
    GPU_CODE const uint16_t* vector(int32_t pair, int pieces) const {
        return x + int64_t{pair} / pairs_per_vector * pieces * w.cols;
    }

    static constexpr int kFew = 8;                          // pairs of a tile
    static constexpr int kSums = quant::kStripRows * kFew;  // that a warp leaves of them, [pair][row]
    static constexpr int64_t sums_bytes(int warps) { return int64_t{warps} * kSums * int64_t{sizeof(float)}; }

    /// One tile of the strip of this block and the pairs [first, end): the sums of all warps, in their order.
    template <typename Thread>
    GPU_CODE void write_sums(Thread& t, const float (&acc)[4], int first, int end, float multiplier) const {
        auto sums = t.template shared<float>(0, t.warps() * kSums);
        t.sync();  // sums of the pairs before have been read
        for (int i = 0; i < 4; ++i)
            sums.set(t.warp() * kSums + (t.lane() % 4 * 2 + i % 2) * 16 + t.lane() / 4 + i / 2 * 8, acc[i]);
        t.sync();
        for (int i = t.id(); i < kSums && first + i / 16 < end; i += t.threads()) {
            float sum = 0.0f;
            for (int warp = 0; warp < t.warps(); ++warp) sum += sums[warp * kSums + i];
            result(lists.pairs[first + i / 16])[t.block() * 16 + i % 16] = sum * multiplier;
        }
    }

    /// The tiles that a warp has of a strip (counted through all matrices) and the pairs [first, end).
    template <int kTiles, typename Thread>
    GPU_CODE void write_tiles(Thread& t, const float (&acc)[kTiles][4], int64_t strip, int first, int end,
                              float multiplier) const {
        const int g = t.lane() / 4, c = t.lane() % 4;
#pragma unroll
        for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int at = first + tile * 8 + 2 * c + i % 2;
                if (at < end)
                    result(lists.pairs[at])[strip * quant::kStripRows + g + i / 2 * 8] = acc[tile][i] * multiplier;
            }
    }
};

/// Few pairs an expert: a block has one strip of one expert, its warps share the columns; their sums are added in the
/// order of the warps. Grid: strips of all matrices, experts that may have pairs; at most kMostWarps; shared_bytes().
template <typename Codes, int kPieces>
struct FewPairs : PairsProduct {
    static constexpr const char* kName = "FewPairs";
    static constexpr int kMostWarps = 8, kMostThreads = kMostWarps * kWarp;
    static constexpr int64_t shared_bytes(int warps) { return sums_bytes(warps); }

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        if (t.block_y() >= lists.count[0]) return;
        const int64_t strips = w.rows / quant::kStripRows, number = t.block() / strips, strip = t.block() % strips;
        const int64_t slot = lists.slots[t.block_y()];
        const quant::Matrix own = matrix(slot, number);
        const float multiplier = multipliers[slot * kMultipliers + number];
        const int end = lists.begin[t.block_y() + 1];
        for (int first = lists.begin[t.block_y()]; first < end; first += kFew) {
            const int own_pair = first + t.lane() / 4;  // of the lane
            float acc[1][4] = {};
            multiply(t, own, strip, own_pair < end ? vector(lists.pairs[own_pair], kPieces) : nullptr, acc);
            write_sums(t, acc[0], first, end, multiplier);
        }
    }

private:
    /// The strip times the lane's own vector (null: none), over the columns of the warp.
    template <typename Thread>
    GPU_CODE void multiply(Thread& t, const quant::Matrix& own, int64_t strip, const uint16_t* v,
                           float (&acc)[1][4]) const {
        const std::byte* codes = own.data + strip * own.strip_bytes;
        for (int64_t k = t.warp() * quant::kStripBlock; k < own.cols; k += t.warps() * quant::kStripBlock) {
            const std::byte* block = codes + k / quant::kStripBlock * Codes::kBlockBytes;
            const auto words = Codes::load(t, block);
            multiply_block<Codes, kPieces>(
                t, own, block, words, strip * quant::kStripRows, k,
                [&](int, int piece, int column) {
                    return v == nullptr ? 0 : *reinterpret_cast<const uint64_t*>(v + piece * own.cols + k + column);
                },
                acc);
        }
    }
};

/// Many pairs an expert: as ManyVectors, with the vectors of the expert's pairs in shared memory. Grid: ceil(strips of
/// all matrices / (2 warps)), experts that may have pairs; shared_bytes().
template <typename Codes, int kPieces, int kTiles>
struct ManyPairs : PairsProduct {
    static constexpr const char* kName = "ManyPairs";
    static constexpr int kWarps = 8, kMostThreads = kWarps * kWarp, kStrips = 2, kVectors = 8 * kTiles;
    static constexpr int kStride = quant::kStripBlock + 8;
    static constexpr int64_t shared_bytes() { return int64_t{kVectors} * kPieces * kStride * 2; }

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        if (t.block_y() >= lists.count[0]) return;
        const int64_t slot = lists.slots[t.block_y()];
        const int end = lists.begin[t.block_y() + 1];
        for (int first = lists.begin[t.block_y()]; first < end; first += kVectors) multiply(t, slot, first, end);
    }

private:
    template <typename Thread>
    GPU_CODE void multiply(Thread& t, int64_t slot, int first, int end) const {
        const int g = t.lane() / 4;
        const int64_t strips = w.rows / quant::kStripRows, all = strips * matrices;
        const int64_t strip = (t.block() * kWarps + t.warp()) * kStrips;
        auto panel = t.template shared<uint16_t>(0, kVectors * kPieces * kStride);  // [vector, piece][column]
        float acc[kStrips][kTiles][4] = {};
        for (int64_t k = 0; k < w.cols; k += quant::kStripBlock) {
            t.sync();
            for (int i = t.id(); i < kVectors * kPieces * 16; i += t.threads()) {  // 8 columns each
                const int at = first + i / 16 / kPieces;
                Eight eight = {};
                if (at < end)
                    eight = *reinterpret_cast<const Eight*>(vector(lists.pairs[at], kPieces) +
                                                            i / 16 % kPieces * w.cols + k + i % 16 * 8);
                panel.template set_as<Eight>(i / 16 * kStride + i % 16 * 8, eight);
            }
            t.sync();
#pragma unroll
            for (int s = 0; s < kStrips; ++s) {
                if (strip + s >= all) continue;
                const quant::Matrix own = matrix(slot, (strip + s) / strips);
                const int64_t at = (strip + s) % strips;
                const std::byte* block = own.data + at * own.strip_bytes + k / quant::kStripBlock * Codes::kBlockBytes;
                const auto words = Codes::load(t, block);
                multiply_block<Codes, kPieces>(
                    t, own, block, words, at * quant::kStripRows, k,
                    [&](int tile, int piece, int column) {
                        return panel.template as<uint64_t>(((tile * 8 + g) * kPieces + piece) * kStride + column);
                    },
                    acc[s]);
            }
        }
#pragma unroll
        for (int s = 0; s < kStrips; ++s) {
            if (strip + s >= all) continue;
            write_tiles(t, acc[s], strip + s, first, end, multipliers[slot * kMultipliers + (strip + s) / strips]);
        }
    }
};

/// out = weight * swiglu(gate, up) of the pairs whose experts are here, or of those listed, as the products want
/// vectors. Grid: pairs, groups of 128 columns; one warp.
struct SwiGluPairs {
    static constexpr const char* kName = "SwiGluPairs";
    const float* gate_up;           // [pairs / pairs_per_row, 2 * width]
    const float* weights;           // [pairs]
    const int32_t* ids;             // [pairs]
    const int32_t* slot_of;         // [experts]
    const int32_t *listed, *first;  // pairs, from number *first on; null: all
    uint16_t* out;                  // [pairs, pieces, width] bf16
    int64_t width;
    int32_t pieces, pairs_per_row;
    float limit;
    bool rounded;  // as PrepareVectors

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const int64_t pair = listed == nullptr ? t.block() : listed[*first + t.block()];
        if (listed == nullptr && slot_of[ids[pair]] < 0) return;
        const float *gate = gate_up + pair / pairs_per_row * 2 * width, *up = gate + width, weight = weights[pair];
        prepare_group(
            t, t.block_y() * kRoundedColumns, width, rounded,
            [&](int64_t i) { return weight * swiglu(gate[i], up[i], limit); },
            [&](int64_t i, float number) { write_pieces(number, pieces, width, out + pair * pieces * width + i); });
    }
};

/// out = what the CPU made of its pairs + what the card made of the others + the shared expert. Grid: rows.
struct SumExperts {
    static constexpr const char* kName = "SumExperts";
    const float* host;          // [T, width] of the CPU, in its memory
    const int32_t* pairs_left;  // that the CPU had; null: it had some
    const float* pairs;         // [T * top_k, width]; null: no expert is here
    const int32_t* ids;         // [T, top_k]
    const int32_t* slot_of;     // [experts]
    const float* shared;        // [T, width]; null: there is none
    float* out;                 // [T, width]
    int64_t width;
    int32_t top_k;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const int64_t row = t.block();
        const bool from_host = pairs_left == nullptr || *pairs_left > 0;
        for (int64_t i = t.id(); i < width; i += t.threads()) {
            float sum = from_host ? host[row * width + i] : 0.0f;
            if (pairs != nullptr)
                for (int k = 0; k < top_k; ++k)
                    if (slot_of[ids[row * top_k + k]] >= 0) sum += pairs[(row * top_k + k) * width + i];
            out[row * width + i] = shared == nullptr ? sum : sum + shared[row * width + i];
        }
    }
};

}  // namespace thermocline::cuda
