#include "src/base/check.h"
#include "src/quant/activation.h"
#include "src/quant/blocks.h"
#include "src/quant/reference.h"
#include "src/quant/scalar.h"

#include <algorithm>
#include <cmath>
#include <cstring>

// Plain round-to-nearest encoders: scales come from the extremes of a group and are rounded to their own format before
// the codes are chosen. No search for better scales: files made here serve tests and benchmarks.
namespace thermocline::quant {
namespace {

/// The element of largest magnitude, with its sign.
float extreme(const float* x, int n) {
    return *std::max_element(x, x + n, [](float a, float b) { return std::fabs(a) < std::fabs(b); });
}

/// round(x / step) inside [low, high]; 0 (clamped) when the step is 0.
int quantise(float x, float step, int low, int high) {
    const float q = step == 0.0f ? 0.0f : std::nearbyint(x / step);
    return static_cast<int>(std::clamp(q, static_cast<float>(low), static_cast<float>(high)));
}

U16 f16_of(float x) { return U16::of(float_to_f16(x)); }

/// Stores code i of 2 * m in half order; the bytes start as zero.
void put_half_nibble(uint8_t* bytes, int i, int m, int code) {
    bytes[i % m] = static_cast<uint8_t>(bytes[i % m] | (code & 15) << (i < m ? 0 : 4));
}

// ---- self-contained blocks ------------------------------------------------------------------------------------

void encode(const float* x, BlockQ4_0& b) {
    b.d = f16_of(extreme(x, 32) / -8.0f);
    for (int i = 0; i < 32; ++i) put_half_nibble(b.qs, i, 16, quantise(x[i], f16_to_float(b.d), -8, 7) + 8);
}

void encode(const float* x, BlockQ4_1& b) {
    const auto [low, high] = std::minmax_element(x, x + 32);
    b.d = f16_of((*high - *low) / 15.0f);
    b.m = f16_of(*low);
    for (int i = 0; i < 32; ++i) {
        put_half_nibble(b.qs, i, 16, quantise(x[i] - f16_to_float(b.m), f16_to_float(b.d), 0, 15));
    }
}

void encode(const float* x, BlockQ5_0& b) {
    b.d = f16_of(extreme(x, 32) / -16.0f);
    uint32_t high_bits = 0;
    for (int i = 0; i < 32; ++i) {
        const int code = quantise(x[i], f16_to_float(b.d), -16, 15) + 16;
        put_half_nibble(b.qs, i, 16, code);
        high_bits |= static_cast<uint32_t>(code >> 4) << i;
    }
    b.qh = U32::of(high_bits);
}

void encode(const float* x, BlockQ5_1& b) {
    const auto [low, high] = std::minmax_element(x, x + 32);
    b.d = f16_of((*high - *low) / 31.0f);
    b.m = f16_of(*low);
    uint32_t high_bits = 0;
    for (int i = 0; i < 32; ++i) {
        const int code = quantise(x[i] - f16_to_float(b.m), f16_to_float(b.d), 0, 31);
        put_half_nibble(b.qs, i, 16, code);
        high_bits |= static_cast<uint32_t>(code >> 4) << i;
    }
    b.qh = U32::of(high_bits);
}

void encode(const float* x, BlockQ8_0& b) {
    b.d = f16_of(largest_magnitude(x, 32) / 127.0f);
    for (int i = 0; i < 32; ++i) b.qs[i] = static_cast<int8_t>(quantise(x[i], f16_to_float(b.d), -127, 127));
}

void encode(const float* x, BlockMxfp4& b) {
    const int exponent = fp4_scale_exponent(largest_magnitude(x, 32));
    b.e = exponent_to_e8m0(exponent);
    for (int i = 0; i < 32; ++i) put_half_nibble(b.qs, i, 16, float_to_e2m1(x[i] * pow2(-exponent)));
}

void encode(const float* x, BlockE4M3& b) {
    const int exponent = fp8_scale_exponent(largest_magnitude(x, 128));
    b.e = exponent_to_e8m0(exponent);
    for (int i = 0; i < 128; ++i) b.qs[i] = float_to_e4m3(x[i] * pow2(-exponent));
}

/// Stores the 6-bit scale and minimum of group t; the bytes start as zero. Inverse of scale_min_k4().
void put_scale_min_k4(uint8_t* scales, int t, int scale, int min) {
    const auto add = [scales](int at, int bits) { scales[at] = static_cast<uint8_t>(scales[at] | bits); };
    if (t < 4) {
        add(t, scale);
        add(t + 4, min);
    } else {
        add(t + 4, (scale & 15) | (min & 15) << 4);
        add(t - 4, (scale >> 4) << 6);
        add(t, (min >> 4) << 6);
    }
}

void encode(const float* x, BlockQ4_K& b) {
    float steps[8], mins[8];  // x ~ step * q - min, min >= 0
    for (int t = 0; t < 8; ++t) {
        const auto [low, high] = std::minmax_element(x + 32 * t, x + 32 * t + 32);
        mins[t] = std::max(0.0f, -*low);
        steps[t] = std::max(0.0f, *high + mins[t]) / 15.0f;
    }
    b.d = f16_of(*std::max_element(steps, steps + 8) / 63.0f);
    b.dmin = f16_of(*std::max_element(mins, mins + 8) / 63.0f);
    const float d = f16_to_float(b.d), dmin = f16_to_float(b.dmin);
    for (int t = 0; t < 8; ++t) {
        const int scale = quantise(steps[t], d, 0, 63), min = quantise(mins[t], dmin, 0, 63);
        put_scale_min_k4(b.scales, t, scale, min);
        for (int l = 0; l < 32; ++l) {
            const int q =
                quantise(x[32 * t + l] + dmin * static_cast<float>(min), d * static_cast<float>(scale), 0, 15);
            put_half_nibble(b.qs + 32 * (t / 2), 32 * (t % 2) + l, 32, q);
        }
    }
}

void encode(const float* x, BlockQ6_K& b) {
    float steps[16];
    for (int t = 0; t < 16; ++t) steps[t] = extreme(x + 16 * t, 16) / -32.0f;
    b.d = f16_of(largest_magnitude(steps, 16) / 127.0f);
    for (int t = 0; t < 16; ++t) {
        b.scales[t] = static_cast<int8_t>(quantise(steps[t], f16_to_float(b.d), -127, 127));
    }
    for (int i = 0; i < 256; ++i) {
        const int group = i / 16;
        const int q = quantise(x[i], f16_to_float(b.d) * static_cast<float>(b.scales[group]), -32, 31) + 32;
        const int nn = i / 128, k = (i % 128) / 32, l = i % 32;
        uint8_t& low = b.ql[64 * nn + 32 * (k & 1) + l];
        uint8_t& high = b.qh[32 * nn + l];
        low = static_cast<uint8_t>(low | (q & 15) << (k < 2 ? 0 : 4));
        high = static_cast<uint8_t>(high | (q >> 4) << (2 * k));
    }
}

template <typename Block>
void encode_blocks(Format format, const float* x, int64_t n, std::byte* out) {
    const int64_t size = traits(format).block;
    for (int64_t i = 0; i < n / size; ++i) {
        Block block{};
        encode(x + i * size, block);
        std::memcpy(out + i * static_cast<int64_t>(sizeof block), &block, sizeof block);
    }
}

template <typename Code, Code (*kEncode)(float)>
void encode_each(const float* x, int64_t n, std::byte* out) {
    for (int64_t i = 0; i < n; ++i) {
        const Code code = kEncode(x[i]);
        std::memcpy(out + i * static_cast<int64_t>(sizeof code), &code, sizeof code);
    }
}

}  // namespace

void encode_row(Format format, const float* x, int64_t n, std::byte* out) {
    CHECK(n >= 0 && n % traits(format).block == 0);
    switch (format) {
        case Format::kF32:
            std::memcpy(out, x, static_cast<size_t>(n) * sizeof *x);
            return;
        case Format::kF16:
            return encode_each<uint16_t, float_to_f16>(x, n, out);
        case Format::kBF16:
            return encode_each<uint16_t, float_to_bf16>(x, n, out);
        case Format::kQ4_0:
            return encode_blocks<BlockQ4_0>(format, x, n, out);
        case Format::kQ4_1:
            return encode_blocks<BlockQ4_1>(format, x, n, out);
        case Format::kQ5_0:
            return encode_blocks<BlockQ5_0>(format, x, n, out);
        case Format::kQ5_1:
            return encode_blocks<BlockQ5_1>(format, x, n, out);
        case Format::kQ8_0:
            return encode_blocks<BlockQ8_0>(format, x, n, out);
        case Format::kQ4_K:
            return encode_blocks<BlockQ4_K>(format, x, n, out);
        case Format::kQ6_K:
            return encode_blocks<BlockQ6_K>(format, x, n, out);
        case Format::kMxfp4Block:
            return encode_blocks<BlockMxfp4>(format, x, n, out);
        case Format::kE4M3Block128:
            return encode_blocks<BlockE4M3>(format, x, n, out);
        default:
            CHECK(!"no encoder for this format");
    }
}

// ---- scales beside the codes ----------------------------------------------------------------------------------

namespace {

/// One group of a matrix that shares a scale: rows [n0, n1), columns [k0, k1).
struct Tile {
    int64_t n0, n1, k0, k1;
};

/// The writer of one matrix; lives for one call of encode_matrix().
struct TileWriter {
    const Recipe& recipe;
    const float* w;  // [rows, cols]
    EncodedMatrix& out;

