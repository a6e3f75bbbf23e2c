// Routed experts in MXFP4 times vectors rounded to e4m3, by the matrix instruction of the SM120 family (linear_mx.h).
// The kernels of experts.h do the same on all cards.
#pragma once

#include "cuda/kernels/experts.h"
#include "cuda/kernels/linear_mx.h"

namespace thermocline::cuda {

/// PairsProduct with vectors as PrepareCodes leaves them.
struct PairsProductMx : PairsProduct {
    const uint8_t* codes;   // [vectors, w.cols]
    const uint8_t* scales;  // [vectors, w.cols / 128]

    GPU_CODE int64_t number(int32_t pair) const { return int64_t{pair} / pairs_per_vector; }
};

/// As FewPairs.
struct FewPairsMx : PairsProductMx {
    static constexpr const char* kName = "FewPairsMx";
    static constexpr int kMostWarps = 8, kMostThreads = kMostWarps * kWarp;
    static constexpr int64_t shared_bytes(int warps) { return sums_bytes(warps); }

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        if (t.block_y() >= lists.count[0]) return;
        const int64_t strips = w.rows / quant::kStripRows, part = t.block() / strips, strip = t.block() % strips;
        const int64_t slot = lists.slots[t.block_y()], blocks = w.cols / quant::kStripBlock;
        const quant::Matrix own = matrix(slot, part);
        const float multiplier = multipliers[slot * kMultipliers + part];
        const int end = lists.begin[t.block_y() + 1];
        for (int first = lists.begin[t.block_y()]; first < end; first += kFew) {
            const int at = first + t.lane() / 4;  // the lane's own
            const bool mine = at < end;
            const int64_t vector = mine ? number(lists.pairs[at]) : 0;
            float acc[4] = {};
            for (int64_t i = t.warp(); i < blocks; i += t.warps()) {
                const std::byte* block = own.data + strip * own.strip_bytes + i * Mxfp4Codes::kBlockBytes;
                const uint8_t* eight = codes + vector * w.cols + i * quant::kStripBlock + 8 * (t.lane() % 4);
                multiply_block_mx(
                    t, block, mine ? scales[vector * blocks + i] : 0u,
                    [&](int column) { return mine ? *reinterpret_cast<const uint64_t*>(eight + column) : 0; }, acc);
            }
            write_sums(t, acc, first, end, multiplier);
        }
    }
};

/// As ManyPairs.
template <int kTiles>
struct ManyPairsMx : PairsProductMx {
    static constexpr const char* kName = "ManyPairsMx";
    static constexpr int kWarps = 8, kMostThreads = kWarps * kWarp, kStrips = 2, kVectors = 8 * kTiles;
    static constexpr int kStride = quant::kStripBlock + 16;  // bytes of a vector; its scale lies behind the codes
    static constexpr int64_t shared_bytes() { return int64_t{kVectors} * kStride; }

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
        const int g = t.lane() / 4, c = t.lane() % 4;
        const int64_t strips = w.rows / quant::kStripRows, all = strips * matrices,
                      blocks = w.cols / quant::kStripBlock;
        const int64_t strip = (t.block() * kWarps + t.warp()) * kStrips;
        auto panel = t.template shared<uint8_t>(0, kVectors * kStride);
        float acc[kStrips][kTiles][4] = {};
        for (int64_t k = 0; k < blocks; ++k) {
            t.sync();
            for (int i = t.id(); i < kVectors * 16; i += t.threads()) {  // 8 columns each
                const int at = first + i / 16;
                const int64_t vector = at < end ? number(lists.pairs[at]) : 0;
                uint64_t eight = 0;
                if (at < end)
                    eight = *reinterpret_cast<const uint64_t*>(codes + vector * w.cols + k * quant::kStripBlock +
                                                               i % 16 * 8);
                panel.template set_as<uint64_t>(i / 16 * kStride + i % 16 * 8, eight);
                if (i % 16 == 0)
                    panel.set(i / 16 * kStride + quant::kStripBlock, at < end ? scales[vector * blocks + k] : 0);
            }
            t.sync();
#pragma unroll
            for (int s = 0; s < kStrips; ++s) {
                if (strip + s >= all) continue;
                const quant::Matrix own = matrix(slot, (strip + s) / strips);
                const std::byte* block =
                    own.data + (strip + s) % strips * own.strip_bytes + k * Mxfp4Codes::kBlockBytes;
#pragma unroll
                for (int tile = 0; tile < kTiles; ++tile) {
                    const int vector = (tile * 8 + g) * kStride;
                    multiply_block_mx(
                        t, block, panel[vector + quant::kStripBlock],
                        [&](int column) { return panel.template as<uint64_t>(vector + 8 * c + column); }, acc[s][tile]);
                }
            }
        }
#pragma unroll
        for (int s = 0; s < kStrips; ++s) {
            if (strip + s >= all) continue;
            write_tiles(t, acc[s], strip + s, first, end, multipliers[slot * kMultipliers + (strip + s) / strips]);
        }
    }
};

/// SwiGluPairs for these products. Grid: pairs, groups of 128 columns; one warp.
struct SwiGluPairsMx {
    static constexpr const char* kName = "SwiGluPairsMx";
    const float* gate_up;           // [pairs / pairs_per_row, 2 * width]
    const float* weights;           // [pairs]
    const int32_t* ids;             // [pairs]
    const int32_t* slot_of;         // [experts]
    const int32_t *listed, *first;  // pairs, from number *first on; null: all
    uint8_t* codes;                 // [pairs, width]
    uint8_t* scales;                // [pairs, width / 128]
    int64_t width;
    int32_t pairs_per_row;
    float limit;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const int64_t pair = listed == nullptr ? t.block() : listed[*first + t.block()];
        if (listed == nullptr && slot_of[ids[pair]] < 0) return;
        const float *gate = gate_up + pair / pairs_per_row * 2 * width, *up = gate + width, weight = weights[pair];
        const int64_t begin = t.block_y() * quant::kStripBlock;
        write_codes(
            t, [&](int i) { return weight * swiglu(gate[begin + i], up[begin + i], limit); },
            codes + pair * width + begin, scales + (pair * width + begin) / quant::kStripBlock);
    }
};

}  // namespace thermocline::cuda
