#include "cuda/weights.h"

#include "cuda/device.h"
#include "src/quant/strips.h"

#include <algorithm>

namespace thermocline::cuda {

namespace {

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t code_bytes(const quant::Matrix& m) {
    if (m.layout == quant::Layout::kStrips) return m.rows / quant::kStripRows * m.strip_bytes;
    return (m.rows - 1) * m.row_bytes + quant::bytes_of(m.format, m.cols);
}

int64_t scale_bytes(const quant::Matrix& m) {
    if (m.scales == nullptr) return 0;
    const int64_t row = quant::bytes_of(m.scale_format, ceil_div(m.cols, m.scale_cols));
    return (ceil_div(m.rows, m.scale_rows) - 1) * m.scale_stride + row;
}

int64_t zero_point_bytes(const quant::Matrix& m) {
    return m.zero_points == nullptr ? 0 : ceil_div(m.rows, 8) * ceil_div(m.cols, m.scale_cols) * 4;
}

}  // namespace

int64_t placed_bytes(const quant::Matrix& m) {
    return aligned(code_bytes(m)) + aligned(scale_bytes(m)) + aligned(zero_point_bytes(m));
}

quant::Matrix place(const quant::Matrix& m, std::byte* at, std::vector<Copy>& copies) {
    quant::Matrix placed = m;
    placed.data = at;
    if (m.layout == quant::Layout::kStrips) {
        const int64_t strips = m.rows / quant::kStripRows;
        for (int64_t first = 0; first < strips; first += m.slice_strips) {
            const int64_t count = std::min(m.slice_strips, strips - first);
            copies.push_back({quant::strip_at(m, first), at + first * m.strip_bytes, count * m.strip_bytes});
        }
        placed.slice_strips = strips;
        placed.slice_stride = 0;
    } else {
        copies.push_back({m.data, at, code_bytes(m)});
    }
    at += aligned(code_bytes(m));
    if (m.scales != nullptr) {
        copies.push_back({m.scales, at, scale_bytes(m)});
        placed.scales = at;
        at += aligned(scale_bytes(m));
    }
    if (m.zero_points != nullptr) {
        copies.push_back({m.zero_points, at, zero_point_bytes(m)});
        placed.zero_points = at;
    }
    return placed;
}

}  // namespace thermocline::cuda
