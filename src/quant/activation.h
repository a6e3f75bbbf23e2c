// Fake quantisation of activations, in place: numbers are rounded to what the trained format can hold and stay float.
// deepseek-v4.md sections 2.11 and 3.1: every group has a power-of-two scale taken from its largest magnitude. NaN
// stays NaN, infinities saturate with their group. Pure functions; nothing allocates.
#pragma once

#include <cstdint>

namespace thermocline::quant {

/// max |x[i]|, 0 for n = 0. NaN never wins a comparison, so it does not disturb the scale of its group.
float largest_magnitude(const float* x, int64_t n);

/// Inputs of FP8 and FP4 matrices: e4m3 in groups of 128 (the last may be shorter). x [n].
void round_e4m3_blocks128(float* x, int64_t n);

/// KV vectors without their RoPE channels: e4m3 in groups of 64 (the last may be shorter). x [n].
void round_e4m3_blocks64(float* x, int64_t n);

/// Index queries and keys after hadamard(): e2m1 in groups of 32 (the last may be shorter). x [n].
void round_e2m1_blocks32(float* x, int64_t n);

/// Walsh-Hadamard transform in Sylvester order, scaled by n^-0.5 (its own inverse). x [n], n a power of two (CHECK).
void hadamard(float* x, int64_t n);

}  // namespace thermocline::quant
