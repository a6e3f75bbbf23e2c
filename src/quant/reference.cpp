#include "src/quant/reference.h"

#include "src/base/check.h"
#include "src/quant/reference_blocks.h"
#include "src/quant/scalar.h"
#include "src/quant/strips.h"

namespace thermocline::quant {
namespace {

constexpr int kLargestBlock = 256;

/// The number that scale (n, k) stands for; 1 without scales.
double scale_at(const Matrix& m, int64_t n, int64_t k) {
    if (!m.scales) return 1.0;
    const std::byte* row = m.scales + n / m.scale_rows * m.scale_stride;
    const int64_t column = k / m.scale_cols;
    switch (m.scale_format) {
        case Format::kF32:
            return load_unaligned<float>(row + 4 * column);
        case Format::kBF16:
            return bf16_to_float(load_unaligned<uint16_t>(row + 2 * column));
        case Format::kF16:
            return f16_to_float(load_unaligned<uint16_t>(row + 2 * column));
        case Format::kE8M0:
            return e8m0_to_float(load_unaligned<uint8_t>(row + column));
        case Format::kE4M3:
            return e4m3_to_float(load_unaligned<uint8_t>(row + column));
        default:
            CHECK(!"not a scale format");
    }
    return 0.0;
}

/// The zero point of (n, k) of an int4 matrix: packed along the rows, eight to a word, offset binary like the weights.
int zero_point_at(const Matrix& m, int64_t n, int64_t k) {
    if (!m.zero_points) return 0;
    const int64_t groups = (m.cols + m.scale_cols - 1) / m.scale_cols;
    const uint32_t word = load_unaligned<uint32_t>(m.zero_points + (n / 8 * groups + k / m.scale_cols) * 4);
    return static_cast<int>((word >> (4 * (n % 8))) & 15) - 8;
}

/// Nibble k of a row in pair order: even elements in the low halves.
uint8_t pair_nibble(const std::byte* row, int64_t k) {
    const uint8_t byte = load_unaligned<uint8_t>(row + k / 2);
    return k % 2 == 0 ? byte & 15 : byte >> 4;
}

/// Number (n, k) of a format without blocks, before scale and multiplier.
double code_at(const Matrix& m, int64_t n, int64_t k) {
    const std::byte* row = m.data + n * m.row_bytes;
    switch (m.format) {
        case Format::kF32:
            return load_unaligned<float>(row + 4 * k);
        case Format::kF16:
            return f16_to_float(load_unaligned<uint16_t>(row + 2 * k));
        case Format::kBF16:
            return bf16_to_float(load_unaligned<uint16_t>(row + 2 * k));
        case Format::kE4M3:
            return e4m3_to_float(load_unaligned<uint8_t>(row + k));
        case Format::kE2M1Pair:
            return e2m1_to_float(pair_nibble(row, k));
        case Format::kInt4Pair:
            return pair_nibble(row, k) - 8 - zero_point_at(m, n, k);
        default:
            CHECK(!"not a weight format");
    }
    return 0.0;
}

}  // namespace

void decode_row(const Matrix& m, int64_t row, int64_t k0, int64_t n, float* out) {
    const FormatTraits& t = traits(m.format);
    CHECK(t.weight && row >= 0 && row < m.rows);
    CHECK(k0 >= 0 && n >= 0 && k0 % t.block == 0 && n % t.block == 0 && k0 + n <= m.cols);
    const bool has_blocks = t.block > 2 && m.layout == Layout::kRows;
    double block[kLargestBlock];
    for (int64_t i = 0; i < n; ++i) {
        const int64_t k = k0 + i;
        if (has_blocks && i % t.block == 0) {
            decode_block(m.format, m.data + row * m.row_bytes + k / t.block * t.block_bytes, block);
        }
        const double code = has_blocks                    ? block[i % t.block]
                            : m.layout == Layout::kStrips ? strip_value(m, row, k)
                                                          : code_at(m, row, k);
        out[i] = static_cast<float>(code * scale_at(m, row, k) * m.multiplier);
    }
}

std::vector<float> decode_matrix(const Matrix& matrix) {
    std::vector<float> all(static_cast<size_t>(matrix.rows * matrix.cols));
    for (int64_t row = 0; row < matrix.rows; ++row) {
        decode_row(matrix, row, 0, matrix.cols, all.data() + row * matrix.cols);
    }
    return all;
}

}  // namespace thermocline::quant
