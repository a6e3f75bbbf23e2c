// Round trips: what the encoders write decodes to within half a step of what went in.
#include "src/quant/reference.h"
#include "src/quant/scalar.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <random>
#include <vector>

namespace thermocline::quant {
namespace {

std::vector<float> normal(int64_t n, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> distribution;
    std::vector<float> x(static_cast<size_t>(n));
    for (float& value : x) value = distribution(random) * 0.05f;
    return x;
}

/// sqrt(sum (a - b)^2 / sum a^2)
double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
    double error = 0, power = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        error += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
        power += double{a[i]} * a[i];
    }
    return std::sqrt(error / power);
}

TEST(Encode, RoundTripErrorsAreThoseOfTheWidth) {
    constexpr int64_t kRows = 150, kCols = 512;
    const std::vector<float> w = normal(kRows * kCols, 1);
    struct Case {
        Recipe recipe;
        double low, high;  // of the relative error of normal weights: too small is as wrong as too large
    };
    const Case cases[] = {
        {{Format::kF32}, 0, 0},
        {{Format::kBF16}, 1e-3, 2e-3},
        {{Format::kF16}, 1e-4, 3e-4},
        {kFp8Blocks, 0.02, 0.03},
        {{Format::kE4M3, Format::kF32, 1, kWhole, false}, 0.02, 0.03},
        {{Format::kE4M3, Format::kBF16, kWhole, kWhole, false}, 0.02, 0.03},
        {{Format::kE4M3, Format::kF16, 1, 32, false}, 0.02, 0.03},
        {{Format::kE4M3Block128}, 0.02, 0.03},
        {kMxfp4, 0.10, 0.14},
        {{Format::kMxfp4Block}, 0.10, 0.14},
        {kNvfp4, 0.08, 0.11},
        {kInt4Group128, 0.09, 0.14},
        {{Format::kInt4Pair, Format::kBF16, 1, 32, true}, 0.05, 0.11},
        {{Format::kQ8_0}, 0.003, 0.008},
        {{Format::kQ4_0}, 0.06, 0.11},
        {{Format::kQ4_1}, 0.05, 0.10},
        {{Format::kQ5_0}, 0.03, 0.05},
        {{Format::kQ5_1}, 0.02, 0.05},
        {{Format::kQ4_K}, 0.05, 0.10},
        {{Format::kQ6_K}, 0.01, 0.03},
    };
    for (const Case& c : cases) {
        const EncodedMatrix encoded = encode_matrix(c.recipe, w.data(), kRows, kCols);
        const double error = relative_error(w, decode_matrix(encoded.view()));
        EXPECT_GE(error, c.low) << traits(c.recipe.format).name;
        EXPECT_LE(error, c.high) << traits(c.recipe.format).name;
    }
}

TEST(Encode, OfficialFp8HoldsItsOwnValuesExactly) {
    constexpr int64_t kRows = 200, kCols = 300;  // partial tiles at both edges
    std::vector<float> w = normal(kRows * kCols, 2);
    const EncodedMatrix once = encode_matrix(kFp8Blocks, w.data(), kRows, kCols);
    EXPECT_EQ(once.scales.size(), 2u * 3u);
    const std::vector<float> values = decode_matrix(once.view());
    const EncodedMatrix twice = encode_matrix(kFp8Blocks, values.data(), kRows, kCols);
    EXPECT_EQ(decode_matrix(twice.view()), values);
}

TEST(Encode, OfficialFp4HoldsItsOwnValuesExactly) {
    const std::vector<float> w = normal(40 * 96, 3);
    const std::vector<float> values = decode_matrix(encode_matrix(kMxfp4, w.data(), 40, 96).view());
    const EncodedMatrix pairs = encode_matrix(kMxfp4, values.data(), 40, 96);
    const EncodedMatrix blocks = encode_matrix({Format::kMxfp4Block}, values.data(), 40, 96);
    EXPECT_EQ(decode_matrix(pairs.view()), values);
    EXPECT_EQ(decode_matrix(blocks.view()), values);
    // Same codes, other order: byte j of a block holds elements j and j + 16, byte j of a row 2j and 2j + 1.
    const auto pair = [&](size_t k) { return (std::to_integer<int>(pairs.codes[k / 2]) >> (4 * (k % 2))) & 15; };
    for (size_t j = 0; j < 16; ++j) {
        EXPECT_EQ(std::to_integer<int>(blocks.codes[1 + j]), pair(j) | pair(j + 16) << 4);
    }
    EXPECT_EQ(blocks.codes[0], pairs.scales[0]);
}

