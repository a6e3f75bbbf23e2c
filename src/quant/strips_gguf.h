// The packed form (strips.h) of GGUF blocks with regular codes. Every number of the file is kept: codes as they are
// (offset binary where the format says code - 2^(bits - 1)), f16 d, m and dmin, and the sub-scales of K-quants, taken
// out of their bit fields. A block of 128 columns repeats the d and dmin of the 256 columns that share them.
//
//   format  bits  fields behind the codes: numbers of a row in 128 columns             bytes of a block  of the file
//   Q4_0    4     d f16 x 4                                                             1152            + 0.0 %
//   Q4_1    4     d f16 x 4, m f16 x 4                                                  1280            + 0.0 %
//   Q4_K    4     scale u8 x 4, minimum u8 x 4, d f16, dmin f16                         1216            + 5.6 %
//   IQ4_NL  4     d f16 x 4                                                             1152            + 0.0 %
//   IQ4_XS  4     scale - 32 i8 x 4, d f16                                              1152            + 5.9 %
//   Q6_K    6     scale i8 x 8, d f16                                                   1728            + 2.9 %
//   Q5_K    5     as Q4_K                                                               1472            + 4.5 %
//   Q5_0    5     d f16 x 4                                                             1408            + 0.0 %
//   Q5_1    5     d f16 x 4, m f16 x 4                                                  1536            + 0.0 %
//   Q2_K    2     scale u4, minimum u4 x 8, d f16, dmin f16                              704            + 4.8 %
//   Q3_K    3     low 4 bits of two scales u8 x 4, high 2 bits of four u8 x 2, d f16     896            + 1.8 %
//   Q2_0    2     -d f16 x 2                                                             576            + 0.0 %
//   TQ2_0   2     -d f16                                                                 576            + 9.1 %
//   TQ1_0   2     -d f16                                                                 576            + 33.3 %
//   Q1_0    1     d f16                                                                  320            + 11.1 %
//   NVFP4   4     scale e4m3 x 8; packed it is kE2M1Pair with such scales               1152            + 0.0 %
//
// Codes q of Q2_0 and the ternary formats stand for d * (q - 1): they are kept as 3 - q, which stands for
// -d * (3 - q - 2). TQ1_0 holds five digits in a byte, which no lane takes apart in time: a third more bytes are read
// ten times as fast. The IQ1, IQ2 and IQ3 formats stay rows: a lane would have to gather from their codebooks for every
// four or eight columns, as the row kernels do with one load. Spelt out, their codes would be multiplied faster, but
// take 4 bits (IQ1: 2) where they have 2.1 to 3.4 (1.6 to 1.8): up to twice the memory.
#pragma once

#include "src/quant/strips.h"

namespace thermocline::quant {

/// Whether the format is in the table above.
bool is_gguf_strip(Format format);

/// The shape of its blocks.
StripShape gguf_strip_shape(Format format);

/// Bits of a code that lie in the first of its runs of lines.
int low_bits(int code_bits);

/// Block `block` (of 128 columns) of one row, `row` being the row's bytes in the file: its codes, a byte each, [16]
/// words of eight.
void unpack_gguf_codes(Format format, const std::byte* row, int64_t block, uint64_t* codes);

/// The same for its fields: to row r of the packed block `out`, where field f begins at starts[f].
void put_gguf_fields(Format format, const std::byte* row, int64_t block, const int64_t* starts, int64_t r,
                     std::byte* out);

/// The number that the code in column `column` of row r of a packed block stands for.
double gguf_strip_value(Format format, const std::byte* block, int64_t r, int64_t column, int code);

}  // namespace thermocline::quant
