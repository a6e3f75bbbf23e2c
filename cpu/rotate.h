// Angles of the rotary embedding, for the rows of a batch and for the compressor.
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

}  // namespace thermocline::cpu
