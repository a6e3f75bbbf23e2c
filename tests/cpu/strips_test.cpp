// Packed matrices: the layout against the rows it was made from, and every tier's kernels against double precision.
#include "src/quant/strips.h"

#include "cpu/inputs.h"
#include "src/quant/activation.h"
#include "src/quant/reference.h"
#include "src/quant/scalar.h"
#include "tests/cpu/random_matrix.h"
#include "tests/cpu/tiers.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <gtest/gtest.h>

namespace thermocline::cpu {
namespace {

using quant::Format;
using quant::Layout;
using quant::Matrix;

constexpr int64_t kRows = 48, kCols = 512;

constexpr Format kGgufFormats[] = {Format::kQ4_0, Format::kQ4_1,  Format::kQ4_K,  Format::kIQ4_NL, Format::kIQ4_XS,
                                   Format::kQ6_K, Format::kQ5_K,  Format::kQ5_0,  Format::kQ5_1,   Format::kQ2_K,
                                   Format::kQ3_K, Format::kTQ1_0, Format::kTQ2_0, Format::kQ1_0,   Format::kQ2_0};

/// Most bytes of the packed form by those of the file.
double most_growth(Format format) {
    if (format == Format::kTQ1_0) return 1.334;  // five digits in a byte
    if (format == Format::kQ1_0) return 1.112;   // whole cache lines
    if (format == Format::kTQ2_0) return 1.091;
    return quant::traits(format).block <= 64 ? 1.0001 : 1.06;
}

std::vector<MatrixShape> packed_shapes() {
    std::vector<MatrixShape> shapes;
    for (const Format format : kGgufFormats) shapes.push_back({.format = format, .rows = kRows, .cols = kCols});
    for (const Format format : {Format::kF32, Format::kF16, Format::kBF16, Format::kQ8_0, Format::kMxfp4Block,
                                Format::kNvfp4Block, Format::kE4M3Block128})
        shapes.push_back({.format = format, .rows = kRows, .cols = kCols});
    for (const Format scales : {Format::kE8M0, Format::kF32, Format::kBF16, Format::kF16}) {
        shapes.push_back({Format::kE4M3, kRows, kCols, scales, 128, 128});
        shapes.push_back({Format::kE4M3, kRows, kCols, scales, 16, 128});
        shapes.push_back({Format::kE4M3, kRows, kCols, scales, 1 << 20, 1 << 20});
    }
    shapes.push_back({Format::kE4M3, kRows, kCols, Format::kE8M0, 1, 128});
    shapes.push_back({Format::kE2M1Pair, kRows, kCols, Format::kE8M0, 1, 32});
    shapes.push_back({Format::kE2M1Pair, kRows, kCols, Format::kE4M3, 1, 16, false, 1.7e-4f});
    shapes.push_back({Format::kInt4Pair, kRows, kCols, Format::kBF16, 1, 128});
    shapes.push_back({Format::kInt4Pair, kRows, kCols, Format::kBF16, 1, 32});
    return shapes;
}

struct Packed {
    RandomMatrix rows;
    std::vector<std::byte> bytes;
    Matrix strips;

    Packed(const MatrixShape& shape, uint32_t seed) : rows(shape, seed) {
        strips = quant::packed_form(rows.view());
        bytes.resize(static_cast<size_t>(strips.rows / quant::kStripRows * strips.strip_bytes));
        strips.data = bytes.data();
        quant::pack_strips(rows.view(), 0, strips.rows / quant::kStripRows, bytes.data());
    }
};

class Strips : public testing::TestWithParam<Tier> {
protected:
    const KernelTable& kernels = *GetParam().kernels;

