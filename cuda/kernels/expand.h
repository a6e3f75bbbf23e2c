// Packed matrices as rows of bf16, for a library that multiplies those (cuda/library.h).
#pragma once

#include "cuda/kernels/codes.h"
#include "src/quant/strips.h"

namespace thermocline::cuda {

/// Strips of a matrix without its multiplier: exact where a code times its scale has no more bits than bf16
/// (cuda/library.cpp says of which formats that is true). Grid: strips, ceil(blocks of 128 columns / kWarps).
template <typename Codes>
struct ExpandRows {
    static constexpr const char* kName = "ExpandRows";
    static constexpr int kWarps = 8, kMostThreads = kWarps * kWarp;
    quant::Matrix w;  // kStrips, one slice
    uint16_t* out;    // [16 * strips, w.cols] bf16
    int64_t first_strip;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const int g = t.lane() / 4, c = t.lane() % 4;
        const int64_t strip = first_strip + t.block(), k = (t.block_y() * kWarps + t.warp()) * quant::kStripBlock;
        if (k >= w.cols) return;
        const std::byte* block = w.data + strip * w.strip_bytes + k / quant::kStripBlock * Codes::kBlockBytes;
        const auto words = Codes::load(t, block);
#pragma unroll
        for (int product = 0; product < kProducts; ++product)
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const int64_t row = g + 8 * half;
                const float scale = Codes::scale(w, block, strip * quant::kStripRows + row, k, product / Codes::kGroup);
                uint32_t low, high;
                Codes::expand(t, words, product, half, low, high);
                auto* to = out + (t.block() * quant::kStripRows + row) * w.cols + k + Codes::column(product, c);
                *reinterpret_cast<uint64_t*>(to) = scaled(low, scale) | uint64_t{scaled(high, scale)} << 32;
            }
    }

private:
    /// Two numbers of bf16.
    GPU_CODE static uint32_t scaled(uint32_t two, float scale) {
        const auto low = static_cast<uint16_t>(two), high = static_cast<uint16_t>(two >> 16);
        return bf16_pair(quant::bf16_to_float(low) * scale, quant::bf16_to_float(high) * scale);
    }
};

}  // namespace thermocline::cuda
