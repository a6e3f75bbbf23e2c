#include "src/quant/matrix.h"

#include "src/quant/reference.h"

#include <gtest/gtest.h>
#include <random>
#include <vector>

namespace thermocline::quant {
namespace {

std::vector<float> normal(int64_t n, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> distribution;
    std::vector<float> x(static_cast<size_t>(n));
    for (float& value : x) value = distribution(random);
    return x;
}

void expect_slice_equals_rows(const Matrix& whole, int64_t first, int64_t count) {
    const std::vector<float> all = decode_matrix(whole), part = decode_matrix(slice_rows(whole, first, count));
    EXPECT_EQ(part, std::vector<float>(all.begin() + first * whole.cols, all.begin() + (first + count) * whole.cols));
}

TEST(Matrix, BytesCountCodesAndScales) {
    const std::vector<float> w = normal(200 * 256, 1);
    EXPECT_EQ(encode_matrix({Format::kBF16}, w.data(), 200, 256).view().bytes(), 200 * 512);
    EXPECT_EQ(encode_matrix(kFp8Blocks, w.data(), 200, 256).view().bytes(), 200 * 256 + 2 * 2);
    EXPECT_EQ(encode_matrix(kMxfp4, w.data(), 200, 256).view().bytes(), 200 * (128 + 8));
    EXPECT_EQ(encode_matrix(kNvfp4, w.data(), 200, 256).view().bytes(), 200 * (128 + 16));
    EXPECT_EQ(encode_matrix(kInt4Group128, w.data(), 200, 256).view().bytes(), 200 * (128 + 4));
    const Recipe asymmetric = {Format::kInt4Pair, Format::kF16, 1, 128, true};
    EXPECT_EQ(encode_matrix(asymmetric, w.data(), 200, 256).view().bytes(), 200 * (128 + 4) + 25 * 2 * 4);
    EXPECT_EQ(encode_matrix({Format::kQ6_K}, w.data(), 200, 256).view().bytes(), 200 * 210);
}

TEST(Matrix, SlicesDecodeLikeTheRowsTheyAre) {
    const std::vector<float> w = normal(300 * 256, 2);
    const EncodedMatrix fp8 = encode_matrix(kFp8Blocks, w.data(), 300, 256);
    expect_slice_equals_rows(fp8.view(), 128, 172);
    expect_slice_equals_rows(fp8.view(), 256, 44);
    expect_slice_equals_rows(fp8.view(), 0, 1);
    expect_slice_equals_rows(fp8.view(), 140, 60);  // inside one row of scales
    EXPECT_DEATH(slice_rows(fp8.view(), 100, 60), "CHECK");
    EXPECT_DEATH(slice_rows(fp8.view(), 256, 45), "CHECK");

    const EncodedMatrix nvfp4 = encode_matrix(kNvfp4, w.data(), 300, 256);
    expect_slice_equals_rows(nvfp4.view(), 37, 11);
    const Recipe per_tensor = {Format::kE4M3, Format::kF32, kWhole, kWhole, false};
    const EncodedMatrix tensor = encode_matrix(per_tensor, w.data(), 300, 256);
    expect_slice_equals_rows(tensor.view(), 150, 150);
    const Recipe asymmetric = {Format::kInt4Pair, Format::kBF16, 1, 64, true};
    const EncodedMatrix int4 = encode_matrix(asymmetric, w.data(), 300, 256);
    expect_slice_equals_rows(int4.view(), 152, 33);
    EXPECT_DEATH(slice_rows(int4.view(), 153, 8), "CHECK");
    expect_slice_equals_rows(encode_matrix({Format::kQ4_0}, w.data(), 300, 256).view(), 299, 1);
}

}  // namespace
}  // namespace thermocline::quant
