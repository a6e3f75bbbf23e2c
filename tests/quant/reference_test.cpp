// decode_row on hand-made matrices of the formats that keep scales beside the codes.
#include "src/quant/reference.h"

#include "src/quant/scalar.h"

#include <bit>
#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <random>
#include <vector>

namespace thermocline::quant {
namespace {

using Bytes = std::vector<uint8_t>;

const std::byte* raw(const Bytes& bytes) { return reinterpret_cast<const std::byte*>(bytes.data()); }

template <typename T>
void append(Bytes& bytes, T value) {
    const size_t at = bytes.size();
    bytes.resize(at + sizeof value);
    std::memcpy(&bytes[at], &value, sizeof value);
}

Matrix matrix(Format format, int64_t rows, int64_t cols, const Bytes& data) {
    Matrix m;
    m.format = format;
    m.rows = rows;
    m.cols = cols;
    m.data = raw(data);
    m.row_bytes = bytes_of(format, cols);
    return m;
}

void set_scales(Matrix& m, const Bytes& scales, Format format, int64_t scale_rows, int64_t scale_cols) {
    m.scales = raw(scales);
    m.scale_format = format;
    m.scale_rows = scale_rows;
    m.scale_cols = scale_cols;
    m.scale_stride = bytes_of(format, (m.cols + scale_cols - 1) / scale_cols);
}

/// Scale number i of a test matrix, exact in every scale format: powers of two around 1.
float scale_number(int64_t i) { return pow2(static_cast<int>(i % 11) - 5); }

Bytes scale_bytes(Format format, int64_t count) {
    Bytes bytes;
    for (int64_t i = 0; i < count; ++i) {
        const float scale = scale_number(i);
        switch (format) {
            case Format::kF32:
                append(bytes, scale);
                break;
            case Format::kBF16:
                append(bytes, float_to_bf16(scale));
                break;
            case Format::kF16:
                append(bytes, float_to_f16(scale));
                break;
            case Format::kE8M0:
                append(bytes, float_to_e8m0(scale));
                break;
            default:
                append(bytes, float_to_e4m3(scale));
                break;
        }
    }
    return bytes;
}

TEST(Reference, HandVectors) {
    // MXFP4 pair order: byte 0x2a with scale code 128: even column -2, odd column 2.
    const Bytes codes(16, 0x2a), scale128 = {128};
    Matrix mx = matrix(Format::kE2M1Pair, 1, 32, codes);
    set_scales(mx, scale128, Format::kE8M0, 1, 32);
    const std::vector<float> y = decode_matrix(mx);
    for (size_t k = 0; k < 32; ++k) EXPECT_EQ(y[k], k % 2 == 0 ? -2.0f : 2.0f);

    // NVFP4: code 7, scale 0x7e, global 1/2688 gives 1.
    const Bytes sevens(8, 0x77), scale7e = {0x7e};
    Matrix nv = matrix(Format::kE2M1Pair, 1, 16, sevens);
    set_scales(nv, scale7e, Format::kE4M3, 1, 16);
    nv.multiplier = 1.0f / 2688.0f;
    for (const float value : decode_matrix(nv)) EXPECT_NEAR(value, 1.0f, 1e-7);

    // FP8: 0xb8 with scale 0.5 is -0.5.
    const Bytes minus_one = {0xb8};
    Bytes half;
    append(half, 0.5f);
    Matrix fp8 = matrix(Format::kE4M3, 1, 1, minus_one);
    set_scales(fp8, half, Format::kF32, 128, 128);
    EXPECT_EQ(decode_matrix(fp8), std::vector<float>{-0.5f});

    // INT4: the word 0x76543210 is -8 .. -1.
    Bytes word;
    append(word, uint32_t{0x76543210});
    Matrix int4 = matrix(Format::kInt4Pair, 1, 8, word);
    EXPECT_EQ(decode_matrix(int4), (std::vector<float>{-8, -7, -6, -5, -4, -3, -2, -1}));
}

TEST(Reference, PlainFormats) {
    Bytes f32, f16, bf16;
    const std::vector<float> values = {1.5f, -0.25f, 3.0f, 0.0f, 1024.0f, -7.0f};
    for (const float value : values) {
        append(f32, value);
        append(f16, float_to_f16(value));
        append(bf16, float_to_bf16(value));
    }
    EXPECT_EQ(decode_matrix(matrix(Format::kF32, 2, 3, f32)), values);
    EXPECT_EQ(decode_matrix(matrix(Format::kF16, 3, 2, f16)), values);
    EXPECT_EQ(decode_matrix(matrix(Format::kBF16, 1, 6, bf16)), values);
    Matrix strided = matrix(Format::kF32, 2, 2, f32);  // rows of 3 numbers, of which 2 belong to the matrix
    strided.row_bytes = 12;
    EXPECT_EQ(decode_matrix(strided), (std::vector<float>{1.5f, -0.25f, 0.0f, 1024.0f}));
}

TEST(Reference, EveryFp8CodeTimesItsScale) {
    Bytes codes;
    for (int code = 0; code < 256; ++code) codes.push_back((code & 0x7f) == 0x7f ? 0 : static_cast<uint8_t>(code));
    const Matrix m = matrix(Format::kE4M3, 1, 256, codes);
    const std::vector<float> plain = decode_matrix(m);
    for (size_t i = 0; i < 256; ++i) EXPECT_EQ(plain[i], e4m3_to_float(codes[i]));
    Matrix scaled = m;
    Bytes scale;
    append(scale, 0.37f);
    set_scales(scaled, scale, Format::kF32, 1, 256);
    scaled.multiplier = 3.0f;
    const std::vector<float> y = decode_matrix(scaled);
    for (size_t i = 0; i < 256; ++i) EXPECT_EQ(y[i], static_cast<float>(double{plain[i]} * 0.37f * 3.0));
}

TEST(Reference, Fp8ScalesOfEveryGranularityAndFormat) {
    constexpr int64_t kRows = 150, kCols = 200;  // partial blocks at both edges
    std::mt19937 random(5);
    Bytes codes;
    for (int64_t i = 0; i < kRows * kCols; ++i) codes.push_back(static_cast<uint8_t>(random() % 0x7f));
    struct Granularity {
        int64_t rows, cols;
    };
    for (const auto [scale_rows, scale_cols] :
         {Granularity{128, 128}, {1, kCols}, {kRows, kCols}, {1, 32}, {1, 1}, {64, 32}}) {
        const int64_t columns = (kCols + scale_cols - 1) / scale_cols, lines = (kRows + scale_rows - 1) / scale_rows;
        for (const Format format : {Format::kF32, Format::kBF16, Format::kF16, Format::kE8M0, Format::kE4M3}) {
            const Bytes scales = scale_bytes(format, lines * columns);
            Matrix m = matrix(Format::kE4M3, kRows, kCols, codes);
            set_scales(m, scales, format, scale_rows, scale_cols);
            const std::vector<float> y = decode_matrix(m);
            for (int64_t n = 0; n < kRows; ++n) {
                for (int64_t k = 0; k < kCols; ++k) {
                    const float scale = scale_number(n / scale_rows * columns + k / scale_cols);
                    const size_t i = static_cast<size_t>(n * kCols + k);
                    ASSERT_EQ(y[i], e4m3_to_float(codes[i]) * scale) << n << " " << k;
                }
            }
        }
    }
}

TEST(Reference, NibblesInPairOrderWithScales) {
    Bytes codes;
    for (int i = 0; i < 3 * 32; ++i) codes.push_back(static_cast<uint8_t>(i * 37 + 11));
    for (const auto& [format, group] : {std::pair{Format::kE8M0, 32}, {Format::kE4M3, 16}, {Format::kF32, 64}}) {
        const Bytes scales = scale_bytes(format, 3 * 64 / group);
        Matrix m = matrix(Format::kE2M1Pair, 3, 64, codes);
        set_scales(m, scales, format, 1, group);
        m.multiplier = 0.25f;
        const std::vector<float> y = decode_matrix(m);
        for (int i = 0; i < 3 * 64; ++i) {
            const uint8_t byte = codes[static_cast<size_t>(i / 2)];
            const float code = kE2M1Values[i % 2 == 0 ? byte & 15 : byte >> 4];
            EXPECT_EQ(y[static_cast<size_t>(i)], code * scale_number(i / group) * 0.25f) << i;
        }
    }
}

TEST(Reference, Int4ZeroPointsArePackedAlongRows) {
    constexpr int64_t kRows = 10, kCols = 16, kGroup = 8, kGroups = 2;
    Bytes codes, scales = scale_bytes(Format::kBF16, kRows * kGroups), zeros(2 * kGroups * 4, 0);
    for (int64_t i = 0; i < kRows * kCols / 2; ++i) codes.push_back(static_cast<uint8_t>(i * 73 + 5));
    const auto zero = [](int64_t n, int64_t g) { return static_cast<int>((5 * n + 3 * g) % 16) - 8; };
    for (int64_t n = 0; n < kRows; ++n) {
        for (int64_t g = 0; g < kGroups; ++g) {
            const size_t word = static_cast<size_t>((n / 8 * kGroups + g) * 4);
            uint32_t value;
            std::memcpy(&value, &zeros[word], 4);
            value |= static_cast<uint32_t>(zero(n, g) + 8) << (4 * (n % 8));
            std::memcpy(&zeros[word], &value, 4);
        }
    }
    Matrix m = matrix(Format::kInt4Pair, kRows, kCols, codes);
    set_scales(m, scales, Format::kBF16, 1, kGroup);
    m.zero_points = raw(zeros);
    const std::vector<float> y = decode_matrix(m);
    for (int64_t n = 0; n < kRows; ++n) {
        for (int64_t k = 0; k < kCols; ++k) {
            const uint8_t byte = codes[static_cast<size_t>((n * kCols + k) / 2)];
            const int q = (k % 2 == 0 ? byte & 15 : byte >> 4) - 8;
            const float expected = static_cast<float>(q - zero(n, k / kGroup)) * scale_number(n * kGroups + k / kGroup);
            EXPECT_EQ(y[static_cast<size_t>(n * kCols + k)], expected) << n << " " << k;
        }
    }
}

TEST(Reference, PartsOfARowAreTheRow) {
    std::mt19937 random(6);
    for (int f = 0; f < static_cast<int>(Format::kCount); ++f) {
        const auto format = static_cast<Format>(f);
        const FormatTraits& t = traits(format);
        if (!t.weight) continue;
        const int64_t cols = 4 * t.block;
        Bytes data(static_cast<size_t>(2 * bytes_of(format, cols)));
        for (uint8_t& byte : data) byte = static_cast<uint8_t>(random() & 0x3b);  // no NaN in any field
        const Matrix m = matrix(format, 2, cols, data);
        const std::vector<float> all = decode_matrix(m);
        std::vector<float> part(static_cast<size_t>(2 * t.block));
        decode_row(m, 1, t.block, 2 * t.block, part.data());
        EXPECT_EQ(part, std::vector<float>(all.begin() + cols + t.block, all.begin() + cols + 3 * t.block)) << t.name;
    }
}

TEST(Reference, RefusesWrongRanges) {
    const Bytes data(18 * 2, 0);
    const Matrix m = matrix(Format::kQ4_0, 1, 64, data);
    float out[96];
    EXPECT_DEATH(decode_row(m, 1, 0, 32, out), "CHECK");
    EXPECT_DEATH(decode_row(m, 0, 16, 32, out), "CHECK");
    EXPECT_DEATH(decode_row(m, 0, 32, 64, out), "CHECK");
    EXPECT_DEATH(decode_row(matrix(Format::kI8, 1, 36, data), 0, 0, 1, out), "CHECK");
}

}  // namespace
}  // namespace thermocline::quant
