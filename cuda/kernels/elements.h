// Numbers of a weight matrix as kernels take them out: of layout kRows one by one, of layout kStrips a tile of 16 rows
// and 32 columns at a time, as operands of the matrix instruction (hybrid-engine.md 3.2).
//
// A tile is what m16n8k16 wants twice: of the K slots of a lane with c = lane % 4, slots 2c, 2c+1, 2c+8, 2c+9 of product
// i are the columns at(c, i) .. + 3 of the tile. The order of columns is free as long as both operands agree; so one
// word of one row holds what a lane needs, and a vector is read as it lies.
#pragma once

#include "cuda/launch.h"
#include "src/quant/matrix.h"
#include "src/quant/scalar.h"
#include "src/quant/strips.h"

#include <bit>
#include <cmath>

namespace thermocline::cuda {

using quant::Format;

GPU_CODE inline uint32_t load_word(const std::byte* at) { return *reinterpret_cast<const uint32_t*>(at); }

GPU_CODE inline float load_scale(Format format, const std::byte* scales, int64_t index) {
    switch (format) {
        case Format::kE8M0: return quant::e8m0_to_float(static_cast<uint8_t>(scales[index]));
        case Format::kE4M3: return quant::e4m3_to_float(static_cast<uint8_t>(scales[index]));
        case Format::kBF16: return quant::bf16_to_float(reinterpret_cast<const uint16_t*>(scales)[index]);
        case Format::kF16: return quant::f16_to_float(reinterpret_cast<const uint16_t*>(scales)[index]);
        default: return reinterpret_cast<const float*>(scales)[index];
    }
}

}  // namespace thermocline::cuda