    /// Rounds the wanted scale to the format of the scales, stores it, and returns what was stored.
    float put_scale(const Tile& tile, float wanted) {
        const Matrix& m = out.shape;
        std::byte* at = out.scales.data() + tile.n0 / m.scale_rows * m.scale_stride +
                        bytes_of(m.scale_format, tile.k0 / m.scale_cols);
        switch (m.scale_format) {
            case Format::kE8M0: {
                const uint8_t code = float_to_e8m0(wanted);
                std::memcpy(at, &code, sizeof code);
                return e8m0_to_float(code);
            }
            case Format::kE4M3: {
                const uint8_t code = float_to_e4m3(wanted);
                std::memcpy(at, &code, sizeof code);
                return e4m3_to_float(code);
            }
            case Format::kBF16:
                encode_row(Format::kBF16, &wanted, 1, at);
                return round_bf16(wanted);
            case Format::kF16:
                encode_row(Format::kF16, &wanted, 1, at);
                return f16_to_float(float_to_f16(wanted));
            default:
                CHECK(m.scale_format == Format::kF32);
                encode_row(Format::kF32, &wanted, 1, at);
                return wanted;
        }
    }

    void put_nibble(int64_t n, int64_t k, int code) {
        std::byte& byte = out.codes[static_cast<size_t>(n * out.shape.row_bytes + k / 2)];
        byte |= static_cast<std::byte>((code & 15) << (k % 2 == 0 ? 0 : 4));
    }

