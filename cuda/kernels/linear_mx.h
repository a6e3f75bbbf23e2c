// MXFP4 matrices times vectors rounded to e4m3 by the matrix instruction that takes both as they are, with their
// scales: mma.m16n8k32 of kind mxf8f6f4, which cards of the SM120 family have. The kernels of linear.h do the same on
// all cards; variants.h says when these take their place.
#pragma once

#include "cuda/kernels/block.h"
#include "cuda/kernels/codes.h"
#include "src/quant/strips.h"

namespace thermocline::cuda {

/// number(0 .. 127) as codes of e4m3 with a power-of-two scale. One warp.
template <typename Thread, typename Number>
GPU_CODE void write_codes(Thread& t, const Number& number_of, uint8_t* codes, uint8_t* scale) {
    constexpr int kOfLane = quant::kStripBlock / kWarp;
    float number[kOfLane], most = 0.0f;
#pragma unroll
    for (int i = 0; i < kOfLane; ++i) {
        number[i] = number_of(i * kWarp + t.lane());
        most = fmaxf(most, fabsf(number[i]));
    }
    const int exponent = quant::fp8_scale_exponent(warp_max(t, most));
#pragma unroll
    for (int i = 0; i < kOfLane; ++i)
        codes[i * kWarp + t.lane()] = quant::float_to_e4m3(number[i] * quant::pow2(-exponent));
    if (t.lane() == 0) *scale = quant::exponent_to_e8m0(exponent);
}

/// acc += a block of a strip times the lane's vector, whose codes are eight(column of the block less 8 c) and what
/// follows, all with one scale.
template <typename Thread, typename Eight>
GPU_CODE void multiply_block_mx(Thread& t, const std::byte* block, uint32_t scale, const Eight& eight_at,
                                float (&acc)[4]) {
    const auto words = Mxfp4Codes::load(t, block);
#pragma unroll
    for (int j = 0; j < NibbleCodes::kWords; ++j) {
        // An e2m1 number stands in bits 2 to 5 of its byte. Columns 8 c .. + 3 are the low nibbles.
        constexpr uint32_t kMask = 0x3c3c3c3c;
        const uint32_t a[4] = {words.of[0][j] << 2 & kMask, words.of[1][j] << 2 & kMask, words.of[0][j] >> 2 & kMask,
                               words.of[1][j] >> 2 & kMask};
        const uint64_t eight = eight_at(32 * j);
        const uint32_t b[2] = {static_cast<uint32_t>(eight), static_cast<uint32_t>(eight >> 32)};
        const auto row_scale =
            load_at<uint8_t>(block + Mxfp4Codes::kCodeBytes + 16 * j + t.lane() / 4 + 8 * (t.lane() % 2));
        t.mma_mx(acc, a, b, row_scale, scale);
    }
}

/// Vectors as codes of e4m3, each group of 128 columns with a power-of-two scale. Grid: vectors, width / 128; one warp.
struct PrepareCodes {
    static constexpr const char* kName = "PrepareCodes";
    const float* in;  // [vectors, width]
    uint8_t* codes;   // [vectors, width]
    uint8_t* scales;  // [vectors, width / 128] e8m0
    int64_t width;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const int64_t first = t.block() * width + t.block_y() * quant::kStripBlock;
        write_codes(
            t, [&](int i) { return in[first + i]; }, codes + first, scales + first / quant::kStripBlock);
    }
};

/// As FewVectors of one tile: a block has a strip, its warps share the columns. Sums are added up by the instruction.
/// Grid: strips, ceil(vectors / 8); at most kMostWarps warps; shared_bytes().
struct FewVectorsMx {
    static constexpr const char* kName = "FewVectorsMx";
    static constexpr int kMostWarps = 8, kMostThreads = kMostWarps * kWarp, kVectors = 8;
    static constexpr int64_t shared_bytes(int warps) {
        return int64_t{warps} * quant::kStripRows * kVectors * static_cast<int64_t>(sizeof(float));
    }
    quant::Matrix w;        // kStrips of E2M1 pairs with e8m0 scales, one slice
    const uint8_t* codes;   // [vectors, groups, w.cols]
    const uint8_t* scales;  // [vectors, groups, w.cols / 128]
    float* out;             // [vectors, w.rows]
    int64_t vectors;
    int32_t groups;  // blocks of rows of w, each with vectors of its own

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const int g = t.lane() / 4, c = t.lane() % 4;
        const int64_t strip = t.block(), first = t.block_y() * kVectors, row = strip * quant::kStripRows;
        const int64_t blocks = w.cols / quant::kStripBlock;
        const bool mine = first + g < vectors;
        const int64_t vector = (mine ? first + g : first) * groups + row / (w.rows / groups);
        const uint8_t* own = codes + vector * w.cols + 8 * c;
        float acc[4] = {};
        for (int64_t i = t.warp(); i < blocks; i += t.warps()) {
            const std::byte* block = w.data + strip * w.strip_bytes + i * Mxfp4Codes::kBlockBytes;
            multiply_block_mx(
                t, block, scales[vector * blocks + i],
                [&](int column) { return *reinterpret_cast<const uint64_t*>(own + i * quant::kStripBlock + column); },
                acc);
        }
        auto sums = t.template shared<float>(0, int64_t{t.warps()} * quant::kStripRows * kVectors);
#pragma unroll
        for (int i = 0; i < 4; ++i) sums.set((t.warp() * kVectors + 2 * c + i % 2) * 16 + g + i / 2 * 8, acc[i]);
        t.sync();
        for (int i = t.id(); i < 16 * kVectors; i += t.threads()) {
            float sum = 0.0f;
            for (int warp = 0; warp < t.warps(); ++warp) sum += sums[warp * 16 * kVectors + i];
            if (first + i / 16 < vectors) out[(first + i / 16) * w.rows + row + i % 16] = sum * w.multiplier;
        }
    }
};

}  // namespace thermocline::cuda