TEST(Encode, Nvfp4UsesTheWholeRangeOfItsScales) {
    const std::vector<float> w = normal(64 * 256, 4);
    const EncodedMatrix m = encode_matrix(kNvfp4, w.data(), 64, 256);
    uint8_t largest = 0;
    for (const std::byte scale : m.scales) largest = std::max(largest, std::to_integer<uint8_t>(scale));
    EXPECT_EQ(largest, 0x7e);
    const float amax =
        std::fabs(*std::max_element(w.begin(), w.end(), [](float a, float b) { return std::fabs(a) < std::fabs(b); }));
    EXPECT_EQ(m.view().multiplier, amax / 2688.0f);
}

TEST(Encode, ZerosStayZeroWithUsableScales) {
    const std::vector<float> w(8 * 256, 0.0f);
    for (const Recipe& recipe :
         {kFp8Blocks, kMxfp4, kNvfp4, kInt4Group128, Recipe{Format::kInt4Pair, Format::kF16, 1, 32, true},
          Recipe{Format::kE4M3, Format::kF32, 1, kWhole, false}, Recipe{Format::kQ4_0}, Recipe{Format::kQ4_1},
          Recipe{Format::kQ5_0}, Recipe{Format::kQ5_1}, Recipe{Format::kQ8_0}, Recipe{Format::kQ4_K},
          Recipe{Format::kQ6_K}, Recipe{Format::kMxfp4Block}, Recipe{Format::kE4M3Block128}}) {
        EXPECT_EQ(decode_matrix(encode_matrix(recipe, w.data(), 8, 256).view()), w) << traits(recipe.format).name;
    }
}

TEST(Encode, ExtremesSurvive) {
    // One outlier per 32 in a sea of small numbers: the outlier must come back within one percent of itself.
    std::vector<float> w = normal(256, 5);
    for (size_t i = 0; i < w.size(); i += 32) w[i + 7] = i % 64 == 0 ? 3.0f : -3.0f;
    for (const Format format : {Format::kQ4_0, Format::kQ4_1, Format::kQ5_0, Format::kQ5_1, Format::kQ8_0,
                                Format::kQ4_K, Format::kQ6_K, Format::kE4M3Block128}) {
        const std::vector<float> y = decode_matrix(encode_matrix({format}, w.data(), 1, 256).view());
        for (size_t i = 0; i < w.size(); i += 32) EXPECT_NEAR(y[i + 7], w[i + 7], 0.03) << traits(format).name;
    }
}

TEST(Encode, AsymmetricInt4CoversOneSidedWeights) {
    std::vector<float> w = normal(16 * 64, 6);
    for (float& value : w) value = std::fabs(value);
    const Recipe asymmetric = {Format::kInt4Pair, Format::kF32, 1, 32, true};
    const Recipe symmetric = {Format::kInt4Pair, Format::kF32, 1, 32, false};
    const EncodedMatrix m = encode_matrix(asymmetric, w.data(), 16, 64);
    EXPECT_EQ(m.zero_points.size(), 2u * 2u * 4u);
    EXPECT_LT(relative_error(w, decode_matrix(m.view())),
              0.7 * relative_error(w, decode_matrix(encode_matrix(symmetric, w.data(), 16, 64).view())));
}

TEST(Encode, RefusesFormatsItCannotWrite) {
    const std::vector<float> w(256, 0.0f);
    std::byte out[512];
    EXPECT_DEATH(encode_row(Format::kIQ2_XS, w.data(), 256, out), "CHECK");
    EXPECT_DEATH(encode_row(Format::kQ4_K, w.data(), 128, out), "CHECK");
    EXPECT_DEATH(encode_matrix(kInt4Group128, w.data(), 1, 4), "CHECK");
}

}  // namespace
}  // namespace thermocline::quant
