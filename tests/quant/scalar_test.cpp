#include "src/quant/scalar.h"

#include <cmath>
#include <functional>
#include <gtest/gtest.h>
#include <limits>
#include <random>
#include <vector>

namespace thermocline::quant {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// Value of a magnitude code by the textbook formula, in double.
double textbook(uint32_t code, int mantissa_bits, int bias) {
    const int exponent = static_cast<int>(code >> mantissa_bits);
    const double fraction = static_cast<double>(code & ((1u << mantissa_bits) - 1)) / (1 << mantissa_bits);
    return exponent == 0 ? std::ldexp(fraction, 1 - bias) : std::ldexp(1 + fraction, exponent - bias);
}

/// Everything an encoder must do between neighbouring codes 0 .. last: keep values, round to the nearer one, and to the
/// even code in the middle; both signs.
void expect_rounds_to_nearest_even(uint32_t last, uint32_t sign_bit, const std::function<float(uint32_t)>& decode,
                                   const std::function<uint32_t(float)>& encode) {
    for (uint32_t code = 0; code <= last; ++code) {
        ASSERT_EQ(encode(decode(code)), code);
        ASSERT_EQ(encode(-decode(code)), code | sign_bit);
        if (code == last) break;
        const float a = decode(code), b = decode(code + 1);
        const float middle = static_cast<float>((static_cast<double>(a) + b) / 2);
        ASSERT_LT(a, middle);
        ASSERT_LT(middle, b);
        ASSERT_EQ(encode(middle), code % 2 == 0 ? code : code + 1);
        ASSERT_EQ(encode(std::nextafter(middle, a)), code);
        ASSERT_EQ(encode(std::nextafter(middle, b)), code + 1);
        ASSERT_EQ(encode(-std::nextafter(middle, b)), (code + 1) | sign_bit);
    }
}

TEST(Scalar, E4M3DecodesEveryCode) {
    for (uint32_t code = 0; code < 256; ++code) {
        const float value = e4m3_to_float(static_cast<uint8_t>(code));
        if ((code & 0x7f) == 0x7f) {
            EXPECT_TRUE(std::isnan(value));
        } else {
            EXPECT_EQ(value, (code & 0x80 ? -1 : 1) * textbook(code & 0x7f, 3, 7)) << code;
            EXPECT_EQ(std::signbit(value), code >= 0x80) << code;
        }
    }
    EXPECT_EQ(e4m3_to_float(0x01), 0.001953125f);
    EXPECT_EQ(e4m3_to_float(0x08), 0.015625f);
    EXPECT_EQ(e4m3_to_float(0x38), 1.0f);
    EXPECT_EQ(e4m3_to_float(0x44), 3.0f);
    EXPECT_EQ(e4m3_to_float(0x77), 240.0f);
    EXPECT_EQ(e4m3_to_float(0x7e), 448.0f);
}

TEST(Scalar, E4M3EncodesToNearestEvenAndSaturates) {
    expect_rounds_to_nearest_even(
        0x7e, 0x80, [](uint32_t code) { return e4m3_to_float(static_cast<uint8_t>(code)); },
        [](float x) -> uint32_t { return float_to_e4m3(x); });
    for (const float x : {448.0f, 449.0f, 464.0f, 465.0f, 1e30f, kInfinity}) {
        EXPECT_EQ(float_to_e4m3(x), 0x7e) << x;
        EXPECT_EQ(float_to_e4m3(-x), 0xfe) << x;
    }
    EXPECT_EQ(float_to_e4m3(kNan) & 0x7f, 0x7f);
    EXPECT_EQ(float_to_e4m3(1e-40f), 0x00);
    EXPECT_EQ(float_to_e4m3(-1e-40f), 0x80);
}

TEST(Scalar, E5M2DecodesAndEncodesEveryCode) {
    for (uint32_t code = 0; code < 0x7c; ++code) {
        EXPECT_EQ(e5m2_to_float(static_cast<uint8_t>(code)), textbook(code, 2, 15));
        EXPECT_EQ(e5m2_to_float(static_cast<uint8_t>(code | 0x80)), -textbook(code, 2, 15));
    }
    EXPECT_EQ(e5m2_to_float(0x7c), kInfinity);
    EXPECT_EQ(e5m2_to_float(0xfc), -kInfinity);
    for (const uint8_t code : {0x7d, 0x7e, 0x7f, 0xfd, 0xfe, 0xff}) EXPECT_TRUE(std::isnan(e5m2_to_float(code)));
    expect_rounds_to_nearest_even(
        0x7b, 0x80, [](uint32_t code) { return e5m2_to_float(static_cast<uint8_t>(code)); },
        [](float x) -> uint32_t { return float_to_e5m2(x); });
    EXPECT_EQ(float_to_e5m2(61439.0f), 0x7b);
    EXPECT_EQ(float_to_e5m2(61440.0f), 0x7c);  // the middle between 57344 and the next step goes to even: infinity
    EXPECT_EQ(float_to_e5m2(-kInfinity), 0xfc);
    EXPECT_TRUE(std::isnan(e5m2_to_float(float_to_e5m2(kNan))));
}

TEST(Scalar, E8M0IsPowersOfTwo) {
    for (int code = 0; code < 255; ++code) {
        const float value = e8m0_to_float(static_cast<uint8_t>(code));
        EXPECT_EQ(value, std::ldexp(1.0f, code - 127));
        EXPECT_EQ(float_to_e8m0(value), code);
        EXPECT_EQ(exponent_to_e8m0(code - 127), code);
        EXPECT_EQ(pow2(code - 127), value);
    }
    EXPECT_EQ(std::bit_cast<uint32_t>(e8m0_to_float(0)), 0x00400000u);
    EXPECT_TRUE(std::isnan(e8m0_to_float(255)));
    EXPECT_EQ(float_to_e8m0(kNan), 255);
    EXPECT_EQ(float_to_e8m0(kInfinity), 254);
    EXPECT_EQ(float_to_e8m0(1.75f), 127);
    EXPECT_EQ(exponent_to_e8m0(-500), 0);
    EXPECT_EQ(exponent_to_e8m0(500), 254);
    EXPECT_EQ(pow2(-149), std::numeric_limits<float>::denorm_min());
}

TEST(Scalar, E2M1FollowsTheRoundingTable) {
    const float magnitudes[8] = {0, 0.5, 1, 1.5, 2, 3, 4, 6};
    for (uint8_t code = 0; code < 16; ++code) {
        EXPECT_EQ(e2m1_to_float(code), code < 8 ? magnitudes[code] : -magnitudes[code - 8]);
        EXPECT_EQ(float_to_e2m1(e2m1_to_float(code)), code);
    }
    expect_rounds_to_nearest_even(
        7, 8, [](uint32_t code) { return e2m1_to_float(static_cast<uint8_t>(code)); },
        [](float x) -> uint32_t { return float_to_e2m1(x); });
    const auto up = [](float x) { return std::nextafter(x, 100.0f); };
    const auto down = [](float x) { return std::nextafter(x, 0.0f); };
    // deepseek-v4.md 2.11: |x| <= .25 -> 0; < .75 -> .5; <= 1.25 -> 1; < 1.75 -> 1.5; <= 2.5 -> 2; < 3.5 -> 3; <= 5 ->
    // 4
    EXPECT_EQ(e2m1_to_float(float_to_e2m1(0.25f)), 0.0f);
    EXPECT_EQ(e2m1_to_float(float_to_e2m1(down(0.75f))), 0.5f);
    EXPECT_EQ(e2m1_to_float(float_to_e2m1(1.25f)), 1.0f);
    EXPECT_EQ(e2m1_to_float(float_to_e2m1(down(1.75f))), 1.5f);
    EXPECT_EQ(e2m1_to_float(float_to_e2m1(2.5f)), 2.0f);
    EXPECT_EQ(e2m1_to_float(float_to_e2m1(down(3.5f))), 3.0f);
    EXPECT_EQ(e2m1_to_float(float_to_e2m1(5.0f)), 4.0f);
    EXPECT_EQ(e2m1_to_float(float_to_e2m1(up(5.0f))), 6.0f);
    for (const float x : {6.5f, 7.0f, 1e20f, kInfinity}) EXPECT_EQ(float_to_e2m1(-x), 15);
}

TEST(Scalar, F16DecodesAndEncodesEveryCode) {
    for (uint32_t code = 0; code < 65536; ++code) {
        const float value = f16_to_float(static_cast<uint16_t>(code));
        const uint32_t magnitude = code & 0x7fff;
        if (magnitude > 0x7c00) {
            ASSERT_TRUE(std::isnan(value));
            ASSERT_EQ(float_to_f16(value), code | 0x0200);  // quietened, payload kept
        } else {
            const double expected = magnitude == 0x7c00 ? kInfinity : textbook(magnitude, 10, 15);
            ASSERT_EQ(value, code & 0x8000 ? -expected : expected) << code;
            ASSERT_EQ(float_to_f16(value), code);
        }
    }
    expect_rounds_to_nearest_even(
        0x7bff, 0x8000, [](uint32_t code) { return f16_to_float(static_cast<uint16_t>(code)); },
        [](float x) -> uint32_t { return float_to_f16(x); });
    EXPECT_EQ(float_to_f16(65519.0f), 0x7bff);
    EXPECT_EQ(float_to_f16(65520.0f), 0x7c00);
    EXPECT_EQ(float_to_f16(-1e30f), 0xfc00);
}

TEST(Scalar, Bf16DecodesAndEncodesEveryCode) {
    for (uint32_t code = 0; code < 65536; ++code) {
        const float value = bf16_to_float(static_cast<uint16_t>(code));
        ASSERT_EQ(std::bit_cast<uint32_t>(value), code << 16);
        ASSERT_EQ(float_to_bf16(value), std::isnan(value) ? code | 0x0040 : code);
    }
    expect_rounds_to_nearest_even(
        0x7f7f, 0x8000, [](uint32_t code) { return bf16_to_float(static_cast<uint16_t>(code)); },
        [](float x) -> uint32_t { return float_to_bf16(x); });
    EXPECT_EQ(float_to_bf16(std::numeric_limits<float>::max()), 0x7f80);
    EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(std::bit_cast<float>(0x7f800001u)))));
}

