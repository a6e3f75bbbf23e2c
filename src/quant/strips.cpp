#include "src/quant/strips.h"

#include "src/base/check.h"
#include "src/quant/blocks.h"
#include "src/quant/scalar.h"
#include "src/quant/strips_gguf.h"

#include <algorithm>
#include <cstring>

namespace thermocline::quant {
namespace {

uint32_t read_word(const std::byte* p) {
    uint32_t word;
    std::memcpy(&word, p, sizeof word);
    return word;
}

/// FP8 whose scales 16 rows and 128 columns always share.
bool has_shared_scales(const Matrix& m) {
    const bool rows = m.scale_rows % kStripRows == 0 || m.scale_rows >= m.rows;
    return m.scales && rows && (m.scale_cols % kStripBlock == 0 || m.scale_cols >= m.cols);
}

/// FP8 with a scale for every 128 columns of a row: it goes between the codes.
bool has_row_scales(const Matrix& m) {
    return m.scales && m.scale_rows == 1 && m.scale_cols == kStripBlock && m.scale_format == Format::kE8M0;
}

bool has_packed_form(const Matrix& m) {
    if (m.layout != Layout::kRows || m.rows % kStripRows != 0 || m.cols % kStripBlock != 0) return false;
    if (m.rows == 0 || m.cols == 0 || m.row_bytes != bytes_of(m.format, m.cols)) return false;
    switch (m.format) {
        case Format::kF32:
        case Format::kF16:
        case Format::kBF16:
            return !m.scales;
        case Format::kQ8_0:
        case Format::kMxfp4Block:
        case Format::kE4M3Block128:
            return true;
        case Format::kE4M3:
            return has_shared_scales(m) || has_row_scales(m);
        case Format::kE2M1Pair:
            return m.scale_rows == 1 && ((m.scale_format == Format::kE8M0 && m.scale_cols == 32) ||
                                         (m.scale_format == Format::kE4M3 && m.scale_cols == 16));
        case Format::kInt4Pair:
            return m.scales && !m.zero_points && m.scale_rows == 1 && m.scale_format == Format::kBF16 &&
                   (m.scale_cols == 32 || m.scale_cols == 128);
        default:
            return is_gguf_strip(m.format);
    }
}

double scale_value(Format format, const std::byte* p) {
    uint16_t wide;
    std::memcpy(&wide, p, format == Format::kE8M0 || format == Format::kE4M3 ? 1 : 2);
    switch (format) {
        case Format::kE8M0:
            return e8m0_to_float(static_cast<uint8_t>(wide & 255));
        case Format::kE4M3:
            return e4m3_to_float(static_cast<uint8_t>(wide & 255));
        case Format::kBF16:
            return bf16_to_float(wide);
        default:
            return f16_to_float(wide);
    }
}

double code_value(Format format, uint32_t code) {
    switch (format) {
        case Format::kE2M1Pair:
            return e2m1_to_float(static_cast<uint8_t>(code));
        case Format::kInt4Pair:
            return static_cast<double>(code) - 8.0;
        case Format::kE4M3:
            return e4m3_to_float(static_cast<uint8_t>(code));
        case Format::kQ8_0:
            return static_cast<int8_t>(code);
        case Format::kF16:
            return f16_to_float(static_cast<uint16_t>(code));
        case Format::kBF16:
            return bf16_to_float(static_cast<uint16_t>(code));
        default:
            return std::bit_cast<float>(code);
    }
}

}  // namespace

int64_t StripShape::block_bytes() const { return (offset(kFields, 0, 0) + kLineBytes - 1) / kLineBytes * kLineBytes; }

int64_t StripShape::offset(int field, int64_t group, int64_t r) const {
    int64_t at = code_bytes();
    for (int f = 0; f < field && fields[f].bytes > 0; ++f)
        at += kStripRows * fields[f].bytes * (kStripBlock / fields[f].cols);
    return field == kFields ? at : at + (group * kStripRows + r) * fields[field].bytes;
}

StripShape strip_shape(const Matrix& m) {
    if (is_gguf_strip(m.format)) return gguf_strip_shape(m.format);
    StripShape shape;
    switch (m.format) {
        case Format::kE2M1Pair:
        case Format::kInt4Pair:
            shape.code_bits = 4;
            break;
        case Format::kE4M3:
        case Format::kQ8_0:
            shape.code_bits = 8;
            break;
        case Format::kF16:
        case Format::kBF16:
            shape.code_bits = 16;
            break;
        default:
            shape.code_bits = 32;
    }
    if (m.scale_in_strip)
        shape.fields[0] = {static_cast<int>(bytes_of(m.scale_format, 1)), static_cast<int>(m.scale_cols)};
    return shape;
}

Matrix packed_form(const Matrix& matrix, int64_t slices) {
    Matrix packed = matrix;
    if (!has_packed_form(matrix)) return packed;
    packed.layout = Layout::kStrips;
    packed.data = nullptr;
    packed.row_bytes = 0;
    if (matrix.format == Format::kMxfp4Block) {
        packed.format = Format::kE2M1Pair;
        packed.scale_format = Format::kE8M0;
        packed.scale_cols = 32;
    } else if (matrix.format == Format::kNvfp4Block) {
        packed.format = Format::kE2M1Pair;
        packed.scale_format = Format::kE4M3;
        packed.scale_cols = 16;
    } else if (matrix.format == Format::kE4M3Block128) {
        packed.format = Format::kE4M3;
        packed.scale_format = Format::kE8M0;
        packed.scale_cols = 128;
    } else if (matrix.format == Format::kQ8_0) {
        packed.scale_format = Format::kF16;
        packed.scale_cols = 32;
    }
    packed.scale_in_strip = matrix.format == Format::kE4M3 ? !has_shared_scales(matrix) : packed.scale_cols != 1;
    if (packed.scale_in_strip) {
        packed.scales = nullptr;
        packed.scale_rows = 1;
        packed.scale_stride = 0;
    }
    packed.strip_bytes = strip_shape(packed).block_bytes() * (matrix.cols / kStripBlock);
    // In units that share scales beside the matrix.
    const int64_t strips = matrix.rows / kStripRows;
    const int64_t unit = packed.scales && packed.scale_rows < packed.rows ? packed.scale_rows / kStripRows : 1;
    packed.slice_strips = std::min(strips, ((strips + unit - 1) / unit + slices - 1) / slices * unit);
    return packed;
}

int64_t slice_count(const Matrix& m) {
    return m.layout == Layout::kRows ? 1 : (m.rows / kStripRows + m.slice_strips - 1) / m.slice_strips;
}

const std::byte* strip_at(const Matrix& m, int64_t strip) {
    return m.data + strip / m.slice_strips * m.slice_stride + strip % m.slice_strips * m.strip_bytes;
}

Matrix strip_slice(const Matrix& m, int64_t slice) {
    Matrix part = m;
    if (m.layout == Layout::kRows) return part;
    const int64_t first = slice * m.slice_strips * kStripRows;
    part.rows = std::min(m.slice_strips * kStripRows, m.rows - first);
    part.data = m.data + slice * m.slice_stride;
    if (m.scales) part.scales = m.scales + first / m.scale_rows * m.scale_stride;
    return part;
}

float strip_input_factor(const Matrix& m) {
    return m.layout == Layout::kStrips && m.format == Format::kE2M1Pair ? 0x1p60f : 1.0f;
}

bool has_integer_codes(const Matrix& m) {
    return m.layout == Layout::kStrips && (m.format == Format::kE2M1Pair || m.format == Format::kInt4Pair ||
                                           m.format == Format::kQ8_0 || is_gguf_strip(m.format));
}

bool has_bf16_codes(const Matrix& m) {
    return m.layout == Layout::kStrips && (m.format == Format::kE4M3 || m.format == Format::kE2M1Pair);
}

bool has_bf16_numbers(const Matrix& m) {
    if (has_bf16_codes(m)) return true;
    switch (m.format) {
        case Format::kInt4Pair:
        case Format::kQ8_0:
        case Format::kQ4_0:
        case Format::kQ5_0:
        case Format::kQ6_K:
        case Format::kIQ4_NL:
        case Format::kIQ4_XS:
            return m.layout == Layout::kStrips;
        default:
            return false;
    }
}

double strip_value(const Matrix& m, int64_t n, int64_t k) {
    const StripShape shape = strip_shape(m);
    const int64_t r = n % kStripRows, column = k % kStripBlock;
    const std::byte* block = strip_at(m, n / kStripRows) + k / kStripBlock * shape.block_bytes();
    const auto bits_of = [&](const std::byte* lines, int bits) {
        const int64_t columns = 32 / bits, place = column % columns;
        const int64_t bit = bits <= 8 ? place % 4 * 8 + place / 4 * bits : place * bits;
        const uint32_t mask = bits == 32 ? ~0u : (1u << bits) - 1;
        return read_word(lines + column / columns * kLineBytes + r * 4) >> bit & mask;
    };
    const int low = low_bits(shape.code_bits);
    uint32_t bits = bits_of(block, low);
    if (shape.code_bits > low)
        bits |= bits_of(block + kStripRows * kStripBlock * low / 8, shape.code_bits - low) << low;
    if (is_gguf_strip(m.format)) return gguf_strip_value(m.format, block, r, column, static_cast<int>(bits));
    const double code = code_value(m.format, bits);
    if (!m.scale_in_strip) return code;
    return code * scale_value(m.scale_format, block + shape.offset(0, column / shape.fields[0].cols, r));
}

}  // namespace thermocline::quant
