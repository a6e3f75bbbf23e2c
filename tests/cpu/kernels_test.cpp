// Every tier that this processor runs, and the AVX-512 tiers emulated instruction by instruction (tests/cpu/simde),
// against the reference decoders and double precision.
#include "cpu/kernels.h"

#include "src/base/error.h"
#include "src/quant/activation.h"
#include "src/quant/kv_row.h"
#include "src/quant/reference.h"
#include "src/quant/scalar.h"
#include "tests/cpu/random_matrix.h"
#include "tests/cpu/tiers.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <functional>
#include <gtest/gtest.h>
#include <limits>

namespace thermocline::cpu {

namespace {

using quant::Format;
using quant::Matrix;

constexpr float kInfinity = std::numeric_limits<float>::infinity();

class Kernels : public testing::TestWithParam<Tier> {
protected:
    const KernelTable& kernels = *GetParam().kernels;

    std::vector<float> multiply(const Matrix& w, int64_t first, int64_t count, const std::vector<float>& x, int64_t m) {
        std::vector<float> y(static_cast<size_t>(m * count), std::nanf(""));
        kernels.matmul(w, first, count, x.data(), w.cols, m, y.data(), count);
        return y;
    }
};

INSTANTIATE_TEST_SUITE_P(, Kernels, testing::ValuesIn(tiers()), [](const auto& tier) { return tier.param.name; });

/// |a - b| / |b| over all numbers, b in double.
double relative_error(const std::vector<float>& a, const std::vector<double>& b) {
    double difference = 0.0, norm = 0.0;
    for (size_t i = 0; i < b.size(); ++i) {
        difference += (a[i] - b[i]) * (a[i] - b[i]);
        norm += b[i] * b[i];
    }
    return std::sqrt(difference / norm);
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

/// Formats, scales of every type and granularity, and columns that no vector or group divides.
std::vector<MatrixShape> all_shapes() {
    std::vector<MatrixShape> shapes = every_format(21, 768);
    for (const MatrixShape& shape : every_format(6, 2 * 128 + 64)) shapes.push_back(shape);
    for (const Format format : {Format::kF32, Format::kF16, Format::kBF16}) {
        for (const int64_t cols : {1, 7, 33, 300}) shapes.push_back({.format = format, .rows = 5, .cols = cols});
    }
    for (const Format scales : {Format::kF32, Format::kBF16, Format::kF16, Format::kE8M0}) {
        for (const int64_t cols : {1000, 34}) {
            shapes.push_back({Format::kE4M3, 13, cols, scales, 128, 128});
            shapes.push_back({Format::kE4M3, 13, cols, scales, 1, cols});
            shapes.push_back({Format::kE4M3, 13, cols, scales, 13, 1 << 20});
            shapes.push_back({Format::kE4M3, 13, cols, scales, 5, 48});
            shapes.push_back({Format::kE4M3, 13, cols, scales, 1, 32});
            shapes.push_back({Format::kE2M1Pair, 13, cols, scales, 1, 32});
            shapes.push_back({Format::kE2M1Pair, 13, cols, scales, 1, 24});
            shapes.push_back({Format::kInt4Pair, 19, cols, scales, 1, 128});
            shapes.push_back({Format::kInt4Pair, 19, cols, scales, 1, 128, true});
            shapes.push_back({Format::kInt4Pair, 19, cols, scales, 1, 32, true});
            shapes.push_back({Format::kInt4Pair, 19, cols, scales, 1, cols, true});
            shapes.push_back({Format::kInt4Pair, 19, cols, scales, 1, 8, true});
        }
    }
    shapes.push_back({Format::kE2M1Pair, 9, 272, Format::kE4M3, 1, 16, false, 1.7e-4f});
    shapes.push_back({Format::kBF16, 9, 100, Format::kF32, 3, 10, false, 0.5f});
    return shapes;
}

// ---- weights ----------------------------------------------------------------------------------------------------

TEST_P(Kernels, DecodeRowEqualsTheReference) {
    for (const MatrixShape& shape : all_shapes()) {
        const RandomMatrix random(shape, 1);
        const Matrix w = random.view();
        std::vector<float> row(static_cast<size_t>(w.cols));
        const std::vector<float> expected = quant::decode_matrix(w);
        for (int64_t n = 0; n < w.rows; ++n) {
            kernels.decode_row(w, n, row.data());
            for (int64_t k = 0; k < w.cols; ++k) {
                ASSERT_EQ(row[static_cast<size_t>(k)], expected[static_cast<size_t>(n * w.cols + k)])
                    << to_string(shape) << " row " << n << " column " << k;
            }
        }
    }
}

TEST_P(Kernels, MatmulEqualsTheReferenceInDouble) {
    constexpr int64_t kTokens = 5;
    for (const MatrixShape& shape : all_shapes()) {
        const RandomMatrix random(shape, 2);
        const Matrix w = random.view();
        const std::vector<float> x = random_floats(kTokens * w.cols, 3), weights = quant::decode_matrix(w);
        std::vector<double> expected;
        for (int64_t t = 0; t < kTokens; ++t) {
            for (int64_t n = 0; n < w.rows; ++n) {
                double sum = 0.0;
                for (int64_t k = 0; k < w.cols; ++k) {
                    sum +=
                        double{weights[static_cast<size_t>(n * w.cols + k)]} * x[static_cast<size_t>(t * w.cols + k)];
                }
                expected.push_back(sum);
            }
        }
        EXPECT_LT(relative_error(multiply(w, 0, w.rows, x, kTokens), expected), 2e-6) << to_string(shape);
    }
}

TEST_P(Kernels, MatmulDoesNotDependOnTheNumberOfVectors) {
    constexpr int64_t kMost = 64;
    for (const MatrixShape& shape : all_shapes()) {
        const RandomMatrix random(shape, 4);
        const Matrix w = random.view();
        const std::vector<float> x = random_floats(kMost * w.cols, 5);
        std::vector<float> one_by_one;
        for (int64_t t = 0; t < kMost; ++t) {
            const auto row = x.begin() + t * w.cols;
            const std::vector<float> y = multiply(w, 0, w.rows, {row, row + w.cols}, 1);
            one_by_one.insert(one_by_one.end(), y.begin(), y.end());
        }
        for (const int64_t m : {2, 3, 7, 8, 17, 64}) {
            const std::vector<float> y = multiply(w, 0, w.rows, x, m);
            ASSERT_TRUE(same_bits(y, {one_by_one.begin(), one_by_one.begin() + m * w.rows})) << to_string(shape) << m;
        }
    }
}

TEST_P(Kernels, MatmulDoesNotDependOnTheSplitOfTheRows) {
    for (const MatrixShape& shape : every_format(37, 512)) {
        const RandomMatrix random(shape, 6);
        const Matrix w = random.view();
        for (const int64_t m : {1, 4}) {
            const std::vector<float> x = random_floats(m * w.cols, 7), whole = multiply(w, 0, w.rows, x, m);
            for (const int64_t part : {1, 2, 5, 16, 30}) {
                for (int64_t first = 0; first < w.rows; first += part) {
                    const int64_t count = std::min(part, w.rows - first);
                    const std::vector<float> y = multiply(w, first, count, x, m);
                    for (int64_t t = 0; t < m; ++t) {
                        ASSERT_EQ(std::memcmp(&y[static_cast<size_t>(t * count)],
                                              &whole[static_cast<size_t>(t * w.rows + first)],
                                              static_cast<size_t>(count) * sizeof(float)),
                                  0)
                            << to_string(shape) << " rows from " << first << " by " << part;
                    }
                }
            }
        }
    }
}

TEST_P(Kernels, MatmulTakesStridesAndUnalignedVectors) {
    const RandomMatrix random({Format::kE2M1Pair, 11, 320, Format::kE8M0, 1, 32}, 8);
    const Matrix w = random.view();
    const std::vector<float> x = random_floats(3 * w.cols, 9), expected = multiply(w, 0, w.rows, x, 3);
    std::vector<float> wide(static_cast<size_t>(3 * (w.cols + 5) + 1)), y(3 * 20 + 1, 0.0f);
    for (int64_t t = 0; t < 3; ++t)
        std::copy_n(&x[static_cast<size_t>(t * w.cols)], w.cols, &wide[static_cast<size_t>(t * (w.cols + 5) + 1)]);
    kernels.matmul(w, 0, w.rows, wide.data() + 1, w.cols + 5, 3, y.data() + 1, 20);
    for (size_t t = 0; t < 3; ++t) {
        for (size_t n = 0; n < 11; ++n) EXPECT_EQ(y[t * 20 + n + 1], expected[t * 11 + n]);
        for (size_t n = 11; n < 20; ++n) EXPECT_EQ(y[t * 20 + n + 1], 0.0f);
    }
}

// ---- vectors ------------------------------------------------------------------------------------------------------

constexpr int64_t kSizes[] = {0, 1, 3, 8, 15, 16, 31, 64, 100, 129, 517};

TEST_P(Kernels, DotAndSumSquares) {
    for (const int64_t n : kSizes) {
        const std::vector<float> a = random_floats(n + 1, 10), b = random_floats(n, 11);
        double dot = 0.0, squares = 0.0, magnitude = 0.0;
        for (int64_t i = 0; i < n; ++i) {
            const double x = a[static_cast<size_t>(i + 1)], y = b[static_cast<size_t>(i)];
            dot += x * y, squares += x * x, magnitude += std::abs(x * y);
        }
        EXPECT_NEAR(kernels.dot(a.data() + 1, b.data(), n), dot, 2e-7 * magnitude);
        EXPECT_NEAR(kernels.sum_squares(a.data() + 1, n), squares, 4e-7 * squares);
    }
}

TEST_P(Kernels, AxpyAndScaleTouchExactlyTheirNumbers) {
    for (const int64_t n : kSizes) {
        const std::vector<float> x = random_floats(n, 12), w = random_floats(n, 13), y0 = random_floats(n + 1, 14);
        std::vector<float> y = y0, scaled = y0, weighted = y0;
        kernels.axpy(0.7f, x.data(), y.data(), n);
        kernels.scale(0.7f, x.data(), nullptr, scaled.data(), n);
        kernels.scale(0.7f, x.data(), w.data(), weighted.data(), n);
        for (size_t i = 0; i < static_cast<size_t>(n); ++i) {
            EXPECT_NEAR(y[i], y0[i] + 0.7 * x[i], 1e-6);
            EXPECT_EQ(scaled[i], 0.7f * x[i]);
            EXPECT_NEAR(weighted[i], 0.7 * x[i] * w[i], 1e-6);
        }
        EXPECT_EQ(y.back(), y0.back());
        EXPECT_EQ(scaled.back(), y0.back());
        EXPECT_EQ(weighted.back(), y0.back());
    }
}

TEST_P(Kernels, RoundBf16EqualsTheScalarRule) {
    std::vector<float> x = random_floats(1000, 15);
    for (uint32_t i = 0; i < 70000; ++i) x.push_back(std::bit_cast<float>(i * 61357u));
    for (const float special : {kInfinity, -kInfinity, 3.4e38f, -0.0f, std::nanf(""), 1e-45f}) x.push_back(special);
    std::vector<float> rounded = x;
    kernels.round_bf16(rounded.data(), static_cast<int64_t>(x.size()));
    for (size_t i = 0; i < x.size(); ++i) {
        ASSERT_EQ(std::bit_cast<uint32_t>(rounded[i]), std::bit_cast<uint32_t>(quant::round_bf16(x[i]))) << x[i];
    }
}

TEST_P(Kernels, RoundE4M3EqualsTheReference) {
    for (const float size : {1.0f, 1e-6f, 1e-3f, 3000.0f, 1e30f}) {
        for (const int64_t n : {1, 100, 128, 333, 2048}) {
            std::vector<float> x = random_floats(n, 16);
            for (float& value : x) value *= size;
            x[0] = -0.0f;
            std::vector<float> expected = x, rounded(x.size()), in_place = x;
            quant::round_e4m3_blocks128(expected.data(), n);
            kernels.round_e4m3(x.data(), 1.0f, rounded.data(), n);
            kernels.round_e4m3(in_place.data(), 1.0f, in_place.data(), n);
            EXPECT_TRUE(same_bits(rounded, expected)) << size << " " << n;
            EXPECT_TRUE(same_bits(in_place, expected));
        }
    }
    // ties, the ends of the range, and what a bad activation may hold
    std::vector<float> x;
    for (int i = 0; i < 128; ++i) x.push_back(static_cast<float>(i) * 0x1p-10f);
    for (int i = 0; i < 128; ++i) x.push_back(static_cast<float>(i % 2 ? -i : i) * 3.5f);
    for (const float special : {448.0f, 17.0f, 18.0f, 19.0f, std::nanf(""), 0.3f}) x.push_back(special);
    std::vector<float> expected = x, rounded = x;
    quant::round_e4m3_blocks128(expected.data(), static_cast<int64_t>(x.size()));
    kernels.round_e4m3(x.data(), 1.0f, rounded.data(), static_cast<int64_t>(x.size()));
    for (size_t i = 0; i < x.size(); ++i) {
        EXPECT_TRUE(rounded[i] == expected[i] || (std::isnan(rounded[i]) && std::isnan(expected[i]))) << x[i];
    }
}

TEST_P(Kernels, SwigluClampsAndIsAccurate) {
    std::vector<float> gate = random_floats(203, 17), up = random_floats(203, 18);
    for (size_t i = 0; i < gate.size(); ++i) gate[i] *= 12.0f, up[i] *= 12.0f;
    gate[0] = -300.0f, gate[1] = 300.0f, gate[2] = 0.0f;
    for (const float limit : {10.0f, kInfinity}) {
        std::vector<float> out(gate.size());
        kernels.swiglu(gate.data(), up.data(), limit, 0.37f, out.data(), static_cast<int64_t>(out.size()));
        for (size_t i = 0; i < out.size(); ++i) {
            const double a = std::min(gate[i], limit), b = std::clamp(up[i], -limit, limit);
            const double expected = a / (1.0 + std::exp(-a)) * b * 0.37f;
            EXPECT_NEAR(out[i], expected, 5e-7 * std::abs(expected) + 1e-30) << gate[i];
        }
    }
}

TEST_P(Kernels, RopeRotatesPairsAndBack) {
    for (const int64_t dims : {2, 6, 8, 64, 70}) {
        constexpr int64_t kCount = 3;
        const int64_t stride = dims + 5;
        const std::vector<float> x = random_floats(kCount * stride, 31);
        std::vector<float> rotation, y = x;
        for (int64_t i = 0; i < dims / 2; ++i) {
            rotation.push_back(std::cos(0.3f * static_cast<float>(i + 1)));
            rotation.push_back(std::sin(0.3f * static_cast<float>(i + 1)));
        }
        kernels.rope(y.data(), stride, kCount, rotation.data(), dims, 1.0f);
        for (size_t i = 0; i < x.size(); ++i) {
            const auto c = static_cast<int64_t>(i) % stride;
            if (c >= dims) {
                EXPECT_EQ(y[i], x[i]) << "behind the rotated channels";
                continue;
            }
            const size_t pair = i - static_cast<size_t>(c % 2), angle = static_cast<size_t>(c - c % 2);
            const double cosine = rotation[angle], sine = rotation[angle + 1], a = x[pair], b = x[pair + 1];
            EXPECT_NEAR(y[i], c % 2 ? a * sine + b * cosine : a * cosine - b * sine, 1e-6);
        }
        kernels.rope(y.data(), stride, kCount, rotation.data(), dims, -1.0f);
        for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(y[i], x[i], 1e-6);
    }
}

TEST_P(Kernels, HadamardEqualsTheReference) {
    for (const int64_t n : {1, 2, 4, 8, 16, 32, 64, 128, 512}) {
        std::vector<float> x = random_floats(n, 32), expected = x;
        quant::hadamard(expected.data(), n);
        kernels.hadamard(x.data(), n);
        EXPECT_TRUE(same_bits(x, expected)) << n;
    }
}

TEST_P(Kernels, RouteScoresAreAccurate) {
    std::vector<float> x;
    for (int i = -8600; i <= 10000; ++i) x.push_back(static_cast<float>(i) * 0.01f);
    for (const float extreme : {-1e30f, 1e30f, kInfinity, -kInfinity, std::nanf(""), -0.0f}) x.push_back(extreme);
    std::vector<float> scores = x;
    kernels.route_scores(scores.data(), static_cast<int64_t>(x.size()));
    for (size_t i = 0; i < x.size(); ++i) {
        const double z = x[i], expected = std::sqrt(std::max(z, 0.0) + std::log1p(std::exp(-std::abs(z))));
        if (std::isnan(z) || std::isinf(expected)) {
            EXPECT_TRUE(std::isnan(z) ? std::isnan(scores[i]) : scores[i] == kInfinity);
        } else {
            ASSERT_NEAR(scores[i], expected, 3e-7 * expected) << z;
        }
    }
}

// ---- the largest of many ------------------------------------------------------------------------------------------

TEST_P(Kernels, LargestIsTheFirstOfEqualOnes) {
    for (const int64_t n : {1, 2, 5, 8, 16, 17, 100, 1000}) {
        const std::vector<float> x = random_floats(n, 33);
        for (const int64_t at : {int64_t{0}, n / 3, n - 1}) {
            std::vector<float> y = x;
            for (float& number : y) number = std::min(number, 0.5f) - 2.0f;  // all negative: padding must not win
            EXPECT_EQ(kernels.largest(y.data(), n), std::max_element(y.begin(), y.end()) - y.begin());
            y[static_cast<size_t>(at)] = y.back() = -0.25f;
            EXPECT_EQ(kernels.largest(y.data(), n), at);
            y.back() = std::nanf("");
            EXPECT_EQ(kernels.largest(y.data(), n), n - 1);
            y.assign(y.size(), -kInfinity);
            EXPECT_EQ(kernels.largest(y.data(), n), 0);
        }
    }
    const float zeros[] = {-0.0f, 0.0f};
    EXPECT_EQ(kernels.largest(zeros, 2), 0);
}

TEST_P(Kernels, KthLargestAndAtLeastEqualASort) {
    const auto check = [&](const std::vector<float>& x) {
        const auto n = static_cast<int64_t>(x.size());
        std::vector<float> sorted = x;
        for (float& number : sorted) number = std::isnan(number) ? -kInfinity : number;
        std::sort(sorted.begin(), sorted.end(), std::greater<float>());
        std::vector<int32_t> work(x.size());
        for (const int64_t k : {int64_t{1}, int64_t{2}, n / 7, n / 2, n - 1, n}) {
            if (k < 1 || k > n) continue;
            const float border = kernels.kth_largest(x.data(), n, k, work.data());
            ASSERT_EQ(border, sorted[static_cast<size_t>(k - 1)]) << "number " << k << " of " << n;
            std::vector<int32_t> expected;
            for (int32_t i = 0; i < n; ++i)
                if (x[static_cast<size_t>(i)] >= border) expected.push_back(i);
            work.resize(static_cast<size_t>(kernels.at_least(x.data(), n, border, work.data())));
            ASSERT_EQ(work, expected);
            work.resize(x.size());
        }
    };
    for (const int64_t n : {1, 3, 8, 31, 64, 1000, 5003}) {
        std::vector<float> x = random_floats(n, 34);
        check(x);
        for (float& number : x) number = std::round(number * 4.0f);  // many ties
        check(x);
        for (float& number : x) number = std::exp(number * 20.0f);  // every size
        check(x);
        x[0] = kInfinity, x.back() = -kInfinity, x[x.size() / 2] = std::nanf("");
        check(x);
    }
    check(std::vector<float>(100, 0.0f));
    check({3.4e38f, -3.4e38f, 1e-45f, -1e-45f, 0.0f});
}

TEST_P(Kernels, ExpSumWeighsWhatIsLargeEnough) {
    for (const int64_t n : {1, 7, 8, 40, 1001}) {
        std::vector<float> x = random_floats(n, 35), weights(x.size() + 1, 7.0f);
        for (float& number : x) number = std::min(number * 10.0f, 31.0f);
        x[0] = -kInfinity;
        const float top = 31.0f, factor = 0.7f;
        for (const float least : {-kInfinity, 0.0f}) {
            const float sum = kernels.exp_sum(x.data(), n, top, factor, least, weights.data());
            double expected_sum = 0.0;
            for (size_t i = 0; i < x.size(); ++i) {
                const double z = (double{x[i]} - top) * factor, expected = x[i] >= least ? std::exp(z) : 0.0;
                // (x - top) * factor is rounded twice
                EXPECT_NEAR(weights[i], expected, expected > 0.0 ? (3e-7 + 1.5e-7 * std::abs(z)) * expected : 0.0);
                expected_sum += expected;
            }
            EXPECT_NEAR(sum, expected_sum, 3e-6 * expected_sum);
            EXPECT_EQ(weights.back(), 7.0f);
        }
    }
}

// ---- attention ----------------------------------------------------------------------------------------------------

struct KvCase {
    quant::KvFormat format;
    int64_t width, rope;
};

constexpr KvCase kKvCases[] = {
    {quant::KvFormat::kF32, 512, 64},    {quant::KvFormat::kBF16, 512, 64}, {quant::KvFormat::kFp8, 512, 64},
    {quant::KvFormat::kFp4, 128, 0},     {quant::KvFormat::kF32, 24, 8},    {quant::KvFormat::kBF16, 23, 8},
    {quant::KvFormat::kFp8, 40, 8},      {quant::KvFormat::kFp8, 101, 3},   {quant::KvFormat::kFp4, 36, 0},
    {quant::KvFormat::kFp8, 16, 16},     {quant::KvFormat::kFp4, 70, 0},    {quant::KvFormat::kFp8F32, 101, 3},
    {quant::KvFormat::kFp8F32, 512, 64},
};

TEST_P(Kernels, EncodeKvEqualsTheReference) {
    std::vector<float> specials;
    for (int i = 0; i < 512; ++i) specials.push_back(static_cast<float>(i % 2 ? -i : i) * 0x1p-9f);  // ties, subnormals
    for (const KvCase& c : kKvCases) {
        const auto size = static_cast<size_t>(quant::kv_row_bytes(c.format, c.width, c.rope));
        for (const float scale : {1.0f, 1e-30f, 1e-4f, 448.0f, 1e30f}) {
            std::vector<float> x = random_floats(c.width, 36);
            for (int variant = 0; variant < 3; ++variant) {
                if (variant == 1) x = specials;
                if (variant == 2) {
                    x = random_floats(c.width, 37);
                    x[1] = -kInfinity, x[3] = std::nanf(""), x[5] = -0.0f;
                }
                for (float& number : x) number *= scale;
                std::vector<std::byte> expected(size), row(size + 1, std::byte{0xcc});
                quant::encode_kv_row(c.format, x.data(), c.width, c.rope, expected.data());
                kernels.encode_kv(c.format, x.data(), c.width, c.rope, row.data());
                EXPECT_EQ(std::memcmp(row.data(), expected.data(), size), 0)
                    << static_cast<int>(c.format) << " " << c.width << " times " << scale << " variant " << variant;
                EXPECT_EQ(row.back(), std::byte{0xcc});
            }
        }
    }
}

TEST_P(Kernels, DecodeKvEqualsTheReference) {
    for (const KvCase& c : kKvCases) {
        constexpr int64_t kRows = 5;
        const std::vector<float> x = random_floats(kRows * c.width, 19);
        const int64_t size = quant::kv_row_bytes(c.format, c.width, c.rope);
        std::vector<std::byte> store(static_cast<size_t>(kRows * (size + 1)));
        std::vector<const std::byte*> rows;
        std::vector<float> expected(x.size()), decoded(x.size());
        for (int64_t i = 0; i < kRows; ++i) {
            std::byte* row = store.data() + i * (size + 1);
            quant::encode_kv_row(c.format, x.data() + i * c.width, c.width, c.rope, row);
            quant::decode_kv_row(c.format, row, c.width, c.rope, expected.data() + i * c.width);
            rows.push_back(row);
        }
        kernels.decode_kv(c.format, rows.data(), kRows, c.width, c.rope, decoded.data(), c.width);
        EXPECT_TRUE(same_bits(decoded, expected)) << static_cast<int>(c.format) << " " << c.width;
        std::vector<float> apart(static_cast<size_t>(kRows * (c.width + 3)), 7.0f);
        kernels.decode_kv(c.format, rows.data(), kRows, c.width, c.rope, apart.data(), c.width + 3);
        for (int64_t i = 0; i < kRows; ++i) {
            const float* row = apart.data() + i * (c.width + 3);
            EXPECT_EQ(std::memcmp(row, &expected[static_cast<size_t>(i * c.width)], 4 * static_cast<size_t>(c.width)),
                      0);
            EXPECT_EQ(row[c.width], 7.0f);
        }
    }
}

struct Attention {
    int64_t heads, count, width;
};

constexpr Attention kAttention[] = {{64, 130, 512}, {1, 1, 8}, {5, 7, 24}, {3, 9, 33}, {8, 4, 128}, {7, 6, 300}};

/// A head panel of q [heads, width] and the number of heads that it is padded to.
struct Panel {
    std::vector<float> numbers;
    int64_t heads;

    Panel(const KernelTable& kernels, const float* q, int64_t count, int64_t width)
        : heads((count + kernels.head_block - 1) / kernels.head_block * kernels.head_block) {
        numbers.assign(static_cast<size_t>(heads * width), std::nanf(""));
        kernels.head_panel(q, count, width, numbers.data());
    }
};

TEST_P(Kernels, HeadPanelIsTransposedInBlocksAndPaddedWithZeros) {
    EXPECT_EQ(kMostHeadBlock % kernels.head_block, 0);
    for (const auto& [heads, count, width] : kAttention) {
        const std::vector<float> q = random_floats(heads * width, 20);
        const Panel panel(kernels, q.data(), heads, width);
        for (int64_t h = 0; h < panel.heads; ++h) {
            for (int64_t c = 0; c < width; ++c) {
                const int64_t block = kernels.head_block;
                const float found = panel.numbers[static_cast<size_t>((h / block * width + c) * block + h % block)];
                ASSERT_EQ(found, h < heads ? q[static_cast<size_t>(h * width + c)] : 0.0f) << h << " " << c;
            }
        }
    }
}

TEST_P(Kernels, AttentionScores) {
    for (const auto& [heads, count, width] : kAttention) {
        const int64_t keys_stride = width + 5;
        const std::vector<float> q = random_floats(heads * width, 20), keys = random_floats(count * keys_stride, 21);
        const Panel panel(kernels, q.data(), heads, width);
        const int64_t stride = panel.heads + 3;
        std::vector<float> logits(static_cast<size_t>(count * stride), 1.0f);
        const auto score = [&](int64_t first_key, int64_t n) {
            kernels.attention_scores(panel.numbers.data(), heads, keys.data() + first_key * keys_stride, keys_stride, n,
                                     width, 0.25f, logits.data() + first_key * stride, stride);
        };
        score(0, count);
        for (int64_t j = 0; j < count; ++j) {
            for (int64_t h = 0; h < stride; ++h) {
                double expected = 0.0;
                for (int64_t c = 0; c < width && h < heads; ++c) {
                    expected +=
                        double{q[static_cast<size_t>(h * width + c)]} * keys[static_cast<size_t>(j * keys_stride + c)];
                }
                const float found = logits[static_cast<size_t>(j * stride + h)];
                EXPECT_NEAR(found, h < panel.heads ? 0.25 * expected : 1.0, 1e-5);
            }
        }
        const std::vector<float> together = logits;
        for (int64_t j = 0; j < count; j += 3) score(j, std::min<int64_t>(3, count - j));
        EXPECT_TRUE(same_bits(logits, together)) << "depends on how many keys are scored at once";
    }
}

TEST_P(Kernels, AttentionValues) {
    for (const auto& [heads, count, width] : kAttention) {
        const int64_t stride = heads + 1, keys_stride = width + 2;
        const std::vector<float> p = random_floats(count * stride, 22), keys = random_floats(count * keys_stride, 23);
        const std::vector<float> before = random_floats(heads * width, 24), shrink = random_floats(heads, 30);
        std::vector<float> out = before;
        const auto add = [&](int64_t h, int64_t n) {
            kernels.attention_values(p.data() + h, stride, shrink.data() + h, n, keys.data(), keys_stride, count, width,
                                     out.data() + h * width);
        };
        add(0, heads);
        for (int64_t h = 0; h < heads; ++h) {
            for (int64_t c = 0; c < width; ++c) {
                double expected = double{shrink[static_cast<size_t>(h)]} * before[static_cast<size_t>(h * width + c)];
                double magnitude = std::abs(expected);
                for (int64_t j = 0; j < count; ++j) {
                    const double term =
                        double{p[static_cast<size_t>(j * stride + h)]} * keys[static_cast<size_t>(j * keys_stride + c)];
                    expected += term, magnitude += std::abs(term);
                }
                ASSERT_NEAR(out[static_cast<size_t>(h * width + c)], expected, 1e-6 * magnitude);
            }
        }
        const std::vector<float> together = out;
        out = before;
        for (int64_t h = 0; h < heads; ++h) add(h, 1);
        EXPECT_TRUE(same_bits(out, together)) << "depends on how many heads are computed at once";
    }
}

TEST_P(Kernels, IndexScores) {
    for (const auto& [heads, count, width] : kAttention) {
        const std::vector<float> q = random_floats(heads * width, 25), keys = random_floats(count * width, 26);
        const std::vector<float> gates = random_floats(heads, 27);
        const Panel panel(kernels, q.data(), heads, width);
        std::vector<float> scores(static_cast<size_t>(count));
        const auto score = [&](int64_t first, int64_t n) {
            kernels.index_scores(panel.numbers.data(), gates.data(), heads, keys.data() + first * width, n, width,
                                 scores.data() + first);
        };
        score(0, count);
        for (int64_t j = 0; j < count; ++j) {
            double expected = 0.0;
            for (int64_t h = 0; h < heads; ++h) {
                double dot = 0.0;
                for (int64_t c = 0; c < width; ++c) {
                    dot += double{q[static_cast<size_t>(h * width + c)]} * keys[static_cast<size_t>(j * width + c)];
                }
                expected += gates[static_cast<size_t>(h)] * std::max(0.0, dot);
            }
            EXPECT_NEAR(scores[static_cast<size_t>(j)], expected, 1e-5 * std::sqrt(static_cast<double>(heads * width)));
        }
        const std::vector<float> together = scores;
        for (int64_t j = 0; j < count; j += 5) score(j, std::min<int64_t>(5, count - j));
        EXPECT_TRUE(same_bits(scores, together)) << "depends on how many keys are scored at once";
    }
    const std::vector<float> key = {std::nanf("")}, one = {1.0f}, bad_gate = {std::nanf("")};
    const Panel panel(kernels, one.data(), 1, 1);
    float score = 0.0f;
    kernels.index_scores(panel.numbers.data(), bad_gate.data(), 1, one.data(), 1, 1, &score);
    EXPECT_EQ(score, -kInfinity);
    kernels.index_scores(panel.numbers.data(), one.data(), 1, key.data(), 1, 1, &score);
    EXPECT_EQ(score, 0.0f) << "the larger of 0 and NaN";
}

TEST_P(Kernels, IndexScoresOfFp4AreExactByGroups) {
    constexpr quant::KvFormat kFormat = quant::KvFormat::kFp4;
    for (const auto& [heads, count, width] : {Attention{64, 130, 128}, {1, 1, 32}, {5, 7, 96}, {70, 9, 512}}) {
        std::vector<float> q = random_floats(heads * width, 31), keys = random_floats(count * width, 32);
        const std::vector<float> gates = random_floats(heads, 33);
        for (size_t i = 0; i < keys.size(); ++i) keys[i] *= std::exp2(static_cast<float>(i / 32 % 40) - 20.0f);
        std::fill_n(keys.begin(), 32, 0.0f);
        const int64_t row_bytes = quant::kv_row_bytes(kFormat, width, 0);
        std::vector<std::byte> codes(static_cast<size_t>(std::max(heads, count) * row_bytes));
        const auto round = [&](std::vector<float>& numbers) {
            for (int64_t i = 0; i < std::ssize(numbers) / width; ++i) {
                quant::encode_kv_row(kFormat, numbers.data() + i * width, width, 0, codes.data() + i * row_bytes);
                quant::decode_kv_row(kFormat, codes.data() + i * row_bytes, width, 0, numbers.data() + i * width);
            }
        };
        round(q);
        round(keys);
        std::vector<const std::byte*> rows;
        for (int64_t j = 0; j < count; ++j) rows.push_back(codes.data() + j * row_bytes);
        const int64_t padded = (heads + kMostHeadBlock - 1) / kMostHeadBlock * kMostHeadBlock;
        std::vector<float> panel(static_cast<size_t>(padded * width), std::nanf(""));
        kernels.fp4_panel(q.data(), heads, width, panel.data());
        std::vector<float> scores(static_cast<size_t>(count));
        std::vector<quant::Int8Group> work(static_cast<size_t>(count * width / 32));
        const auto score = [&](int64_t first, int64_t n) {
            kernels.index_scores_fp4(panel.data(), gates.data(), heads, rows.data() + first, n, width, work.data(),
                                     scores.data() + first);
        };
        score(0, count);
        for (int64_t j = 0; j < count; ++j) {
            double expected = 0.0, magnitude = 0.0;
            for (int64_t h = 0; h < heads; ++h) {
                double dot = 0.0, groups = 0.0;
                for (int64_t g = 0; g < width; g += 32) {
                    double sum = 0.0;
                    for (int64_t c = g; c < g + 32; ++c)
                        sum += double{q[static_cast<size_t>(h * width + c)]} * keys[static_cast<size_t>(j * width + c)];
                    dot += sum, groups += std::abs(sum);
                }
                expected += gates[static_cast<size_t>(h)] * std::max(0.0, dot);
                magnitude += std::abs(gates[static_cast<size_t>(h)]) * groups;
            }
            ASSERT_NEAR(scores[static_cast<size_t>(j)], expected, 5e-7 * magnitude) << "key " << j;
        }
        const std::vector<float> together = scores;
        for (int64_t j = 0; j < count; j += 5) score(j, std::min<int64_t>(5, count - j));
        EXPECT_TRUE(same_bits(scores, together)) << "depends on how many keys are scored at once";
    }
}

/// exp(x - maximum) by softmax_keys, a number a key, one head; the other heads of the block see zeros.
struct Softmax {
    std::vector<float> exponentials;
    float maximum, sum, shrink;

    Softmax(const KernelTable& kernels, const std::vector<float>& x, float maximum_before, float sum_before) {
        const auto block = static_cast<size_t>(kernels.head_block), head = block - 1;
        std::vector<float> logits(x.size() * block, 0.0f), maxima(block, 0.0f), sums(block, 1.0f), shrinks(block);
        for (size_t j = 0; j < x.size(); ++j) logits[j * block + head] = x[j];
        maxima[head] = maximum_before;
        sums[head] = sum_before;
        kernels.softmax_keys(logits.data(), kernels.head_block, static_cast<int64_t>(x.size()), kernels.head_block,
                             maxima.data(), sums.data(), shrinks.data());
        for (size_t j = 0; j < x.size(); ++j) exponentials.push_back(logits[j * block + head]);
        maximum = maxima[head], sum = sums[head], shrink = shrinks[head];
        EXPECT_EQ(maxima[0], block > 1 ? 0.0f : maximum);
        EXPECT_EQ(sums[0], 1.0f + static_cast<float>(x.size()));
    }
};

TEST_P(Kernels, ExponentialIsAccurate) {
    std::vector<float> x;
    for (int i = 0; i < 20000; ++i) x.push_back(-87.3f * static_cast<float>(i) / 20000.0f);
    for (int i = 0; i < 1000; ++i) x.push_back(-1e-3f * static_cast<float>(i) / 1000.0f);
    const Softmax softmax(kernels, x, 0.0f, 0.0f);
    double expected_sum = 0.0;
    for (size_t i = 0; i < x.size(); ++i) {
        const double expected = std::exp(static_cast<double>(x[i]));
        ASSERT_NEAR(softmax.exponentials[i], expected, 2e-7 * expected) << x[i];
        expected_sum += expected;
    }
    EXPECT_NEAR(softmax.sum, expected_sum, 1e-5 * expected_sum);
    EXPECT_EQ(softmax.exponentials[0], 1.0f);
    EXPECT_EQ(softmax.shrink, 1.0f);
}

TEST_P(Kernels, SoftmaxShrinksWhatCameBefore) {
    const Softmax grows(kernels, {1.0f, 3.0f, -kInfinity, -200.0f}, 2.0f, 5.0f);
    EXPECT_EQ(grows.maximum, 3.0f);
    EXPECT_NEAR(grows.shrink, std::exp(-1.0), 1e-7);
    EXPECT_NEAR(grows.sum, 5.0 * std::exp(-1.0) + std::exp(-2.0) + 1.0, 1e-6);
    EXPECT_EQ(grows.exponentials[2], 0.0f);
    EXPECT_EQ(grows.exponentials[3], 0.0f);
    const Softmax stays(kernels, {1.0f, -3.4e38f}, 2.0f, 5.0f);
    EXPECT_EQ(stays.maximum, 2.0f);
    EXPECT_EQ(stays.shrink, 1.0f);
    EXPECT_NEAR(stays.sum, 5.0 + std::exp(-1.0), 1e-6);
    const Softmax far(kernels, {3e38f}, -3e38f, 5.0f);
    EXPECT_EQ(far.sum, 1.0f);
    EXPECT_TRUE(std::isnan(Softmax(kernels, {std::nanf(""), 1.0f}, 0.0f, 1.0f).sum)) << "NaN must not vanish";
    const Softmax none(kernels, {}, 2.0f, 5.0f);
    EXPECT_EQ(none.sum, 5.0f);
}

TEST_P(Kernels, PoolIsASoftmaxPerChannel) {
    for (const int64_t width : {7, 32, 45, 512}) {
        for (const int64_t count : {1, 2, 8, 128}) {
            const std::vector<float> values = random_floats(count * width, 28);
            std::vector<float> scores = random_floats(count * width, 29);
            for (float& score : scores) score *= 20.0f;
            if (count > 2) scores[static_cast<size_t>(width)] = -kInfinity;
            std::vector<const float*> value_rows, score_rows;
            for (int64_t i = 0; i < count; ++i) {
                value_rows.push_back(values.data() + i * width);
                score_rows.push_back(i % 3 == 2 ? nullptr : scores.data() + i * width);
            }
            std::vector<float> out(static_cast<size_t>(width));
            kernels.pool(value_rows.data(), score_rows.data(), count, width, out.data());
            for (int64_t c = 0; c < width; ++c) {
                double total = 0.0, sum = 0.0, maximum = -1e300;
                for (int64_t i = 0; i < count; ++i) {
                    if (score_rows[static_cast<size_t>(i)])
                        maximum = std::max<double>(maximum, scores[static_cast<size_t>(i * width + c)]);
                }
                for (int64_t i = 0; i < count; ++i) {
                    if (!score_rows[static_cast<size_t>(i)]) continue;
                    const double weight = std::exp(scores[static_cast<size_t>(i * width + c)] - maximum);
                    total += weight;
                    sum += weight * values[static_cast<size_t>(i * width + c)];
                }
                EXPECT_NEAR(out[static_cast<size_t>(c)], sum / total, 3e-6);
            }
        }
    }
}

// ---- choice of a tier ---------------------------------------------------------------------------------------------

TEST_P(Kernels, APeakTakesItsTime) {
    for (const Unit unit : {Unit::kF32, Unit::kBF16, Unit::kI8}) {
        float sink = 0;
        const auto begin = std::chrono::steady_clock::now();
        const int64_t operations = kernels.peak(unit, 3000, &sink);
        const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin;
        EXPECT_LE(static_cast<double>(operations), 2e13 * took.count()) << "no core does 20 T operations a second";
    }
}

TEST(Dispatch, FindsTheTiersOfThisProcessor) {
    ASSERT_NE(find_kernels("scalar"), nullptr);
    EXPECT_STREQ(find_kernels("scalar")->name, "scalar");
    EXPECT_EQ(find_kernels("avx2") != nullptr, __builtin_cpu_supports("avx2") != 0);
    EXPECT_EQ(find_kernels("avx512") != nullptr, __builtin_cpu_supports("avx512vl") != 0);
    EXPECT_EQ(find_kernels("auto"), nullptr);
    EXPECT_EQ(find_kernels("neon"), nullptr);
}

TEST(Dispatch, AutoTakesTheBest) {
    unsetenv("THERMOCLINE_ISA");
    const KernelTable* best = nullptr;
    for (const char* name : {"scalar", "avx2", "avx512", "avx512_bf16", "amx"}) {
        if (const KernelTable* kernels = find_kernels(name)) best = kernels;
    }
    EXPECT_EQ(&select_kernels("auto"), best);
    EXPECT_EQ(&select_kernels("scalar"), find_kernels("scalar"));
}

TEST(Dispatch, TheEnvironmentOverridesAutoOnly) {
    setenv("THERMOCLINE_ISA", "scalar", 1);
    EXPECT_STREQ(select_kernels("auto").name, "scalar");
    setenv("THERMOCLINE_ISA", "sse9", 1);
    EXPECT_THROW(select_kernels("auto"), Error);
    EXPECT_STREQ(select_kernels("scalar").name, "scalar");
    unsetenv("THERMOCLINE_ISA");
}

TEST(Dispatch, NamesUnknownAndUnsupportedTiers) {
    try {
        select_kernels("sse9");
        FAIL();
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("sse9"), std::string::npos);
        EXPECT_NE(std::string(error.what()).find("avx2"), std::string::npos);
    }
    for (const char* name : {"avx512", "avx512_bf16", "amx"}) {
        if (find_kernels(name)) continue;
        EXPECT_THROW(select_kernels(name), Error);
    }
}

}  // namespace
}  // namespace thermocline::cpu