/// ceil(log2(amax / top)) from its definition: the smallest k with top * 2^k >= amax.
int exact_exponent(double amax, double top) {
    int k = -200;
    while (std::ldexp(top, k) < amax) ++k;
    return k;
}

/// The form the reference kernels use: multiply by a float constant, then ceil(log2) from the bits.
int reference_exponent(float amax, float inverse_top) {
    const uint32_t bits = std::bit_cast<uint32_t>(amax * inverse_top);
    return static_cast<int>(bits >> 23) - 127 + ((bits & 0x7fffff) != 0 ? 1 : 0);
}

TEST(Scalar, IntegerScaleRulesEqualTheDefinitionForEveryBf16) {
    for (uint32_t code = 0; code < 0x7f80; ++code) {
        const float amax = bf16_to_float(static_cast<uint16_t>(code));
        const float fp8_amax = std::max(amax, 1e-4f), fp4_amax = std::max(amax, 6.0f * pow2(-126));
        ASSERT_EQ(fp8_scale_exponent(amax), exact_exponent(fp8_amax, 448)) << amax;
        ASSERT_EQ(fp4_scale_exponent(amax), exact_exponent(fp4_amax, 6)) << amax;
        ASSERT_EQ(fp8_scale_exponent(amax), reference_exponent(fp8_amax, 1.0f / 448.0f)) << amax;
        ASSERT_EQ(fp4_scale_exponent(amax), reference_exponent(fp4_amax, 1.0f / 6.0f)) << amax;
    }
    EXPECT_EQ(fp8_scale_exponent(0.0f), -22);
    EXPECT_EQ(fp8_scale_exponent(448.0f), 0);
    EXPECT_EQ(fp8_scale_exponent(std::nextafter(448.0f, 500.0f)), 1);
    EXPECT_EQ(fp8_scale_exponent(kInfinity), 120);
    EXPECT_EQ(fp4_scale_exponent(0.0f), -126);
    EXPECT_EQ(fp4_scale_exponent(6.0f), 0);
    EXPECT_EQ(fp4_scale_exponent(std::nextafter(6.0f, 7.0f)), 1);
    EXPECT_EQ(fp4_scale_exponent(kInfinity), 126);
}

TEST(Scalar, IntegerScaleRulesEqualTheDefinitionForRandomFloats) {
    std::mt19937 random(1);
    for (int i = 0; i < 20000; ++i) {
        const float amax = std::bit_cast<float>(static_cast<uint32_t>(random() % 0x7f800000u));
        ASSERT_EQ(fp8_scale_exponent(amax), exact_exponent(std::max(amax, 1e-4f), 448)) << amax;
        ASSERT_EQ(fp4_scale_exponent(amax), exact_exponent(std::max(amax, 6.0f * pow2(-126)), 6)) << amax;
    }
}

}  // namespace
}  // namespace thermocline::quant
