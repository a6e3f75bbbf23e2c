#include "tests/cpu/random_matrix.h"

#include "src/quant/blocks.h"
#include "src/quant/scalar.h"

#include <cstddef>

namespace thermocline::cpu {
namespace {

using quant::Format;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

class Filler {
public:
    Filler(uint32_t seed, bool subnormal_scales) : random_(seed), subnormal_scales_(subnormal_scales) {}

    uint8_t byte() { return static_cast<uint8_t>(random_()); }

    float number() { return std::uniform_real_distribution<float>(-1.0f, 1.0f)(random_); }

    /// Mostly of the size of real scales, sometimes subnormal.
    uint16_t f16_scale() {
        if (random_() % 16 == 0) return static_cast<uint16_t>(random_() % 0x400);
        return quant::float_to_f16(0.05f * number());
    }

    void put_f16(std::byte* at, float x) { put_u16(at, quant::float_to_f16(x)); }

    void put_u16(std::byte* at, uint16_t x) {
        at[0] = std::byte(x & 255);
        at[1] = std::byte(x >> 8);
    }

    uint8_t e4m3() {
        const uint8_t code = byte();
        return (code & 0x7f) == 0x7f ? code ^ 1 : code;
    }

    uint8_t e8m0() {
        const bool subnormal = random_() % 32 == 0 && subnormal_scales_;
        return subnormal ? 0 : static_cast<uint8_t>(110 + random_() % 20);
    }

    void scale(Format format, std::byte* at) {
        const float x = 0.01f + 0.05f * number() * number();
        switch (format) {
            case Format::kF32:
                return static_cast<void>(std::memcpy(at, &x, sizeof x));
            case Format::kBF16:
                return put_u16(at, quant::float_to_bf16(x));
            case Format::kF16:
                return put_f16(at, x);
            case Format::kE8M0:
                *at = std::byte{e8m0()};
                return;
            default:
                *at = std::byte(e4m3() & 0x7f);
        }
    }

