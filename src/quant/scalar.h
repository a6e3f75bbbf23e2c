// Single numbers in the small float formats <-> float, exact in both directions: decoding loses nothing, encoding
// rounds to nearest even. All functions are pure; they assume the default rounding mode and IEEE floats.
// Codes: weight-formats.md section 1. Scale rules: deepseek-v4.md sections 2.11 and 3.1.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstdint>
#include <cstring>

namespace thermocline::quant {

inline constexpr uint32_t kFloatInfinityBits = 0x7f800000;
inline constexpr float kE4M3Max = 448.0f;
inline constexpr float kE2M1Max = 6.0f;

/// 2^exponent for -149 <= exponent <= 127.
constexpr float pow2(int exponent) {
    if (exponent >= -126) return std::bit_cast<float>(static_cast<uint32_t>(exponent + 127) << 23);
    return std::bit_cast<float>(uint32_t{1} << (exponent + 149));
}

/// Magnitude bits of a small float (kMantissa explicit bits, exponent bias kBias, subnormals) -> float. The code must
/// be finite in its format.
template <int kMantissa, int kBias>
constexpr float expand_small_float(uint32_t code) {
    if ((code >> kMantissa) == 0) return static_cast<float>(code) * pow2(1 - kBias - kMantissa);
    return std::bit_cast<float>((code << (23 - kMantissa)) + (static_cast<uint32_t>(127 - kBias) << 23));
}

/// Bits of a finite float >= 0 -> nearest magnitude code, ties to even; codes continue past the largest finite one
/// (the caller saturates).
template <int kMantissa, int kBias>
constexpr uint32_t round_small_float(uint32_t bits) {
    constexpr int kDropped = 23 - kMantissa;
    if (bits < (static_cast<uint32_t>(128 - kBias) << 23)) {
        // Subnormal result: adding a number whose last place is the subnormal step lets the adder round.
        constexpr float kAnchor = pow2(24 - kBias - kMantissa);
        return std::bit_cast<uint32_t>(std::bit_cast<float>(bits) + kAnchor) - std::bit_cast<uint32_t>(kAnchor);
    }
    const uint32_t rounded = bits + (uint32_t{1} << (kDropped - 1)) - 1 + ((bits >> kDropped) & 1);
    return (rounded >> kDropped) - (static_cast<uint32_t>(127 - kBias) << kMantissa);
}

// ---- bf16, f16 ------------------------------------------------------------------------------------------------

constexpr float bf16_to_float(uint16_t code) { return std::bit_cast<float>(static_cast<uint32_t>(code) << 16); }

/// Overflow goes to infinity; a NaN stays a (quiet) NaN.
constexpr uint16_t float_to_bf16(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    if ((bits & 0x7fffffff) > kFloatInfinityBits) return static_cast<uint16_t>((bits >> 16) | 0x0040);
    return static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

constexpr float round_bf16(float x) { return bf16_to_float(float_to_bf16(x)); }

constexpr float f16_to_float(uint16_t code) {
    const uint32_t sign = static_cast<uint32_t>(code & 0x8000) << 16;
    const uint32_t magnitude = code & 0x7fff;
    if (magnitude >= 0x7c00) return std::bit_cast<float>(sign | kFloatInfinityBits | ((magnitude & 0x3ff) << 13));
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(expand_small_float<10, 15>(magnitude)));
}

/// Overflow goes to infinity; a NaN stays a (quiet) NaN.
constexpr uint16_t float_to_f16(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    const uint32_t sign = (bits >> 16) & 0x8000;
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > kFloatInfinityBits) return static_cast<uint16_t>(sign | 0x7e00 | ((magnitude >> 13) & 0x3ff));
    return static_cast<uint16_t>(sign | std::min<uint32_t>(round_small_float<10, 15>(magnitude), 0x7c00));
}

// ---- one-byte floats ------------------------------------------------------------------------------------------

/// OCP E4M3 "fn": no infinities, 0x7f and 0xff are NaN.
constexpr float e4m3_to_float(uint8_t code) {
    const uint32_t sign = static_cast<uint32_t>(code & 0x80) << 24;
    const uint32_t magnitude = code & 0x7f;
    if (magnitude == 0x7f) return std::bit_cast<float>(sign | 0x7fc00000);
    return std::bit_cast<float>(sign | std::bit_cast<uint32_t>(expand_small_float<3, 7>(magnitude)));
}