    void put_zero_point(const Tile& tile, int zero) {
        const int64_t groups = (out.shape.cols + out.shape.scale_cols - 1) / out.shape.scale_cols;
        const int64_t word = tile.n0 / 8 * groups + tile.k0 / out.shape.scale_cols;
        std::byte& byte = out.zero_points[static_cast<size_t>(word * 4 + tile.n0 % 8 / 2)];
        byte |= static_cast<std::byte>((zero + 8) << (tile.n0 % 2 == 0 ? 0 : 4));
    }

    /// A scale that maps `largest` to `top` (the largest code): a power of two by the activation rules for kE8M0; a
    /// group of zeros gets 1, since loaders refuse scales that are not positive (kE4M3 scales may be 0).
    float wanted_scale(float largest) const {
        if (recipe.format == Format::kE4M3) {
            if (recipe.scale_format == Format::kE8M0) return pow2(fp8_scale_exponent(largest));
            return largest == 0.0f ? 1.0f : largest / kE4M3Max;
        }
        if (recipe.scale_format == Format::kE8M0) return pow2(fp4_scale_exponent(largest));
        if (recipe.scale_format == Format::kE4M3) return largest / out.shape.multiplier / kE2M1Max;
        return largest == 0.0f ? 1.0f : largest / kE2M1Max;
    }

    void encode_float_tile(const Tile& tile) {
        float largest = 0.0f;
        for (int64_t n = tile.n0; n < tile.n1; ++n) {
            largest = std::max(largest, largest_magnitude(w + n * out.shape.cols + tile.k0, tile.k1 - tile.k0));
        }
        const float scale = put_scale(tile, wanted_scale(largest)) * out.shape.multiplier;
        for (int64_t n = tile.n0; n < tile.n1; ++n) {
            for (int64_t k = tile.k0; k < tile.k1; ++k) {
                const float x = scale == 0.0f ? 0.0f : w[n * out.shape.cols + k] / scale;
                if (recipe.format == Format::kE4M3) {
                    out.codes[static_cast<size_t>(n * out.shape.row_bytes + k)] = std::byte{float_to_e4m3(x)};
                } else {
                    put_nibble(n, k, float_to_e2m1(x));
                }
            }
        }
    }

