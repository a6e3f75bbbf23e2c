// What a matrix wants of the vectors that it multiplies: rounded to e4m3 or not, times a power of two of its layout.
#pragma once

#include "cpu/run.h"
#include "src/quant/strips.h"

namespace thermocline::cpu {

/// Whether inputs of `w` must be prepared at all; if not, they are taken as they are.
inline bool needs_preparing(const quant::Matrix& w, ops::InputRounding rounding) {
    return rounding == ops::InputRounding::kE4M3 || quant::strip_input_factor(w) != 1.0f;
}

/// Prepares `in` [rows, width] for `w` with all workers; `out` may be `in`.
inline void prepare_inputs(const Frame& f, const quant::Matrix& w, ops::InputRounding rounding, const float* in,
                           float* out, int64_t rows, int64_t width) {
    const float factor = quant::strip_input_factor(w);
    f.workers.split(rows, 4, [&](int64_t begin, int64_t end, int) {
        for (int64_t r = begin; r < end; ++r)
            rounding == ops::InputRounding::kE4M3
                ? f.kernels.round_e4m3(in + r * width, factor, out + r * width, width)
                : f.kernels.scale(factor, in + r * width, nullptr, out + r * width, width);
    });
}

}  // namespace thermocline::cpu
