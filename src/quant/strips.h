// The packed layout of weights (hybrid-engine.md 2.2): strips of 16 rows, one after the other; a strip is a run of
// blocks of 128 columns; a block is its codes, then its scales, in whole cache lines.
//
//   codes:  lines of 64 bytes = 16 words of 4 bytes; word r of a line holds consecutive columns of row r: 1 of 32 bits,
//           2 of 16, or 4, 8, 16, 32 of 8, 4, 2, 1 bits, four columns to the same bits of the four bytes: column 4 i +
//           j of the line is field i, lowest first, of byte j. Codes of 5, 6 and 3 bits are two runs of lines: their
//           low 4, 4 or 2 bits, then their high 1, 2 or 1 bits likewise, 32, 16 or 32 columns to a line.
//   scales: one or more fields in turn; a field is per group of columns one number for each of the 16 rows, in the
//           format of the source. FP8 scales of 128 x 128 blocks stay where they are (Matrix::scales): 16 rows share
//           them.
//
// So one long stream per thread, sixteen rows to sixteen lanes without a horizontal sum, and not a byte more than the
// file (but for padding to cache lines; GGUF blocks: strips_gguf.h). Matrices whose format or shape has no such form
// stay as they lie.
//
// On machines with several NUMA nodes a matrix is cut into slices of whole strips, one for the memory of each node. An
// output is computed from one strip alone, so no result depends on the cut. hybrid-engine.md 2.6 cuts w2 by columns,
// which saves that nodes read each other's intermediate channels (48 KB a token and layer), but then has sums to add
// over the nodes and an order of additions to agree on.
#pragma once

#include "src/quant/matrix.h"

#include <cstddef>
#include <cstdint>

namespace thermocline::quant {

inline constexpr int64_t kStripRows = 16;
inline constexpr int64_t kStripBlock = 128;  // columns
inline constexpr int64_t kLineBytes = 64;

/// What the blocks of a packed matrix look like.
struct StripShape {
    struct Field {
        int bytes, cols;  ///< of one number; columns that share it
    };
    static constexpr int kFields = 4;

    int code_bits = 0;           ///< 1, 2, 3, 4, 5, 6, 8, 16 or 32
    Field fields[kFields] = {};  ///< behind the codes; bytes 0: none

    int64_t code_bytes() const { return kStripRows * kStripBlock * code_bits / 8; }
    int64_t block_bytes() const;
    /// Where number `group` of row r of a field lies in the block.
    int64_t offset(int field, int64_t group, int64_t r) const;
};

/// The shape of a packed matrix (layout kStrips).
StripShape strip_shape(const Matrix& packed);

/// All of the packed form of `matrix` but its data and slice_stride: format, scales and strip_bytes as pack_strips()
/// will leave them, cut into at most `slices` slices that share no row of scales. layout stays kRows if there is no
/// packed form: rows % 16, cols % 128, rows that do not follow one another, other formats than F32, F16, BF16, Q8_0,
/// FP8 with blocks of scales or e8m0 per 128 columns, MXFP4, NVFP4, symmetric INT4 and those of strips_gguf.h.
Matrix packed_form(const Matrix& matrix, int64_t slices = 1);

/// Writes strips [first, first + count) of `matrix` to `out` [count * packed_form(matrix).strip_bytes].
/// `out` is aligned to 16 bytes and written past the caches.
void pack_strips(const Matrix& matrix, int64_t first, int64_t count, std::byte* out);

/// Slices of a packed matrix; 1 for layout kRows.
int64_t slice_count(const Matrix& matrix);
/// Where a strip begins. Strips of a slice follow one another.
const std::byte* strip_at(const Matrix& packed, int64_t strip);
/// A slice as a matrix of its own, which kernels take; layout kRows: the matrix.
Matrix strip_slice(const Matrix& matrix, int64_t slice);

/// A power of two that kernels want the vectors multiplied with that meet this matrix: FP4 codes are taken apart into
/// tiny numbers, and the product must stay clear of the subnormals. 1 for layout kRows.
float strip_input_factor(const Matrix& matrix);

inline constexpr int kInt8Columns = 32;

/// 32 numbers of a vector as int8: x = codes * scale. The scale is the largest magnitude / 127.
struct Int8Group {
    int8_t codes[kInt8Columns];
    float scale;
    int16_t sums[6];  ///< of the codes: of columns 0, 1 and 2, 3 (mod 4) of each half, then of both halves
};

/// 32 numbers of a vector in fixed point: x = (digits[0] + 2^8 digits[1] + 2^16 digits[2]) * scale, scale a power of
/// two, within 2^-22 of the largest magnitude, or 2^-102. The same bytes as 32 floats.
struct FixedGroup {
    int8_t digits[3][kInt8Columns];
    int16_t sums[3][2];  ///< of the digits of each half
    float half_sums[2];  ///< of the numbers of each half
    float scale;         ///< NaN: not all numbers are finite
    float unused[2];
};
static_assert(sizeof(FixedGroup) == kInt8Columns * sizeof(float));

/// Whether the matrix can be multiplied with int8 vectors in integers: packed MXFP4, NVFP4, INT4, Q8_0 and the formats
/// of strips_gguf.h.
bool has_integer_codes(const Matrix& matrix);

/// Whether all numbers of the matrix are exact in bf16 but for scales of whole groups: packed FP8, MXFP4 and NVFP4.
bool has_bf16_codes(const Matrix& matrix);
/// These, and integer codes without minimums: packed INT4, Q8_0, Q4_0, Q5_0, Q6_K, IQ4_NL and IQ4_XS.
bool has_bf16_numbers(const Matrix& matrix);

/// Number (n, k) of a packed matrix without the multiplier: the definition of the layout, for oracles.
double strip_value(const Matrix& packed, int64_t n, int64_t k);

}  // namespace thermocline::quant
