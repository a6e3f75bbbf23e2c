#include "src/quant/matrix.h"

#include "src/base/check.h"
#include "src/quant/strips.h"

namespace thermocline::quant {
namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace

int64_t Matrix::bytes() const {
    const FormatTraits& t = traits(format);
    int64_t total =
        layout == Layout::kStrips ? rows / kStripRows * strip_bytes : rows * ceil_div(cols, t.block) * t.block_bytes;
    if (scales) total += ceil_div(rows, scale_rows) * bytes_of(scale_format, ceil_div(cols, scale_cols));
    if (zero_points) total += ceil_div(rows, 8) * ceil_div(cols, scale_cols) * 4;
    return total;
}

Matrix slice_rows(const Matrix& matrix, int64_t first, int64_t count) {
    CHECK(matrix.layout == Layout::kRows);
    CHECK(first >= 0 && count >= 0 && first <= matrix.rows && count <= matrix.rows - first);
    Matrix slice = matrix;
    slice.rows = count;
    slice.data = matrix.data + first * matrix.row_bytes;
    if (matrix.scales) {
        const int64_t scale_row = first / matrix.scale_rows;
        if (first % matrix.scale_rows != 0) {
            CHECK(first + count <= (scale_row + 1) * matrix.scale_rows);
            slice.scale_rows = count > 0 ? count : 1;
        }
        slice.scales = matrix.scales + scale_row * matrix.scale_stride;
    }
    if (matrix.zero_points) {
        CHECK(first % 8 == 0);
        slice.zero_points = matrix.zero_points + first / 8 * ceil_div(matrix.cols, matrix.scale_cols) * 4;
    }
    return slice;
}

}  // namespace thermocline::quant
