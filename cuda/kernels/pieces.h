// Float32 numbers for the matrix instruction: two of bf16 each, the nearest and the nearest of what is left, which
// together are exact to 2^-17.
#pragma once

#include "cuda/launch.h"
#include "src/quant/scalar.h"

#include <cstdint>

namespace thermocline::cuda {

/// Two neighbouring numbers.
struct SplitPair {
    uint32_t high, low;

    GPU_CODE static SplitPair of(float a, float b) {
        const uint16_t ah = quant::float_to_bf16(a), bh = quant::float_to_bf16(b);
        const uint16_t al = quant::float_to_bf16(a - quant::bf16_to_float(ah));
        const uint16_t bl = quant::float_to_bf16(b - quant::bf16_to_float(bh));
        return {ah | static_cast<uint32_t>(bh) << 16, al | static_cast<uint32_t>(bl) << 16};
    }
};

}  // namespace thermocline::cuda
