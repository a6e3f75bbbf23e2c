#include "src/quant/activation.h"

#include "src/quant/scalar.h"

#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <random>
#include <vector>

namespace thermocline::quant {
namespace {

std::vector<float> normal(int64_t n, unsigned seed, float scale = 1.0f) {
    std::mt19937 random(seed);
    std::normal_distribution<float> distribution;
    std::vector<float> x(static_cast<size_t>(n));
    for (float& value : x) value = distribution(random) * scale;
    return x;
}

/// Section 2.11 read aloud: scale 2^ceil(log2(amax / top)), nearest code of a sorted table, ties to the even code.
std::vector<float> round_by_definition(std::vector<float> x, size_t group, double floor, double top,
                                       const std::vector<double>& magnitudes) {
    for (size_t start = 0; start < x.size(); start += group) {
        const size_t end = std::min(start + group, x.size());
        double amax = floor;
        for (size_t i = start; i < end; ++i) amax = std::max(amax, std::fabs(static_cast<double>(x[i])));
        int k = -200;
        while (std::ldexp(top, k) < amax) ++k;
        for (size_t i = start; i < end; ++i) {
            const double magnitude = std::fabs(std::ldexp(static_cast<double>(x[i]), -k));
            size_t best = 0;
            for (size_t code = 1; code < magnitudes.size(); ++code) {
                const double error = std::fabs(magnitudes[code] - magnitude);
                const double best_error = std::fabs(magnitudes[best] - magnitude);
                if (error < best_error || (error == best_error && code % 2 == 0)) best = code;
            }
            x[i] = static_cast<float>(std::copysign(std::ldexp(magnitudes[best], k), x[i]));
        }
    }
    return x;
}

std::vector<double> e4m3_magnitudes() {
    std::vector<double> all;
    for (int code = 0; code < 0x7f; ++code) all.push_back(e4m3_to_float(static_cast<uint8_t>(code)));
    return all;
}

TEST(Activation, Fp8RoundingFollowsTheDefinition) {
    for (const float scale : {1.0f, 1e-3f, 1e-6f, 3e4f}) {
        const std::vector<float> x = normal(128 * 3 + 40, 7, scale);
        std::vector<float> by128 = x, by64 = x;
        round_e4m3_blocks128(by128.data(), static_cast<int64_t>(x.size()));
        round_e4m3_blocks64(by64.data(), static_cast<int64_t>(x.size()));
        EXPECT_EQ(by128, round_by_definition(x, 128, 1e-4f, 448, e4m3_magnitudes()));
        EXPECT_EQ(by64, round_by_definition(x, 64, 1e-4f, 448, e4m3_magnitudes()));
    }
}

TEST(Activation, Fp4RoundingFollowsTheDefinition) {
    for (const float scale : {1.0f, 1e-30f, 1e30f}) {
        const std::vector<float> x = normal(32 * 4 + 6, 8, scale);
        std::vector<float> rounded = x;
        round_e2m1_blocks32(rounded.data(), static_cast<int64_t>(x.size()));
        EXPECT_EQ(rounded, round_by_definition(x, 32, 6 * std::ldexp(1.0, -126), 6, {0, 0.5, 1, 1.5, 2, 3, 4, 6}));
    }
}

TEST(Activation, RoundingTwiceChangesNothing) {
    std::vector<float> x = normal(512, 9);
    round_e4m3_blocks128(x.data(), 512);
    std::vector<float> again = x;
    round_e4m3_blocks128(again.data(), 512);
    EXPECT_EQ(x, again);
    for (const float value : x) EXPECT_EQ(value, round_bf16(value));  // exact in bf16: kernels may use it
}

TEST(Activation, NanStaysAndInfinitySaturates) {
    std::vector<float> x(128, 1.0f);
    x[3] = std::numeric_limits<float>::quiet_NaN();
    std::vector<float> fp4 = x;
    round_e4m3_blocks128(x.data(), 128);
    round_e2m1_blocks32(fp4.data(), 128);
    EXPECT_TRUE(std::isnan(x[3]));
    EXPECT_TRUE(std::isnan(fp4[3]));
    EXPECT_EQ(x[4], 1.0f);
    EXPECT_EQ(fp4[4], 1.0f);

    x.assign(128, 1.0f);
    x[0] = -std::numeric_limits<float>::infinity();
    round_e4m3_blocks128(x.data(), 128);
    EXPECT_EQ(x[0], -448.0f * pow2(120));
    EXPECT_EQ(x[1], 0.0f);

    round_e4m3_blocks128(x.data(), 0);  // nothing to do, nothing touched
}

TEST(Activation, HadamardIsTheSylvesterMatrix) {
    for (const int64_t n : {1, 2, 8, 128}) {
        const std::vector<float> x = normal(n, 10);
        std::vector<float> y = x;
        hadamard(y.data(), n);
        for (int64_t i = 0; i < n; ++i) {
            double sum = 0;
            for (int64_t j = 0; j < n; ++j) {
                sum +=
                    (__builtin_popcountll(static_cast<uint64_t>(i & j)) % 2 ? -1.0 : 1.0) * x[static_cast<size_t>(j)];
            }
            EXPECT_NEAR(y[static_cast<size_t>(i)], sum / std::sqrt(static_cast<double>(n)), 1e-5);
        }
        hadamard(y.data(), n);
        for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(y[i], x[i], 1e-5);
    }
    float x[3] = {};
    EXPECT_DEATH(hadamard(x, 3), "CHECK");
}

}  // namespace
}  // namespace thermocline::quant