    /// x [m, w.cols], rounded to int8 before if `rounding` says so.
    std::vector<float> multiply(const Matrix& w, int64_t first, int64_t count, const std::vector<float>& x, int64_t m,
                                ops::InputRounding rounding = ops::InputRounding::kExact) {
        const InputForm form(w, rounding, kernels);
        std::vector<float> panel(static_cast<size_t>(m * form.panel_width(w.cols)) + kPanelSlack),
            y(static_cast<size_t>(m * count), std::nanf(""));
        for (int64_t i = 0; i < m; ++i) form.prepare(x.data() + i * w.cols, w.cols, panel.data(), i, m);
        form.matmul()(w, first, count, panel.data(), form.stride(m, w.cols), m, y.data(), count);
        return y;
    }
};

INSTANTIATE_TEST_SUITE_P(, Strips, testing::ValuesIn(tiers()), [](const auto& tier) { return tier.param.name; });

TEST(StripLayout, HoldsTheNumbersOfTheRows) {
    for (const MatrixShape& shape : packed_shapes()) {
        const Packed packed(shape, 1);
        ASSERT_EQ(packed.strips.layout, Layout::kStrips) << to_string(shape);
        EXPECT_EQ(quant::decode_matrix(packed.strips), quant::decode_matrix(packed.rows.view())) << to_string(shape);
    }
}

/// Converted models keep the format and the scales of the packed form, and derive all else of it again.
TEST(StripLayout, IsTheSameMadeFromItsOwnFormat) {
    for (const MatrixShape& shape : packed_shapes()) {
        const Packed packed(shape, 1);
        Matrix again = packed.strips;
        again.layout = Layout::kRows;
        again.row_bytes = quant::bytes_of(again.format, again.cols);
        if (again.format == Format::kE4M3 || again.format == Format::kE2M1Pair || again.format == Format::kInt4Pair)
            again.scales = packed.bytes.data();
        again = quant::packed_form(again);
        EXPECT_EQ(again.layout, Layout::kStrips) << to_string(shape);
        EXPECT_EQ(again.strip_bytes, packed.strips.strip_bytes) << to_string(shape);
        EXPECT_EQ(again.scale_in_strip, packed.strips.scale_in_strip) << to_string(shape);
    }
}

TEST(StripLayout, TakesNoMoreBytesThanTheRowsButForPadding) {
    const Packed mxfp4({Format::kE2M1Pair, 64, 4096, Format::kE8M0, 1, 32}, 1);
    EXPECT_EQ(mxfp4.strips.bytes(), mxfp4.rows.view().bytes());
    const Packed fp8({Format::kE4M3, 128, 4096, Format::kE8M0, 128, 128}, 1);
    EXPECT_EQ(fp8.strips.bytes(), fp8.rows.view().bytes());
    const Packed q8({.format = Format::kQ8_0, .rows = 64, .cols = 4096}, 1);
    EXPECT_EQ(q8.strips.bytes(), q8.rows.view().bytes());
    for (const Format format : kGgufFormats) {  // K-quants: sub-scales in bytes of their own, d in every 128 columns
        const Packed gguf({.format = format, .rows = 64, .cols = 4096}, 1);
        const double growth = static_cast<double>(gguf.strips.bytes()) / static_cast<double>(gguf.rows.view().bytes());
        EXPECT_GE(growth, 1.0) << quant::traits(format).name;
        EXPECT_LT(growth, most_growth(format)) << quant::traits(format).name;
    }
}

TEST(StripLayout, IsRefusedWhereNoPackedFormExists) {
    const auto refused = [](const MatrixShape& shape) {
        return quant::packed_form(RandomMatrix(shape, 1).view()).layout == Layout::kRows;
    };
    EXPECT_TRUE(refused({.format = Format::kBF16, .rows = 40, .cols = 128}));
    EXPECT_TRUE(refused({.format = Format::kBF16, .rows = 48, .cols = 96}));
    EXPECT_TRUE(refused({.format = Format::kIQ2_XXS, .rows = 48, .cols = 256}));
    EXPECT_TRUE(refused({.format = Format::kQ4_0, .rows = 48, .cols = 96}));
    EXPECT_TRUE(refused({Format::kE4M3, 48, 256, Format::kF32, 8, 128}));
    EXPECT_TRUE(refused({Format::kE4M3, 48, 256, Format::kF32, 16, 64}));
    EXPECT_TRUE(refused({Format::kInt4Pair, 48, 256, Format::kBF16, 1, 128, true}));
    const RandomMatrix wide({.format = Format::kBF16, .rows = 48, .cols = 256}, 1);
    Matrix half = wide.view();
    half.cols = 128;  // columns of a wider matrix do not follow one another
    EXPECT_EQ(quant::packed_form(half).layout, Layout::kRows);
}

TEST_P(Strips, MatmulEqualsTheReferenceInDouble) {
    constexpr int64_t kTokens = 7;
    for (const MatrixShape& shape : packed_shapes()) {
        const Packed packed(shape, 2);
        // Of all sizes: small activations must not drown in subnormal products.
        std::vector<float> x = random_floats(kTokens * kCols, 3), weights = quant::decode_matrix(packed.rows.view());
        for (int64_t t = 0; t < kTokens; ++t)
            for (int64_t k = 0; k < kCols; ++k)
                x[static_cast<size_t>(t * kCols + k)] *= std::pow(10.0f, static_cast<float>(3 - 2 * t));
        const std::vector<float> y = multiply(packed.strips, 0, kRows, x, kTokens);
        for (int64_t t = 0; t < kTokens; ++t) {
            double difference = 0.0, norm = 0.0;
            for (int64_t n = 0; n < kRows; ++n) {
                double sum = 0.0;
                for (int64_t k = 0; k < kCols; ++k)
                    sum += double{weights[static_cast<size_t>(n * kCols + k)]} * x[static_cast<size_t>(t * kCols + k)];
                const double error = y[static_cast<size_t>(t * kRows + n)] - sum;
                difference += error * error, norm += sum * sum;
            }
            EXPECT_LT(std::sqrt(difference / norm), 2e-6) << to_string(shape) << " vector " << t;
        }
    }
}

TEST_P(Strips, MatmulDependsNeitherOnTheNumberOfVectorsNorOnTheSplit) {
    using ops::InputRounding;
    constexpr int64_t kMost = 67;
    for (const MatrixShape& shape : packed_shapes()) {
        for (const InputRounding rounding :
             {InputRounding::kExact, InputRounding::kE4M3, InputRounding::kInt8, InputRounding::kBF16}) {
            const Packed packed(shape, 4);
            SCOPED_TRACE(to_string(shape) + " rounding " + std::to_string(static_cast<int>(rounding)));
            std::vector<float> x = random_floats(kMost * kCols, 5);
            for (size_t i = 0; i < x.size(); ++i) x[i] *= std::ldexp(1.0f, -static_cast<int>(i % 13));
            const std::vector<float> all = multiply(packed.strips, 0, kRows, x, kMost, rounding);
            for (const int64_t m : {1, 2, 3, 4, 5, 13, 24, 25, 33, 48, 49}) {
                const std::vector<float> y =
                    multiply(packed.strips, 0, kRows, {x.begin(), x.begin() + m * kCols}, m, rounding);
                EXPECT_EQ(std::memcmp(y.data(), all.data(), y.size() * sizeof(float)), 0) << m;
            }
            for (const int64_t first : {0, 16, 32}) {
                const std::vector<float> y =
                    multiply(packed.strips, first, 16, {x.begin(), x.begin() + 3 * kCols}, 3, rounding);
                for (int64_t t = 0; t < 3; ++t)
                    EXPECT_EQ(std::memcmp(&y[static_cast<size_t>(t * 16)], &all[static_cast<size_t>(t * kRows + first)],
                                          16 * sizeof(float)),
                              0)
                        << "from row " << first;
            }
        }
    }
}

/// More vectors and strips than a kernel takes in one go, and one left over; and a few.
TEST_P(Strips, MatmulOfManyE4M3VectorsIsThatOfEachAlone) {
    constexpr int64_t kManyRows = 80;
    for (const MatrixShape& shape : {MatrixShape{Format::kE4M3, kManyRows, 256, Format::kE8M0, 128, 128},
                                     MatrixShape{Format::kE2M1Pair, kManyRows, 256, Format::kE8M0, 1, 32},
                                     MatrixShape{Format::kE2M1Pair, kManyRows, 256, Format::kE4M3, 1, 16}}) {
        const Packed packed(shape, 10);
        for (const int64_t vectors : {7, 257}) {
            const std::vector<float> x = random_floats(vectors * shape.cols, 11);
            const std::vector<float> all = multiply(packed.strips, 0, kManyRows, x, vectors, ops::InputRounding::kE4M3);
            for (int64_t t = 0; t < vectors; ++t) {
                const std::vector<float> alone = multiply(
                    packed.strips, 0, kManyRows, {x.begin() + t * shape.cols, x.begin() + (t + 1) * shape.cols}, 1,
                    ops::InputRounding::kE4M3);
                EXPECT_EQ(
                    std::memcmp(alone.data(), &all[static_cast<size_t>(t * kManyRows)], kManyRows * sizeof(float)), 0)
                    << to_string(shape) << " vector " << t << " of " << vectors;
            }
        }
    }
}

double largest_of(std::span<const float> numbers) {
    double largest = 0.0;
    for (const float number : numbers) largest = std::max(largest, std::abs(double{number}));
    return largest;
}

TEST_P(Strips, MatmulOfRoundedVectorsEqualsTheReferenceInDouble) {
    using ops::InputRounding;
    constexpr int64_t kTokens = 3;
    for (const MatrixShape& shape : packed_shapes()) {
        for (const InputRounding rounding : {InputRounding::kE4M3, InputRounding::kBF16}) {
            const Packed packed(shape, 8);
            if (rounding == InputRounding::kBF16 && !quant::has_bf16_numbers(packed.strips)) continue;
            SCOPED_TRACE(to_string(shape) + " rounding " + std::to_string(static_cast<int>(rounding)));
            const std::vector<float> weights = quant::decode_matrix(packed.rows.view());
            std::vector<float> x = random_floats(kTokens * kCols, 9);
            for (size_t i = 0; i < x.size(); ++i) x[i] *= std::pow(10.0f, static_cast<float>(i % 7) - 4.0f);
            const std::vector<float> y = multiply(packed.strips, 0, kRows, x, kTokens, rounding);
            for (int64_t t = 0; t < kTokens; ++t) {
                float* rounded = x.data() + t * kCols;
                if (rounding == InputRounding::kE4M3)
                    quant::round_e4m3_blocks128(rounded, kCols);
                else
                    std::transform(rounded, rounded + kCols, rounded, quant::round_bf16);
                for (int64_t n = 0; n < kRows; ++n) {
                    double sum = 0.0, size = 0.0, fixed_size = 0.0;
                    for (int64_t k = 0; k < kCols; ++k) {
                        const double weight = weights[static_cast<size_t>(n * kCols + k)];
                        sum += weight * rounded[k], size += std::abs(weight * rounded[k]);
                        fixed_size += std::abs(weight) * largest_of({rounded + k / 32 * 32, 32});
                    }
                    // A tier without the bf16 unit multiplies some formats in fixed point: 22 bits of the largest
                    // of 32.
                    const bool fixed = rounding == InputRounding::kBF16 && !kernels.bf16_of_all &&
                                       kernels.matmul_fixed != nullptr && quant::has_integer_codes(packed.strips);
                    EXPECT_NEAR(y[static_cast<size_t>(t * kRows + n)], sum,
                                1e-6 * size + (fixed ? std::ldexp(fixed_size, -22) : 0.0))
                        << "vector " << t << " row " << n;
                }
            }
        }
    }
}

/// Vectors whose groups have very different sizes, with zeros and the largest codes of both signs.
std::vector<float> int8_inputs(int64_t vectors) {
    std::vector<float> x = random_floats(vectors * kCols, 6);
    for (size_t i = 0; i < x.size(); ++i) x[i] *= std::pow(10.0f, static_cast<float>(i / 32 % 9) - 4.0f);
    std::fill_n(x.begin(), 32, 0.0f);
    for (size_t i = 32; i < 64; ++i) x[i] = i % 3 == 0 ? 5.0f : -5.0f;
    return x;
}

TEST_P(Strips, Int8RoundingIsToTheNearestOfTheGroup) {
    const std::vector<float> x = int8_inputs(1);
    std::vector<quant::Int8Group> groups(kCols / 32), scalar(kCols / 32);
    kernels.round_int8(x.data(), groups.data(), kCols);
    find_kernels("scalar")->round_int8(x.data(), scalar.data(), kCols);
    EXPECT_EQ(std::memcmp(groups.data(), scalar.data(), groups.size() * sizeof groups[0]), 0);
    for (size_t g = 0; g < groups.size(); ++g) {
        int sums[4] = {};
        for (size_t i = 0; i < 32; ++i) {
            EXPECT_NEAR(groups[g].codes[i] * groups[g].scale, x[32 * g + i], groups[g].scale * 0.50001f);
            sums[i / 16 * 2 + i % 4 / 2] += groups[g].codes[i];
        }
        for (size_t i = 0; i < 4; ++i) EXPECT_EQ(groups[g].sums[i], sums[i]);
        EXPECT_EQ(groups[g].sums[4], sums[0] + sums[2]);
        EXPECT_EQ(groups[g].sums[5], sums[1] + sums[3]);
    }
    for (const float bad : {std::nanf(""), HUGE_VALF}) {
        std::vector<float> poisoned(x.begin(), x.begin() + 32);
        poisoned[7] = bad;
        kernels.round_int8(poisoned.data(), groups.data(), 32);
        EXPECT_TRUE(std::isnan(groups[0].scale));
    }
}

TEST_P(Strips, FixedPointKeeps22BitsOfTheLargestOfTheGroup) {
    if (kernels.round_fixed == nullptr) GTEST_SKIP() << "the tier has no products of bytes";
    std::vector<float> x = int8_inputs(1);
    const float largest[] = {1e30f, 1e-30f, 0.0f, std::ldexp(1.0f, 21), std::nextafter(8.0f, 0.0f)};
    for (size_t g = 0; g < std::size(largest); ++g) x[32 * g] = largest[g];
    std::vector<quant::FixedGroup> groups(kCols / 32);
    kernels.round_fixed(x.data(), groups.data(), kCols);
    for (size_t g = 0; g < groups.size(); ++g) {
        const quant::FixedGroup& group = groups[g];
        float most = 0.0f;
        for (size_t i = 0; i < 32; ++i) most = std::max(most, std::abs(x[32 * g + i]));
        double sums[2] = {};
        int digit_sums[3][2] = {};
        for (size_t i = 0; i < 32; ++i) {
            const double number =
                (group.digits[0][i] + 256.0 * group.digits[1][i] + 65536.0 * group.digits[2][i]) * group.scale;
            EXPECT_LE(std::abs(number - x[32 * g + i]), std::ldexp(most, -22) + 1e-30) << g << " " << i;
            sums[i / 16] += number;
            for (size_t plane = 0; plane < 3; ++plane) digit_sums[plane][i / 16] += group.digits[plane][i];
        }
        for (size_t half = 0; half < 2; ++half) {
            EXPECT_NEAR(group.half_sums[half], sums[half], 1e-6 * std::abs(sums[half]));
            for (size_t plane = 0; plane < 3; ++plane) EXPECT_EQ(group.sums[plane][half], digit_sums[plane][half]) << g;
        }
    }
    for (const float bad : {std::nanf(""), HUGE_VALF}) {
        x[7] = bad;
        kernels.round_fixed(x.data(), groups.data(), 32);
        EXPECT_TRUE(std::isnan(groups[0].scale));
    }
}

TEST_P(Strips, Int8MatmulEqualsTheRoundedVectorsInDouble) {
    constexpr int64_t kVectors = 3;
    for (const MatrixShape& shape : packed_shapes()) {
        Packed packed(shape, 7);
        if (!quant::has_integer_codes(packed.strips)) continue;
        // The largest codes of both signs in the rows that meet the largest of x.
        for (int64_t i = 0; i < packed.strips.strip_bytes / (kCols / 128) / 2; ++i)
            if (i / 4 % 16 < 4)
                packed.bytes[static_cast<size_t>(i)] =
                    static_cast<std::byte>(shape.format == Format::kQ8_0 ? 0x80 : 0x7f);
        const std::vector<float> weights = quant::decode_matrix(packed.strips), x = int8_inputs(kVectors);
        const std::vector<float> y = multiply(packed.strips, 0, kRows, x, kVectors, ops::InputRounding::kInt8);
        for (int64_t t = 0; t < kVectors; ++t) {
            std::vector<quant::Int8Group> groups(kCols / 32);
            kernels.round_int8(x.data() + t * kCols, groups.data(), kCols);
            for (int64_t n = 0; n < kRows; ++n) {
                double sum = 0.0, size = 0.0;
                for (int64_t k = 0; k < kCols; ++k) {
                    const quant::Int8Group& group = groups[static_cast<size_t>(k / 32)];
                    const double product =
                        double{weights[static_cast<size_t>(n * kCols + k)]} * group.codes[k % 32] * group.scale;
                    sum += product, size += std::abs(product);
                }
                EXPECT_NEAR(y[static_cast<size_t>(t * kRows + n)], sum, 1e-6 * size)
                    << to_string(shape) << " vector " << t << " row " << n;
            }
        }
    }
}

/// The largest sums of a unit: codes that are all 0 or all ones against vectors of one sign, of all digits the largest.
TEST_P(Strips, SumsOfTheLargestCodesDoNotOverflow) {
    const float number = std::ldexp(static_cast<float>(0x3f7f7f), -20);
    const std::vector<float> x(static_cast<size_t>(kCols), number);
    for (const Format format : kGgufFormats) {
        Packed packed({.format = format, .rows = kRows, .cols = kCols}, 8);
        for (const int fill : {0x00, 0xff}) {
            const int64_t block = packed.strips.strip_bytes / (kCols / 128);
            const int64_t codes = quant::strip_shape(packed.strips).code_bytes();
            for (size_t at = 0; at < packed.bytes.size(); at += static_cast<size_t>(block))
                std::memset(&packed.bytes[at], fill, static_cast<size_t>(codes));
            const std::vector<float> weights = quant::decode_matrix(packed.strips);
            const std::vector<float> exact = multiply(packed.strips, 0, kRows, x, 1);
            const std::vector<float> int8 = multiply(packed.strips, 0, kRows, x, 1, ops::InputRounding::kInt8);
            for (int64_t n = 0; n < kRows; ++n) {
                double sum = 0.0, size = 0.0;
                for (int64_t k = 0; k < kCols; ++k) {
                    const double product = double{number} * weights[static_cast<size_t>(n * kCols + k)];
                    sum += product, size += std::abs(product);
                }
                const auto row = static_cast<size_t>(n);
                if (kernels.matmul_fixed != nullptr) {
                    EXPECT_NEAR(exact[row], sum, 4e-6 * size) << quant::traits(format).name << " row " << n;
                }
                EXPECT_NEAR(int8[row], sum, 4e-6 * size) << quant::traits(format).name << " row " << n;
            }
        }
    }
}

}  // namespace
}  // namespace thermocline::cpu