    void encode_int_tile(const Tile& tile) {
        const float* x = w + tile.n0 * out.shape.cols;
        float low = 0.0f, high = 0.0f;
        for (int64_t k = tile.k0; k < tile.k1; ++k) {
            low = std::min(low, x[k]);
            high = std::max(high, x[k]);
        }
        float wanted = recipe.zero_points ? (high - low) / 15.0f : std::max(high / 7.0f, -low / 8.0f);
        if (wanted == 0.0f) wanted = 1.0f;
        const float scale = put_scale(tile, wanted);
        int zero = 0;
        if (recipe.zero_points) {
            zero = std::clamp(-8 - quantise(low, scale, -15, 0), -8, 7);
            put_zero_point(tile, zero);
        }
        for (int64_t k = tile.k0; k < tile.k1; ++k)
            put_nibble(tile.n0, k, quantise(x[k], scale, -8 - zero, 7 - zero) + zero + 8);
    }
};

void encode_tiles(const Recipe& recipe, const float* w, EncodedMatrix& out) {
    Matrix& m = out.shape;
    m.scale_format = recipe.scale_format;
    m.scale_rows = std::min(recipe.scale_rows, m.rows);
    m.scale_cols = std::min(recipe.scale_cols, m.cols);
    const int64_t tile_rows = (m.rows + m.scale_rows - 1) / m.scale_rows;
    const int64_t tile_cols = (m.cols + m.scale_cols - 1) / m.scale_cols;
    m.scale_stride = bytes_of(m.scale_format, tile_cols);
    out.scales.resize(static_cast<size_t>(tile_rows * m.scale_stride));
    if (recipe.format == Format::kInt4Pair) CHECK(m.scale_rows == 1 && m.cols % 8 == 0);
    if (recipe.zero_points) {
        CHECK(recipe.format == Format::kInt4Pair);
        out.zero_points.resize(static_cast<size_t>((m.rows + 7) / 8 * tile_cols * 4));
    }
    if (recipe.format == Format::kE2M1Pair && m.scale_format == Format::kE4M3) {
        const float largest = largest_magnitude(w, m.rows * m.cols);
        m.multiplier = largest == 0.0f ? 1.0f : largest / (kE2M1Max * kE4M3Max);
    }
    TileWriter writer{recipe, w, out};
    for (int64_t n = 0; n < m.rows; n += m.scale_rows) {
        for (int64_t k = 0; k < m.cols; k += m.scale_cols) {
            const Tile tile = {n, std::min(n + m.scale_rows, m.rows), k, std::min(k + m.scale_cols, m.cols)};
            recipe.format == Format::kInt4Pair ? writer.encode_int_tile(tile) : writer.encode_float_tile(tile);
        }
    }
}

}  // namespace

EncodedMatrix encode_matrix(const Recipe& recipe, const float* w, int64_t rows, int64_t cols) {
    CHECK(rows > 0 && cols > 0);
    EncodedMatrix out;
    out.shape.format = recipe.format;
    out.shape.rows = rows;
    out.shape.cols = cols;
    out.shape.row_bytes = bytes_of(recipe.format, cols);
    out.codes.resize(static_cast<size_t>(rows * out.shape.row_bytes));
    const bool scaled =
        recipe.format == Format::kE4M3 || recipe.format == Format::kE2M1Pair || recipe.format == Format::kInt4Pair;
    if (scaled) {
        encode_tiles(recipe, w, out);
    } else {
        for (int64_t n = 0; n < rows; ++n) {
            encode_row(recipe.format, w + n * cols, cols, out.codes.data() + n * out.shape.row_bytes);
        }
    }
    return out;
}

Matrix EncodedMatrix::view() const {
    Matrix m = shape;
    m.data = codes.data();
    m.scales = scales.empty() ? nullptr : scales.data();
    m.zero_points = zero_points.empty() ? nullptr : zero_points.data();
    return m;
}

}  // namespace thermocline::quant
