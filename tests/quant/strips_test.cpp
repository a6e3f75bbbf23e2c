// Slices of packed matrices: every row in one of them, with the scales that it had.
#include "src/quant/strips.h"

#include "src/quant/reference.h"

#include <cmath>
#include <gtest/gtest.h>
#include <vector>

namespace thermocline::quant {
namespace {

constexpr int64_t kCols = 256;

EncodedMatrix encoded(const Recipe& recipe, int64_t rows) {
    std::vector<float> numbers(static_cast<size_t>(rows * kCols));
    for (size_t i = 0; i < numbers.size(); ++i) {  // every row and column block of another size
        const double row = static_cast<double>(i / kCols), column = static_cast<double>(i % kCols);
        numbers[i] = static_cast<float>(std::sin(0.1 + static_cast<double>(i)) * (1.0 + row) * (1.0 + column));
    }
    return encode_matrix(recipe, numbers.data(), rows, kCols);
}

/// A packed matrix whose slices lie apart, with bytes of its own.
struct Cut {
    std::vector<std::byte> bytes;
    Matrix strips;

    Cut(const Matrix& matrix, int64_t slices) : strips(packed_form(matrix, slices)) {
        strips.slice_stride = strips.slice_strips * strips.strip_bytes + 4096;
        bytes.resize(static_cast<size_t>(slices * strips.slice_stride));
        strips.data = bytes.data();
        for (int64_t strip = 0; strip < matrix.rows / kStripRows; ++strip)
            pack_strips(matrix, strip, 1, bytes.data() + (strip_at(strips, strip) - bytes.data()));
    }
};

void expect_rows(const Matrix& matrix, int64_t slices, const std::vector<int64_t>& rows) {
    const std::vector<float> numbers = decode_matrix(matrix);
    const Cut cut(matrix, slices);
    EXPECT_EQ(decode_matrix(cut.strips), numbers);
    ASSERT_EQ(slice_count(cut.strips), std::ssize(rows));
    auto from = numbers.begin();
    for (size_t i = 0; i < rows.size(); ++i) {
        const Matrix slice = strip_slice(cut.strips, static_cast<int64_t>(i));
        ASSERT_EQ(slice.rows, rows[i]) << "slice " << i;
        EXPECT_EQ(slice_count(slice), 1);
        EXPECT_EQ(decode_matrix(slice), std::vector<float>(from, from + slice.rows * kCols)) << "slice " << i;
        from += slice.rows * kCols;
    }
}

TEST(StripSlices, AreOfNearlyEqualSize) {
    const EncodedMatrix mxfp4 = encoded(kMxfp4, 13 * 16);
    expect_rows(mxfp4.view(), 1, {208});
    expect_rows(mxfp4.view(), 2, {112, 96});
    expect_rows(mxfp4.view(), 4, {64, 64, 64, 16});
}

TEST(StripSlices, BeginWhereScalesDo) {
    const EncodedMatrix fp8 = encoded(kFp8Blocks, 5 * 128 + 32);
    expect_rows(fp8.view(), 1, {672});
    expect_rows(fp8.view(), 2, {384, 288});
    expect_rows(fp8.view(), 4, {256, 256, 160});
}

TEST(StripSlices, OneScaleForAllRowsGoesWithEverySlice) {
    const EncodedMatrix fp8 = encoded({Format::kE4M3, Format::kF32, kWhole, 128, false}, 5 * 16);
    expect_rows(fp8.view(), 2, {48, 32});
    expect_rows(encoded(kFp8Blocks, 128).view(), 2, {64, 64});
}

TEST(StripSlices, MatricesOfFewRowsHaveFewer) {
    expect_rows(encoded(kMxfp4, 16).view(), 4, {16});
    expect_rows(encoded(kMxfp4, 48).view(), 4, {16, 16, 16});
}

TEST(StripSlices, WhatLiesInRowsIsOneSlice) {
    const EncodedMatrix mxfp4 = encoded(kMxfp4, 64);
    EXPECT_EQ(slice_count(mxfp4.view()), 1);
    EXPECT_EQ(decode_matrix(strip_slice(mxfp4.view(), 0)), decode_matrix(mxfp4.view()));
}

}  // namespace
}  // namespace thermocline::quant