    /// Makes the scale fields of a block of random bytes ones that a file could hold.
    void repair_block(Format format, std::byte* block) {
        const auto d = [&](size_t offset) { put_u16(block + offset, f16_scale()); };
        switch (format) {
            case Format::kQ4_0:
            case Format::kQ5_0:
            case Format::kQ8_0:
            case Format::kIQ4_NL:
            case Format::kQ1_0:
            case Format::kQ2_0:
            case Format::kIQ4_XS:
            case Format::kIQ2_XXS:
            case Format::kIQ2_XS:
            case Format::kIQ2_S:
            case Format::kIQ3_XXS:
            case Format::kIQ3_S:
            case Format::kIQ1_S:
                return d(0);
            case Format::kQ4_1:
            case Format::kQ5_1:
            case Format::kQ4_K:
            case Format::kQ5_K:
                return d(0), d(2);
            case Format::kQ2_K:
                return d(offsetof(quant::BlockQ2_K, d)), d(offsetof(quant::BlockQ2_K, dmin));
            case Format::kQ3_K:
                return d(offsetof(quant::BlockQ3_K, d));
            case Format::kQ6_K:
                return d(offsetof(quant::BlockQ6_K, d));
            case Format::kTQ1_0:
                return d(offsetof(quant::BlockTQ1_0, d));
            case Format::kTQ2_0:
                return d(offsetof(quant::BlockTQ2_0, d));
            case Format::kIQ1_M: {
                const uint16_t bits = f16_scale();
                for (int i = 0; i < 4; ++i) {
                    std::byte& top = block[offsetof(quant::BlockIQ1_M, scales) + 2 * i + 1];
                    top = (top & std::byte{15}) | std::byte(((bits >> (4 * i)) & 15) << 4);
                }
                return;
            }
            case Format::kMxfp4Block:
                block[0] = std::byte{e8m0()};
                return;
            case Format::kE4M3Block128:
                block[0] = std::byte{e8m0()};
                for (int i = 1; i < 129; ++i) block[i] = std::byte{e4m3()};
                return;
            case Format::kF32: {
                const float x = number();
                return static_cast<void>(std::memcpy(block, &x, sizeof x));
            }
            case Format::kF16:
                return put_f16(block, number());
            case Format::kBF16:
                return put_u16(block, quant::float_to_bf16(number()));
            case Format::kE4M3:
                *block = std::byte{e4m3()};
                return;
            default:
                return;
        }
    }

private:
    std::mt19937 random_;
    bool subnormal_scales_;
};

}  // namespace

std::string to_string(const MatrixShape& s) {
    std::string text(quant::traits(s.format).name);
    text += " [" + std::to_string(s.rows) + ", " + std::to_string(s.cols) + "]";
    if (s.scale_cols > 0) {
        text += " scales " + std::string(quant::traits(s.scale_format).name) + " per " + std::to_string(s.scale_rows) +
                " x " + std::to_string(s.scale_cols);
    }
    return text + (s.zero_points ? " with zero points" : "");
}

RandomMatrix::RandomMatrix(const MatrixShape& s, uint32_t seed) {
    Filler fill(seed, s.subnormal_scales);
    const quant::FormatTraits& t = quant::traits(s.format);
    const int64_t row_bytes = ceil_div(s.cols, t.block) * t.block_bytes;
    const auto buffer = [&](std::vector<std::byte>& bytes, int64_t size) {
        bytes.resize(static_cast<size_t>(size) + 1);
        for (std::byte& byte : bytes) byte = std::byte{fill.byte()};
        return bytes.data() + 1;
    };
    std::byte* codes = buffer(codes_, s.rows * row_bytes);
    for (int64_t i = 0; i < s.rows * row_bytes; i += t.block_bytes) fill.repair_block(s.format, codes + i);
    matrix_.format = s.format;
    matrix_.rows = s.rows;
    matrix_.cols = s.cols;
    matrix_.data = codes;
    matrix_.row_bytes = row_bytes;
    matrix_.multiplier = s.multiplier;
    if (s.scale_cols <= 0) return;
    const int64_t groups = ceil_div(s.cols, s.scale_cols), size = quant::traits(s.scale_format).block_bytes;
    matrix_.scale_format = s.scale_format;
    matrix_.scale_rows = s.scale_rows;
    matrix_.scale_cols = s.scale_cols;
    matrix_.scale_stride = groups * size;
    std::byte* scales = buffer(scales_, ceil_div(s.rows, s.scale_rows) * groups * size);
    matrix_.scales = scales;
    for (int64_t i = 0; i < ceil_div(s.rows, s.scale_rows) * groups; ++i) fill.scale(s.scale_format, scales + i * size);
    if (s.zero_points) matrix_.zero_points = buffer(zero_points_, ceil_div(s.rows, 8) * groups * 4);
}

std::vector<MatrixShape> every_format(int64_t rows, int64_t cols) {
    std::vector<MatrixShape> shapes;
    for (int i = 0; i < static_cast<int>(Format::kCount); ++i) {
        MatrixShape shape = {.format = static_cast<Format>(i), .rows = rows, .cols = cols};
        const quant::FormatTraits& t = quant::traits(shape.format);
        if (!t.weight) continue;
        if (t.block > 2) shape.cols = ceil_div(cols, t.block) * t.block;
        if (shape.format == Format::kE4M3) {
            shape.scale_format = Format::kE8M0, shape.scale_rows = shape.scale_cols = 128;
        } else if (shape.format == Format::kE2M1Pair) {
            shape.scale_format = Format::kE8M0, shape.scale_cols = 32;
        } else if (shape.format == Format::kInt4Pair) {
            shape.scale_format = Format::kBF16, shape.scale_cols = 128;
        }
        shapes.push_back(shape);
    }
    shapes.push_back({.format = Format::kE2M1Pair,
                      .rows = rows,
                      .cols = cols,
                      .scale_format = Format::kE4M3,
                      .scale_cols = 16,
                      .multiplier = 0.00372f});
    return shapes;
}

std::vector<float> random_floats(int64_t n, uint32_t seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> normal;
    std::vector<float> x(static_cast<size_t>(n));
    for (float& value : x) value = normal(random);
    return x;
}

}  // namespace thermocline::cpu
