// Rotary embedding of one vector, shared by the Rope step and the compressor.
#pragma once

#include "src/ops/plan.h"

#include <cmath>
#include <cstdint>

namespace thermocline::cpu {

/// cos and sin of position * frequency[i] at out[2i], out[2i + 1]. The product is one float32 rounding, as in the
/// reference; the trigonometry is exact to float32 for any angle.
inline void rotation_of(const ops::RopeTable& rope, int64_t position, float* out) noexcept {
    for (size_t i = 0; i < rope.frequencies.size(); ++i) {
        const double angle = static_cast<float>(position) * rope.frequencies[i];
        out[2 * i] = static_cast<float>(std::cos(angle));
        out[2 * i + 1] = static_cast<float>(std::sin(angle));
    }
}

/// Rotates `dims` channels (interleaved pairs) in place; `sign` -1 is the inverse.
inline void rotate(float* x, const float* rotation, int64_t dims, float sign) noexcept {
    for (int64_t i = 0; i < dims; i += 2) {
        const float a = x[i], b = x[i + 1], c = rotation[i], s = sign * rotation[i + 1];
        x[i] = a * c - b * s;
        x[i + 1] = a * s + b * c;
    }
}

}  // namespace thermocline::cpu
