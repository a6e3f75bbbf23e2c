// Packing: the words of 16 rows, as they lie in a line, are put together in the file's order,
// four rows by four words in registers, and the next strip is read ahead as one stream.
#include "src/base/check.h"
#include "src/quant/format.h"
#include "src/quant/strips.h"
#include "src/quant/strips_gguf.h"

#include <cstring>
#include <emmintrin.h>

namespace thermocline::quant {
namespace {

constexpr int64_t kMostBlockBytes = kStripRows * kStripBlock * int64_t{sizeof(float)};

/// Four words of a row.
typedef uint32_t Four __attribute__((vector_size(16)));

Four load_four(const std::byte* p) {
    Four words;
    std::memcpy(&words, p, sizeof words);
    return words;
}

/// Word `line` of each of 16 rows, `stride` bytes apart, to the lanes of that line; `lines` is a multiple of 4. Four
/// rows after the other: rows are often a power of two apart, and sixteen such lines do not fit into L1.
void put_lines(const std::byte* words, int64_t stride, int lines, std::byte* out) {
    for (int64_t r = 0; r < kStripRows; r += 4, words += 4 * stride, out += sizeof(Four)) {
        for (int line = 0; line < lines; line += 4) {
            const std::byte* from = words + line * 4;
            const Four a = load_four(from), b = load_four(from + stride), c = load_four(from + 2 * stride),
                       d = load_four(from + 3 * stride);
            const Four ab_low = __builtin_shufflevector(a, b, 0, 4, 1, 5),
                       ab_high = __builtin_shufflevector(a, b, 2, 6, 3, 7),
                       cd_low = __builtin_shufflevector(c, d, 0, 4, 1, 5),
                       cd_high = __builtin_shufflevector(c, d, 2, 6, 3, 7);
            const Four across[] = {__builtin_shufflevector(ab_low, cd_low, 0, 1, 4, 5),
                                   __builtin_shufflevector(ab_low, cd_low, 2, 3, 6, 7),
                                   __builtin_shufflevector(ab_high, cd_high, 0, 1, 4, 5),
                                   __builtin_shufflevector(ab_high, cd_high, 2, 3, 6, 7)};
            for (int i = 0; i < 4; ++i) std::memcpy(out + (line + i) * kLineBytes, &across[i], sizeof across[i]);
        }
    }
}

/// Words of four bits: those that `words_of_row` writes for a row, to lines.
template <typename WordsOfRow>
void put_nibbles(const std::byte* row, int64_t row_bytes, std::byte* out, WordsOfRow words_of_row) {
    constexpr int kLines = 16;
    uint32_t words[kStripRows][kLines];
    for (int64_t r = 0; r < kStripRows; ++r, row += row_bytes) words_of_row(row, words[r]);
    put_lines(reinterpret_cast<const std::byte*>(words), sizeof words[0], kLines, out);
}

/// Nibbles 0..7 of a word in the order 0 4 1 5 2 6 3 7.
Four interleave_nibbles(Four x) {
    Four moved = (x ^ x >> 8) & 0x0000ff00;
    x ^= moved ^ moved << 8;
    moved = (x ^ x >> 4) & 0x00f000f0;
    return x ^ moved ^ moved << 4;
}

void put_pairs(const std::byte* row, int64_t row_bytes, std::byte* out) {
    put_nibbles(row, row_bytes, out, [](const std::byte* codes, uint32_t* words) {
        for (int i = 0; i < 4; ++i) {
            const Four four = interleave_nibbles(load_four(codes + 16 * i));
            std::memcpy(words + 4 * i, &four, sizeof four);
        }
    });
}

/// Byte i of the 16 of a group holds columns i and 16 + i; 17 bytes to a group.
void put_mxfp4(const std::byte* row, int64_t row_bytes, std::byte* out) {
    put_nibbles(row, row_bytes, out, [](const std::byte* codes, uint32_t* words) {
        for (int group = 0; group < 4; ++group) {
            const Four four = load_four(codes + 17 * group + 1);
            const Four first = __builtin_shufflevector(four, four, 0, 2, 0, 2),
                       second = __builtin_shufflevector(four, four, 1, 3, 1, 3);
            const Four low = (first & 0x0f0f0f0f) | (second & 0x0f0f0f0f) << 4,
                       high = (first >> 4 & 0x0f0f0f0f) | (second & 0xf0f0f0f0),
                       both = __builtin_shufflevector(low, high, 0, 1, 4, 5);
            std::memcpy(words + 4 * group, &both, sizeof both);
        }
    });
}

/// Codes of `format` in 128 columns of 16 rows that begin at `row`.
void put_codes(Format format, const std::byte* row, int64_t row_bytes, std::byte* out) {
    switch (format) {
        case Format::kE2M1Pair:
        case Format::kInt4Pair:
            return put_pairs(row, row_bytes, out);
        case Format::kMxfp4Block:
            return put_mxfp4(row, row_bytes, out);
        case Format::kQ8_0:
            for (int group = 0; group < 4; ++group)
                put_lines(row + group * 34 + 2, row_bytes, 8, out + group * 8 * kLineBytes);
            return;
        case Format::kE4M3Block128:
            return put_lines(row + 1, row_bytes, 32, out);
        default:
            return put_lines(row, row_bytes, static_cast<int>(bytes_of(format, kStripBlock) / 4), out);
    }
}

/// Bits [first, first + bits) of the codes of a row, [16] words of eight codes, a word to a line.
template <int bits>
void take_bits(const uint64_t* codes, int first, uint32_t* words) {
    constexpr uint64_t kMask = ((1u << bits) - 1) * 0x0101010101010101;
    constexpr int kWords = 4 / bits;  // of eight codes, in a line
    for (int line = 0; line < 16 / kWords; ++line) {
        uint32_t word = 0;
        for (int i = 0; i < kWords; ++i, ++codes) {
            const uint64_t eight = *codes >> first & kMask;
            word |= static_cast<uint32_t>(eight | eight >> (32 - bits)) << (2 * bits * i);
        }
        words[line] = word;
    }
}

/// A run of lines with bits [first, first + bits) of all codes.
template <int bits>
std::byte* put_bits(const uint64_t (*codes)[kStripBlock / 8], int first, std::byte* out) {
    constexpr int kLines = 4 * bits;
    uint32_t words[kStripRows][kLines];
    for (int64_t r = 0; r < kStripRows; ++r) take_bits<bits>(codes[r], first, words[r]);
    put_lines(reinterpret_cast<const std::byte*>(words), sizeof words[0], kLines, out);
    return out + kLines * kLineBytes;
}

void put_gguf_block(Format format, const std::byte* rows, int64_t row_bytes, int64_t block, const int64_t* starts,
                    std::byte* out) {
    uint64_t codes[kStripRows][kStripBlock / 8];
    for (int64_t r = 0; r < kStripRows; ++r) {
        unpack_gguf_codes(format, rows + r * row_bytes, block, codes[r]);
        put_gguf_fields(format, rows + r * row_bytes, block, starts, r, out);
    }
    const int bits = gguf_strip_shape(format).code_bits, low = low_bits(bits);
    out = low == 1 ? put_bits<1>(codes, 0, out) : low == 2 ? put_bits<2>(codes, 0, out) : put_bits<4>(codes, 0, out);
    if (bits == 6) put_bits<2>(codes, low, out);
    if (bits == 3 || bits == 5) put_bits<1>(codes, low, out);
}

/// Scales that go between the codes: where those of row 0 begin, and the way to the next row and group.
struct Scales {
    const std::byte* first;
    int64_t row_step, group_step;
};

Scales scales_of(const Matrix& m, int64_t bytes) {
    if (m.format == Format::kMxfp4Block) return {m.data, m.row_bytes, 17};
    if (m.format == Format::kE4M3Block128) return {m.data, m.row_bytes, 129};
    if (m.format == Format::kQ8_0) return {m.data, m.row_bytes, 34};
    return {m.scales, m.scale_stride, bytes};
}

/// `groups` scales of 16 rows, all rows of a group together.
template <int bytes>
void put_scales(const Scales& scales, int64_t row, int64_t group, int64_t groups, std::byte* out) {
    const std::byte* from = scales.first + row * scales.row_step + group * scales.group_step;
    for (int64_t g = 0; g < groups; ++g, from += scales.group_step)
        for (int64_t r = 0; r < kStripRows; ++r, out += bytes) std::memcpy(out, from + r * scales.row_step, bytes);
}

/// Asks for the lines in [next, end); returns where the next one begins.
const std::byte* prefetch(const std::byte* next, const std::byte* end) {
    for (; next < end; next += kLineBytes) __builtin_prefetch(next);
    return next;
}

/// A block to memory: lines that are written whole need not be read first.
void stream(const std::byte* block, int64_t bytes, std::byte* out) {
    for (int64_t i = 0; i < bytes; i += sizeof(__m128i))
        _mm_stream_si128(reinterpret_cast<__m128i*>(out + i), *reinterpret_cast<const __m128i*>(block + i));
}

}  // namespace

void pack_strips(const Matrix& matrix, int64_t first, int64_t count, std::byte* out) {
    const Matrix packed = packed_form(matrix);
    CHECK(packed.layout == Layout::kStrips && first >= 0 && count >= 0 && (first + count) * kStripRows <= matrix.rows);
    const StripShape shape = strip_shape(packed);
    const bool gguf = is_gguf_strip(matrix.format);
    const int scale_bytes = gguf ? 0 : shape.fields[0].bytes;
    const int64_t groups = scale_bytes > 0 ? kStripBlock / shape.fields[0].cols : 0;
    const Scales scales = scales_of(matrix, scale_bytes);
    const int64_t row_block = gguf ? 0 : bytes_of(matrix.format, kStripBlock);  // blocks of GGUF may be longer
    int64_t starts[StripShape::kFields];
    for (int field = 0; field < StripShape::kFields; ++field) starts[field] = shape.offset(field, 0, 0);
    alignas(kLineBytes) std::byte block[kMostBlockBytes] = {};  // what the fields leave of it stays 0
    const int64_t block_bytes = shape.block_bytes();
    CHECK(block_bytes <= kMostBlockBytes && reinterpret_cast<uintptr_t>(out) % sizeof(__m128i) == 0);
    const int64_t blocks = matrix.cols / kStripBlock, strip_bytes = kStripRows * matrix.row_bytes;
    for (int64_t strip = first; strip < first + count; ++strip) {
        const std::byte* rows = matrix.data + strip * strip_bytes;
        const std::byte* next = rows + strip_bytes;
        for (int64_t b = 0; b < blocks; ++b, out += block_bytes) {
            if (strip + 1 < first + count) next = prefetch(next, rows + strip_bytes + (b + 1) * strip_bytes / blocks);
            if (gguf)
                put_gguf_block(matrix.format, rows, matrix.row_bytes, b, starts, block);
            else
                put_codes(matrix.format, rows + b * row_block, matrix.row_bytes, block);
            if (scale_bytes == 1) put_scales<1>(scales, strip * kStripRows, b * groups, groups, block + starts[0]);
            if (scale_bytes == 2) put_scales<2>(scales, strip * kStripRows, b * groups, groups, block + starts[0]);
            stream(block, block_bytes, out);
        }
    }
    _mm_sfence();  // whoever waits for this thread sees what it wrote
}

}  // namespace thermocline::quant
