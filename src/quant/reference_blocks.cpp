#include "src/quant/reference_blocks.h"

#include "src/base/check.h"
#include "src/quant/blocks.h"
#include "src/quant/codebooks.h"
#include "src/quant/scalar.h"

// Names follow weight-formats.md section 9: i = element in the block, g = group of 32, l = sub-group of 8, j = element
// of the sub-group. Codes are kept in int so that offsets can be subtracted.
namespace thermocline::quant {
namespace {

int lo(uint8_t byte) { return byte & 15; }
int hi(uint8_t byte) { return byte >> 4; }
double f16(uint16_t bits) { return f16_to_float(bits); }

/// Nibble i of `m` bytes in half order: elements 0..m-1 in the low halves, m..2m-1 in the high halves.
int half_nibble(const uint8_t* bytes, int i, int m) { return i < m ? lo(bytes[i]) : hi(bytes[i - m]); }

double signed_by(int bits, int j, double value) { return (bits >> j) & 1 ? -value : value; }

// ---- 32 elements ----------------------------------------------------------------------------------------------

void decode(const BlockQ4_0& b, double* y) {
    for (int i = 0; i < 32; ++i) y[i] = f16(b.d) * (half_nibble(b.qs, i, 16) - 8);
}

void decode(const BlockQ4_1& b, double* y) {
    for (int i = 0; i < 32; ++i) y[i] = f16(b.d) * half_nibble(b.qs, i, 16) + f16(b.m);
}

int five_bits(const uint8_t* qs, uint32_t qh, int i) {
    return half_nibble(qs, i, 16) | static_cast<int>((qh >> i) & 1) << 4;
}

void decode(const BlockQ5_0& b, double* y) {
    for (int i = 0; i < 32; ++i) y[i] = f16(b.d) * (five_bits(b.qs, b.qh, i) - 16);
}

void decode(const BlockQ5_1& b, double* y) {
    for (int i = 0; i < 32; ++i) y[i] = f16(b.d) * five_bits(b.qs, b.qh, i) + f16(b.m);
}

void decode(const BlockQ8_0& b, double* y) {
    for (int i = 0; i < 32; ++i) y[i] = f16(b.d) * b.qs[i];
}

void decode(const BlockIQ4_NL& b, double* y) {
    for (int i = 0; i < 32; ++i) y[i] = f16(b.d) * kIq4Values[half_nibble(b.qs, i, 16)];
}

void decode(const BlockMxfp4& b, double* y) {
    const double scale = e8m0_to_float(b.e);
    for (int i = 0; i < 32; ++i) y[i] = scale * kE2M1Values[half_nibble(b.qs, i, 16)];
}

// ---- other small blocks ---------------------------------------------------------------------------------------

void decode(const BlockNvfp4& b, double* y) {
    for (int i = 0; i < 64; ++i) {
        const int t = i / 16;
        const uint8_t code = b.scales[t] & 0x7f;                        // unsigned: the sign bit means nothing
        const double scale = code == 0x7f ? 0.0 : e4m3_to_float(code);  // as ggml reads it
        y[i] = scale * kE2M1Values[half_nibble(b.qs + 8 * t, i % 16, 8)];
    }
}

void decode(const BlockQ1_0& b, double* y) {
    for (int i = 0; i < 128; ++i) y[i] = (b.bits[i / 8] >> (i % 8)) & 1 ? f16(b.d) : -f16(b.d);
}

void decode(const BlockQ2_0& b, double* y) {
    for (int i = 0; i < 64; ++i) y[i] = f16(b.d) * (((b.qs[i / 4] >> (2 * (i % 4))) & 3) - 1);
}

void decode(const BlockE4M3& b, double* y) {
    const double scale = e8m0_to_float(b.e);
    for (int i = 0; i < 128; ++i) y[i] = scale * e4m3_to_float(b.qs[i]);
}

// ---- K-quants -------------------------------------------------------------------------------------------------

/// Two bits of element i in the layout that Q2_K, Q3_K and TQ2_0 share: 128 elements on 32 bytes.
int two_bits(const uint8_t* qs, int i) { return (qs[32 * (i / 128) + i % 32] >> (2 * ((i % 128) / 32))) & 3; }

void decode(const BlockQ2_K& b, double* y) {
    for (int i = 0; i < 256; ++i) {
        const uint8_t s = b.scales[i / 16];
        y[i] = f16(b.d) * lo(s) * two_bits(b.qs, i) - f16(b.dmin) * hi(s);
    }
}

void decode(const BlockQ3_K& b, double* y) {
    for (int i = 0; i < 256; ++i) {
        const int high = (b.high[i % 32] >> (i / 32)) & 1;
        const int q = two_bits(b.qs, i) + 4 * high - 4;
        const int t = i / 16;
        const int low = t < 8 ? lo(b.scales[t]) : hi(b.scales[t - 8]);
        const int scale = low | (((b.scales[8 + t % 4] >> (2 * (t / 4))) & 3) << 4);
        y[i] = f16(b.d) * (scale - 32) * q;
    }
}

/// Four bits of element i in the layout of Q4_K and Q5_K: half order inside each 64.
int k_nibble(const uint8_t* qs, int i) { return half_nibble(qs + 32 * (i / 64), i % 64, 32); }

void decode(const BlockQ4_K& b, double* y) {
    for (int i = 0; i < 256; ++i) {
        const ScaleMin s = scale_min_k4(b.scales, i / 32);
        y[i] = f16(b.d) * s.scale * k_nibble(b.qs, i) - f16(b.dmin) * s.min;
    }
}

void decode(const BlockQ5_K& b, double* y) {
    for (int i = 0; i < 256; ++i) {
        const ScaleMin s = scale_min_k4(b.scales, i / 32);
        const int q = k_nibble(b.qs, i) | ((b.high[i % 32] >> (i / 32)) & 1) << 4;
        y[i] = f16(b.d) * s.scale * q - f16(b.dmin) * s.min;
    }
}

void decode(const BlockQ6_K& b, double* y) {
    for (int i = 0; i < 256; ++i) {
        const int nn = i / 128, k = (i % 128) / 32, l = i % 32;
        const uint8_t byte = b.ql[64 * nn + 32 * (k & 1) + l];
        const int q = (k < 2 ? lo(byte) : hi(byte)) | ((b.qh[32 * nn + l] >> (2 * k)) & 3) << 4;
        const int group = i / 16;
        y[i] = f16(b.d) * b.scales[group] * (q - 32);
    }
}

// ---- ternary --------------------------------------------------------------------------------------------------

void decode(const BlockTQ1_0& b, double* y) {
    constexpr int kPow3[5] = {1, 3, 9, 27, 81};
    for (int i = 0; i < 256; ++i) {
        uint8_t byte;
        int digit;
        if (i < 160) {
            byte = b.qs[i % 32], digit = i / 32;
        } else if (i < 240) {
            byte = b.qs[32 + (i - 160) % 16], digit = (i - 160) / 16;
        } else {
            byte = b.qh[(i - 240) % 4], digit = (i - 240) / 4;
        }
        const int t = (((byte * kPow3[digit]) & 255) * 3) >> 8;
        y[i] = f16(b.d) * (t - 1);
    }
}

void decode(const BlockTQ2_0& b, double* y) {
    for (int i = 0; i < 256; ++i) y[i] = f16(b.d) * (two_bits(b.qs, i) - 1);
}

// ---- codebooks: 8 groups g of 4 sub-groups l of 8 elements j ----------------------------------------------------

void decode(const BlockIQ2_XXS& b, double* y) {
    for (int i = 0; i < 256; ++i) {
        const int g = i / 32, l = (i / 8) % 4, j = i % 8;
        const uint32_t w = b.groups[g].signs_scale;
        const double scale = f16(b.d) * (0.5 + (w >> 28)) * 0.25;
        y[i] = signed_by(iq_signs((w >> (7 * l)) & 127), j, scale * codebooks().iq2_xxs[b.groups[g].index[l]][j]);
    }
}

void decode(const BlockIQ2_XS& b, double* y) {
    for (int i = 0; i < 256; ++i) {
        const int g = i / 32, l = (i / 8) % 4, j = i % 8;
        const uint16_t q = b.qs[4 * g + l];
        const int s = l < 2 ? lo(b.scales[g]) : hi(b.scales[g]);
        const double scale = f16(b.d) * (0.5 + s) * 0.25;
        y[i] = signed_by(iq_signs(q >> 9), j, scale * codebooks().iq2_xs[q & 511][j]);
    }
}

void decode(const BlockIQ2_S& b, double* y) {
    for (int i = 0; i < 256; ++i) {
        const int g = i / 32, l = (i / 8) % 4, j = i % 8;
        const int index = b.qs[4 * g + l] | ((b.qh[g] >> (2 * l)) & 3) << 8;
        const int s = l < 2 ? lo(b.scales[g]) : hi(b.scales[g]);
        const double scale = f16(b.d) * (0.5 + s) * 0.25;
        y[i] = signed_by(b.signs[4 * g + l], j, scale * codebooks().iq2_s[index][j]);
    }
}

void decode(const BlockIQ3_XXS& b, double* y) {
    for (int i = 0; i < 256; ++i) {
        const int g = i / 32, l = (i / 8) % 4, j = i % 8;
        const uint32_t w = b.signs_scale[g];
        const double scale = f16(b.d) * (0.5 + (w >> 28)) * 0.5;
        const int index = b.qs[8 * g + 2 * l + j / 4];
        y[i] = signed_by(iq_signs((w >> (7 * l)) & 127), j, scale * codebooks().iq3_xxs[index][j % 4]);
    }
}

void decode(const BlockIQ3_S& b, double* y) {
    for (int i = 0; i < 256; ++i) {
        const int g = i / 32, l = (i / 8) % 4, j = i % 8;
        const int s = g % 2 == 0 ? lo(b.scales[g / 2]) : hi(b.scales[g / 2]);
        const int half = 2 * l + j / 4;
        const int index = b.qs[8 * g + half] | ((b.qh[g] >> half) & 1) << 8;
        y[i] = signed_by(b.signs[4 * g + l], j, f16(b.d) * (1 + 2 * s) * codebooks().iq3_s[index][j % 4]);
    }
}

void decode(const BlockIQ1_S& b, double* y) {
    for (int i = 0; i < 256; ++i) {
        const int g = i / 32, l = (i / 8) % 4, j = i % 8;
        const uint16_t h = b.qh[g];
        const double scale = f16(b.d) * (2 * ((h >> 12) & 7) + 1);
        const double offset = h & 0x8000 ? -0.125 : 0.125;
        const int index = b.qs[4 * g + l] | ((h >> (3 * l)) & 7) << 8;
        y[i] = scale * (codebooks().iq1[index][j] + offset);
    }
}

void decode(const BlockIQ1_M& b, double* y) {
    int d = 0;
    for (int i = 0; i < 4; ++i) d |= (b.scales[i] >> 12) << (4 * i);
    for (int i = 0; i < 256; ++i) {
        const int g = i / 32, l = (i / 8) % 4, j = i % 8;
        const int high = b.qh[2 * g + l / 2] >> (4 * (l % 2));
        const int index = b.qs[4 * g + l] | (high & 7) << 8;
        const double offset = high & 8 ? -0.125 : 0.125;
        const int s = (b.scales[g / 2] >> (6 * (g % 2) + 3 * (l / 2))) & 7;
        y[i] = f16(static_cast<uint16_t>(d)) * (2 * s + 1) * (codebooks().iq1[index][j] + offset);
    }
}

void decode(const BlockIQ4_XS& b, double* y) {
    for (int i = 0; i < 256; ++i) {
        const int g = i / 32;
        const int low = (b.scales_low[g / 2] >> (4 * (g % 2))) & 15;
        const int scale = low | ((b.scales_high >> (2 * g)) & 3) << 4;
        y[i] = f16(b.d) * (scale - 32) * kIq4Values[half_nibble(b.qs + 16 * g, i % 32, 16)];
    }
}

template <typename Block>
void decode_as(const std::byte* bytes, double* out) {
    decode(load_unaligned<Block>(bytes), out);
}

}  // namespace

void decode_block(Format format, const std::byte* block, double* out) {
    switch (format) {
        case Format::kQ4_0:
            return decode_as<BlockQ4_0>(block, out);
        case Format::kQ4_1:
            return decode_as<BlockQ4_1>(block, out);
        case Format::kQ5_0:
            return decode_as<BlockQ5_0>(block, out);
        case Format::kQ5_1:
            return decode_as<BlockQ5_1>(block, out);
        case Format::kQ8_0:
            return decode_as<BlockQ8_0>(block, out);
        case Format::kQ2_K:
            return decode_as<BlockQ2_K>(block, out);
        case Format::kQ3_K:
            return decode_as<BlockQ3_K>(block, out);
        case Format::kQ4_K:
            return decode_as<BlockQ4_K>(block, out);
        case Format::kQ5_K:
            return decode_as<BlockQ5_K>(block, out);
        case Format::kQ6_K:
            return decode_as<BlockQ6_K>(block, out);
        case Format::kIQ4_NL:
            return decode_as<BlockIQ4_NL>(block, out);
        case Format::kIQ4_XS:
            return decode_as<BlockIQ4_XS>(block, out);
        case Format::kIQ2_XXS:
            return decode_as<BlockIQ2_XXS>(block, out);
        case Format::kIQ2_XS:
            return decode_as<BlockIQ2_XS>(block, out);
        case Format::kIQ2_S:
            return decode_as<BlockIQ2_S>(block, out);
        case Format::kIQ3_XXS:
            return decode_as<BlockIQ3_XXS>(block, out);
        case Format::kIQ3_S:
            return decode_as<BlockIQ3_S>(block, out);
        case Format::kIQ1_S:
            return decode_as<BlockIQ1_S>(block, out);
        case Format::kIQ1_M:
            return decode_as<BlockIQ1_M>(block, out);
        case Format::kTQ1_0:
            return decode_as<BlockTQ1_0>(block, out);
        case Format::kTQ2_0:
            return decode_as<BlockTQ2_0>(block, out);
        case Format::kMxfp4Block:
            return decode_as<BlockMxfp4>(block, out);
        case Format::kNvfp4Block:
            return decode_as<BlockNvfp4>(block, out);
        case Format::kQ1_0:
            return decode_as<BlockQ1_0>(block, out);
        case Format::kQ2_0:
            return decode_as<BlockQ2_0>(block, out);
        case Format::kE4M3Block128:
            return decode_as<BlockE4M3>(block, out);
        default:
            CHECK(!"not a self-contained block format");
    }
}

}  // namespace thermocline::quant
