// A weight matrix as it lies in memory: W[rows, cols], rows contiguous, plus whatever scales its format keeps beside
// the codes. A view: owns nothing (the bytes belong to a mapped file or an arena). Plain data, freely copied.
#pragma once

#include "src/quant/format.h"

#include <cstddef>
#include <cstdint>

namespace thermocline::quant {

/// How the codes of a matrix lie: one row after the other as in the files, or packed (strips.h).
enum class Layout : uint8_t { kRows, kStrips };

/// W[n, k] = code(n, k) * scale(n / scale_rows, k / scale_cols) * multiplier        (minus zero point for kInt4Pair)
struct Matrix {
    Format format = Format::kF32;
    int64_t rows = 0;
    int64_t cols = 0;
    const std::byte* data = nullptr;  // [rows, row_bytes], no alignment promised; kStrips: strip_at() says
    int64_t row_bytes = 0;            // stride between rows

    Layout layout = Layout::kRows;
    bool scale_in_strip = false;  // kStrips: the scales lie between the codes, `scales` is null
    int64_t strip_bytes = 0;      // kStrips: stride between strips of a slice
    int64_t slice_strips = 0;     // kStrips: of a slice; of the last one perhaps fewer
    int64_t slice_stride = 0;     // kStrips: bytes from the start of a slice to that of the next

    const std::byte* scales = nullptr;   // [ceil(rows / scale_rows), ceil(cols / scale_cols)]; null: no scales
    Format scale_format = Format::kF32;  // kF32, kBF16, kF16, kE8M0 or kE4M3
    int64_t scale_rows = 1;
    int64_t scale_cols = 1;
    int64_t scale_stride = 0;  // bytes between rows of scales
    float multiplier = 1.0f;   // NVFP4 second-level scale, already as a multiplier

    // kInt4Pair only: I32 [ceil(rows / 8), ceil(cols / scale_cols)], row n in nibble n % 8; null: symmetric
    const std::byte* zero_points = nullptr;

    /// Bytes that one pass over the matrix reads (codes and scales).
    int64_t bytes() const;
};

/// Rows [first, first + count) of a matrix of layout kRows as a matrix of their own. With scales, `first` must be a
/// multiple of scale_rows or all rows must share one row of scales; with zero points, `first` must be a multiple of 8
/// (CHECK).
Matrix slice_rows(const Matrix& matrix, int64_t first, int64_t count);

}  // namespace thermocline::quant
