// Random weight matrices of every format, for the kernel tests and benchmarks: bytes as a file could hold them, with
// finite scales of moderate size.
#pragma once

#include "src/quant/matrix.h"

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

namespace thermocline::cpu {

struct MatrixShape {
    quant::Format format;
    int64_t rows;
    int64_t cols;
    // beside the codes; scale_cols 0: none
    quant::Format scale_format = quant::Format::kF32;
    int64_t scale_rows = 1;
    int64_t scale_cols = 0;
    bool zero_points = false;
    float multiplier = 1.0f;
    bool subnormal_scales = true;  // some e8m0 codes are 0; products with them are slow on some processors
};

std::string to_string(const MatrixShape& shape);

/// Owns its bytes, which start at an odd address.
class RandomMatrix {
public:
    RandomMatrix(const MatrixShape& shape, uint32_t seed);
    RandomMatrix(const RandomMatrix&) = delete;
    RandomMatrix& operator=(const RandomMatrix&) = delete;

    quant::Matrix view() const { return matrix_; }

private:
    std::vector<std::byte> codes_, scales_, zero_points_;
    quant::Matrix matrix_;
};

/// Every weight format once, with the scales that it usually has, for matrices of about this size.
std::vector<MatrixShape> every_format(int64_t rows, int64_t cols);

std::vector<float> random_floats(int64_t n, uint32_t seed);

}  // namespace thermocline::cpu
