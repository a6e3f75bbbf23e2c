// Codebooks of the IQ formats (weight-formats.md appendix A). Decoded once, at first use, from compact text; read-only
// afterwards, safe from any thread.
#pragma once

#include <cstdint>

namespace thermocline::quant {

struct Codebooks {
    // 8 values a row, each row 8 bytes at an 8-byte boundary
    alignas(64) int8_t iq2_xxs[256][8];
    alignas(64) int8_t iq2_xs[512][8];
    alignas(64) int8_t iq2_s[1024][8];
    alignas(64) int8_t iq1[2048][8];
    // 4 values a row
    alignas(64) int8_t iq3_xxs[256][4];
    alignas(64) int8_t iq3_s[512][4];
};

/// The decoded tables. The first call decodes (well under a millisecond); thread-safe.
const Codebooks& codebooks();

/// Values of the 4-bit codes of IQ4_NL and IQ4_XS.
inline constexpr int8_t kIq4Values[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

/// The eight sign bits of a 7-bit sign code: bit 7 makes the number of minus signs even. Bit j set: element j negative.
constexpr uint8_t iq_signs(uint32_t code) {
    return static_cast<uint8_t>(code | (static_cast<uint32_t>(__builtin_parity(code)) << 7));
}

}  // namespace thermocline::quant
