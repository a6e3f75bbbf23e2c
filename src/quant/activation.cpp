#include "src/quant/activation.h"

#include "src/base/check.h"
#include "src/quant/scalar.h"

#include <algorithm>
#include <cmath>

namespace thermocline::quant {
namespace {

/// Calls body(group, size) for consecutive groups of at most `group_size`.
template <typename Body>
void for_groups(float* x, int64_t n, int64_t group_size, Body body) {
    for (int64_t i = 0; i < n; i += group_size) body(x + i, std::min(group_size, n - i));
}

void round_e4m3_group(float* x, int64_t n) {
    const int exponent = fp8_scale_exponent(largest_magnitude(x, n));
    const float scale = pow2(exponent), inverse = pow2(-exponent);
    for (int64_t i = 0; i < n; ++i) x[i] = e4m3_to_float(float_to_e4m3(x[i] * inverse)) * scale;
}

void round_e2m1_group(float* x, int64_t n) {
    const int exponent = fp4_scale_exponent(largest_magnitude(x, n));
    const float scale = pow2(exponent), inverse = pow2(-exponent);
    for (int64_t i = 0; i < n; ++i) {
        if (!std::isnan(x[i])) x[i] = e2m1_to_float(float_to_e2m1(x[i] * inverse)) * scale;
    }
}

}  // namespace

float largest_magnitude(const float* x, int64_t n) {
    float largest = 0.0f;
    for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::fabs(x[i]));
    return largest;
}

void round_e4m3_blocks128(float* x, int64_t n) { for_groups(x, n, 128, round_e4m3_group); }

void round_e4m3_blocks64(float* x, int64_t n) { for_groups(x, n, 64, round_e4m3_group); }

void round_e2m1_blocks32(float* x, int64_t n) { for_groups(x, n, 32, round_e2m1_group); }

void hadamard(float* x, int64_t n) {
    CHECK(n > 0 && (n & (n - 1)) == 0);
    for (int64_t half = 1; half < n; half *= 2) {
        for (int64_t start = 0; start < n; start += 2 * half) {
            for (int64_t i = start; i < start + half; ++i) {
                const float a = x[i], b = x[i + half];
                x[i] = a + b;
                x[i + half] = a - b;
            }
        }
    }
    const float scale = 1.0f / std::sqrt(static_cast<float>(n));
    for (int64_t i = 0; i < n; ++i) x[i] *= scale;
}

}  // namespace thermocline::quant
