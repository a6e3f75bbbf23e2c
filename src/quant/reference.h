// The obvious encoders and decoders of every weight format: the oracle that kernels are tested against, and the writer
// behind tests and synthetic checkpoints. Clarity before speed; values are computed in double and rounded to float
// once. Pure functions, safe from any thread.
#pragma once

#include "src/quant/matrix.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace thermocline::quant {

/// out[0..n) = W[row, k0 .. k0 + n). k0 and n must be multiples of the block of the matrix's format (CHECK).
void decode_row(const Matrix& matrix, int64_t row, int64_t k0, int64_t n, float* out);

/// All of W, [rows, cols].
std::vector<float> decode_matrix(const Matrix& matrix);

/// Encodes n numbers (a multiple of the block) in a format that keeps nothing beside its blocks: kF32, kF16, kBF16,
/// kQ4_0, kQ4_1, kQ5_0, kQ5_1, kQ8_0, kQ4_K, kQ6_K, kMxfp4Block, kE4M3Block128. Other formats: CHECK. `out` receives
/// bytes_of(format, n) bytes. The numbers must be finite.
void encode_row(Format format, const float* x, int64_t n, std::byte* out);

/// How to write a matrix whose format keeps scales beside the codes.
struct Recipe {
    Format format;                       // kE4M3, kE2M1Pair, kInt4Pair, or any format of encode_row (rest unused)
    Format scale_format = Format::kF32;  // kE8M0: power-of-two scales by the activation rule; kE4M3: NVFP4
    int64_t scale_rows = 1;              // rows and columns that share a scale; cut at the edges of the matrix
    int64_t scale_cols = 1;
    bool zero_points = false;  // kInt4Pair: asymmetric; scale_rows must be 1
};

inline constexpr int64_t kWhole = INT64_MAX;
inline constexpr Recipe kFp8Blocks = {Format::kE4M3, Format::kE8M0, 128, 128, false};  // DeepSeek-V4 official
inline constexpr Recipe kMxfp4 = {Format::kE2M1Pair, Format::kE8M0, 1, 32, false};     // its routed experts
inline constexpr Recipe kNvfp4 = {Format::kE2M1Pair, Format::kE4M3, 1, 16, false};     // with a global multiplier
inline constexpr Recipe kInt4Group128 = {Format::kInt4Pair, Format::kBF16, 1, 128, false};

/// A matrix with its own memory.
struct EncodedMatrix {
    std::vector<std::byte> codes;
    std::vector<std::byte> scales;
    std::vector<std::byte> zero_points;
    Matrix shape;  // all of Matrix but its pointers

    /// Valid until this object changes, moves or dies.
    Matrix view() const;
};

/// Encodes w [rows, cols], finite numbers; cols must be a multiple of the block (for kInt4Pair: of 8, a word) (CHECK).
EncodedMatrix encode_matrix(const Recipe& recipe, const float* w, int64_t rows, int64_t cols);

}  // namespace thermocline::quant