/// Saturates at +-448 (infinities too); NaN -> NaN.
constexpr uint8_t float_to_e4m3(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    const uint32_t sign = (bits >> 24) & 0x80;
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > kFloatInfinityBits) return static_cast<uint8_t>(sign | 0x7f);
    return static_cast<uint8_t>(sign | std::min<uint32_t>(round_small_float<3, 7>(magnitude), 0x7e));
}

/// The top byte of an f16: infinities and NaNs as in IEEE.
constexpr float e5m2_to_float(uint8_t code) { return f16_to_float(static_cast<uint16_t>(code << 8)); }

/// Overflow goes to infinity; a NaN stays a (quiet) NaN.
constexpr uint8_t float_to_e5m2(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    const uint32_t sign = (bits >> 24) & 0x80;
    const uint32_t magnitude = bits & 0x7fffffff;
    if (magnitude > kFloatInfinityBits) return static_cast<uint8_t>(sign | 0x7e);
    return static_cast<uint8_t>(sign | std::min<uint32_t>(round_small_float<2, 15>(magnitude), 0x7c));
}

/// 2^(code - 127); 255 is NaN; 0 is the subnormal 2^-127.
constexpr float e8m0_to_float(uint8_t code) {
    if (code == 255) return std::bit_cast<float>(uint32_t{0x7fc00000});
    return pow2(code - 127);
}

/// Code of 2^exponent; exponents outside [-127, 127] saturate.
constexpr uint8_t exponent_to_e8m0(int exponent) { return static_cast<uint8_t>(std::clamp(exponent, -127, 127) + 127); }

/// Code of a float that is a power of two (others: the power of two below; 0 and negative numbers: code 0).
constexpr uint8_t float_to_e8m0(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    if ((bits & 0x7fffffff) > kFloatInfinityBits) return 255;
    if (bits >> 31) return 0;
    return static_cast<uint8_t>(std::min<uint32_t>(bits >> 23, 254));
}

// ---- e2m1 -----------------------------------------------------------------------------------------------------

/// The sixteen values of a 4-bit code; bit 3 is the sign.
inline constexpr std::array<float, 16> kE2M1Values = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                                      -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

constexpr float e2m1_to_float(uint8_t code) { return kE2M1Values[code & 15]; }

/// Saturates at +-6. There is no NaN code: NaN also becomes 6 (callers that must see NaN look before).
constexpr uint8_t float_to_e2m1(float x) {
    const uint32_t bits = std::bit_cast<uint32_t>(x);
    const uint32_t sign = (bits >> 28) & 8;
    const uint32_t magnitude = std::min(bits & 0x7fffffff, uint32_t{kFloatInfinityBits});
    return static_cast<uint8_t>(sign | std::min<uint32_t>(round_small_float<1, 1>(magnitude), 7));
}

// ---- power-of-two scales --------------------------------------------------------------------------------------

/// Smallest k with amax <= top * 2^k where top = m_top * 2^e_top; amax > 0, normal or infinite.
template <uint32_t kTopBits>
constexpr int scale_exponent(float amax) {
    const uint32_t bits = std::bit_cast<uint32_t>(amax);
    const int exponent = static_cast<int>(bits >> 23) - static_cast<int>(kTopBits >> 23);
    return (bits & 0x7fffff) <= (kTopBits & 0x7fffff) ? exponent : exponent + 1;
}

/// FP8 groups (deepseek-v4.md 2.11): k = ceil(log2(max(amax, 1e-4) / 448)) in integer form.
constexpr int fp8_scale_exponent(float amax) {
    return scale_exponent<std::bit_cast<uint32_t>(kE4M3Max)>(std::max(amax, 1e-4f));
}

/// FP4 groups (deepseek-v4.md 3.1): k = ceil(log2(max(amax, 6 * 2^-126) / 6)) in integer form.
constexpr int fp4_scale_exponent(float amax) {
    return scale_exponent<std::bit_cast<uint32_t>(kE2M1Max)>(std::max(amax, kE2M1Max * pow2(-126)));
}

// ---- unaligned little-endian reads ------------------------------------------------------------------------------

template <typename T>
T load_unaligned(const void* from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

}  // namespace thermocline::quant
