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

/// Nibbles 0..3 of the low half of x, one to a byte.
uint32_t spread_nibbles(uint32_t x) {
    x &= 0xffff;
    x = (x | x << 8) & 0x00ff00ff;
    return (x | x << 4) & 0x0f0f0f0f;
}

/// The words of a block of one row, to the same place of every line. `codes` are the row's codes of the block.
template <Format format>
void put_words(const std::byte* codes, std::byte* out) {
    const auto put = [out](int line, uint32_t word) { std::memcpy(out + line * kLineBytes, &word, sizeof word); };
    if constexpr (format == Format::kE2M1Pair || format == Format::kInt4Pair) {
        for (int line = 0; line < 16; ++line) {
            const uint32_t pairs = read_word(codes + 4 * line);
            put(line, spread_nibbles(pairs) | spread_nibbles(pairs >> 16) << 4);
        }
    } else if constexpr (format == Format::kMxfp4Block) {  // byte i of 16 holds columns i and 16 + i
        for (int group = 0; group < 4; ++group, codes += 17) {
            for (int half = 0; half < 2; ++half) {
                const uint32_t first = read_word(codes + 1 + 8 * half), second = read_word(codes + 5 + 8 * half);
                put(4 * group + half, (first & 0x0f0f0f0f) | (second & 0x0f0f0f0f) << 4);
                put(4 * group + 2 + half, (first >> 4 & 0x0f0f0f0f) | (second & 0xf0f0f0f0));
            }
        }
    } else if constexpr (format == Format::kQ8_0) {
        for (int line = 0; line < 32; ++line) put(line, read_word(codes + line / 8 * 34 + 2 + line % 8 * 4));
    } else {
        constexpr int kLines = format == Format::kF32 ? 128 : format == Format::kE4M3 ? 32 : 64;
        for (int line = 0; line < kLines; ++line) put(line, read_word(codes + 4 * line));
    }
}

/// Bits [first, first + bits) of the codes of one row, [16] words of eight codes, as a run of lines.
template <int bits>
void put_bits(const uint64_t* codes, int first, std::byte* out) {
    constexpr uint64_t kMask = ((1u << bits) - 1) * 0x0101010101010101;
    constexpr int kWords = 4 / bits;  // of eight codes, in a line
    for (int line = 0; line < 16 / kWords; ++line, out += kLineBytes) {
        uint32_t word = 0;
        for (int i = 0; i < kWords; ++i, ++codes) {
            const uint64_t eight = *codes >> first & kMask;
            word |= static_cast<uint32_t>(eight | eight >> (32 - bits)) << (2 * bits * i);
        }
        std::memcpy(out, &word, sizeof word);
    }
}

/// Bits of a code that lie in the first run of lines.
int low_bits(int code_bits) { return code_bits == 3 ? 2 : code_bits == 5 || code_bits == 6 ? 4 : code_bits; }

/// The codes of one row of a packed block of GGUF blocks; `out` is at its word of the first line.
void put_gguf_codes(Format format, const std::byte* row, int64_t block, std::byte* out) {
    uint64_t codes[kStripBlock / 8];
    unpack_gguf_codes(format, row, block, codes);
    const int bits = gguf_strip_shape(format).code_bits, low = low_bits(bits);
    low == 1 ? put_bits<1>(codes, 0, out) : low == 2 ? put_bits<2>(codes, 0, out) : put_bits<4>(codes, 0, out);
    out += kStripRows * kStripBlock * low / 8;
    if (bits == 6) put_bits<2>(codes, low, out);
    if (bits == 3 || bits == 5) put_bits<1>(codes, low, out);
}

using PutWords = void (*)(const std::byte* codes, std::byte* out);

PutWords put_words_of(Format format) {
    switch (format) {
        case Format::kE2M1Pair:
        case Format::kInt4Pair:
            return put_words<Format::kE2M1Pair>;
        case Format::kMxfp4Block:
            return put_words<Format::kMxfp4Block>;
        case Format::kQ8_0:
            return put_words<Format::kQ8_0>;
        case Format::kE4M3:
        case Format::kE4M3Block128:
            return put_words<Format::kE4M3>;
        case Format::kF32:
            return put_words<Format::kF32>;
        default:
            return put_words<Format::kF16>;
    }
}

/// Bytes of a block of the file before its codes.
int64_t code_offset(Format format) { return format == Format::kE4M3Block128 ? 1 : 0; }

/// The scale of group `index` of row n, as its bytes.
const std::byte* scale_at(const Matrix& m, int64_t n, int64_t index, int bytes) {
    if (m.format == Format::kMxfp4Block) return m.data + n * m.row_bytes + index * 17;
    if (m.format == Format::kE4M3Block128) return m.data + n * m.row_bytes + index * 129;
    if (m.format == Format::kQ8_0) return m.data + n * m.row_bytes + index * 34;
    return m.scales + n * m.scale_stride + index * bytes;
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

void pack_strips(const Matrix& matrix, int64_t first, int64_t count, std::byte* out) {
    const Matrix packed = packed_form(matrix);
    CHECK(packed.layout == Layout::kStrips && first >= 0 && count >= 0 && (first + count) * kStripRows <= matrix.rows);
    const StripShape shape = strip_shape(packed);
    const bool gguf = is_gguf_strip(matrix.format);
    const PutWords put_words = put_words_of(matrix.format);
    const int scale_bytes = shape.fields[0].bytes;
    const int64_t groups = scale_bytes > 0 ? kStripBlock / shape.fields[0].cols : 0;
    const int64_t row_block = gguf ? 0 : bytes_of(matrix.format, kStripBlock);  // blocks of GGUF may be longer
    int64_t starts[StripShape::kFields];
    for (int field = 0; field < StripShape::kFields; ++field) starts[field] = shape.offset(field, 0, 0);
    const int64_t code_bytes = shape.code_bytes(), block_bytes = shape.block_bytes();
    for (int64_t strip = first; strip < first + count; ++strip) {
        const std::byte* rows = matrix.data + strip * kStripRows * matrix.row_bytes;
        for (int64_t block = 0; block < matrix.cols / kStripBlock; ++block, out += block_bytes) {
            std::memset(out + code_bytes, 0, static_cast<size_t>(block_bytes - code_bytes));
            for (int64_t r = 0; r < kStripRows; ++r) {
                const std::byte* row = rows + r * matrix.row_bytes;
                if (gguf) {
                    put_gguf_codes(matrix.format, row, block, out + r * 4);
                    put_gguf_fields(matrix.format, row, block, starts, r, out);
                    continue;
                }
                put_words(row + block * row_block + code_offset(matrix.format), out + r * 4);
                for (int64_t g = 0; g < groups; ++g)
                    std::memcpy(out + starts[0] + (g * kStripRows + r) * scale_bytes,
                                scale_at(matrix, strip * kStripRows + r, block * groups + g, scale_bytes),
                                static_cast<size_t>(scale_bytes));
            }
        }
    }
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
