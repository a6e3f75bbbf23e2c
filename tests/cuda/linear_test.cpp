// Products of matrices of every format that cards take, on a card (test_device.h), against sums in double of the same
// numbers.
#include "cuda/library.h"
#include "cuda/scratch.h"
#include "cuda/weights.h"
#include "src/quant/activation.h"
#include "src/quant/reference.h"
#include "src/quant/strips.h"
#include "tests/cpu/random_matrix.h"
#include "tests/cuda/test_device.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <gtest/gtest.h>

namespace thermocline::cuda {
namespace {

using cpu::MatrixShape;
using quant::Format;

/// A plan of one Linear step, played on a card with the matrix packed if it can be.
class Product {
public:
    Product(const MatrixShape& shape, int32_t groups, ops::InputRounding rounding, Variants variants, bool by_library)
        : variants_(variants),
          matrix_(shape, 7),
          device_(by_library               ? emulation::open({.library = true})
                  : variants == Variants() ? test_device()
                                           : test_device_of_family()),
          stream_(device_->new_stream()) {
        quant::Matrix view = quant::packed_form(matrix_.view());
        if (view.layout == quant::Layout::kStrips) {
            packed_.resize(static_cast<size_t>(view.rows / quant::kStripRows * view.strip_bytes));
            quant::pack_strips(matrix_.view(), 0, view.rows / quant::kStripRows, packed_.data());
            view.data = packed_.data();
        }
        weights_ = DeviceMemory(*device_, placed_bytes(view));
        std::vector<Copy> copies;
        on_device_.matrices = {place(view, weights_.data(), copies)};
        for (const Copy& copy : copies) stream_->copy(copy.to, copy.from, copy.bytes);
        plan_.slots = {{"in", groups * shape.cols, ops::Rows::kTokens}, {"out", shape.rows, ops::Rows::kTokens}};
        plan_.matrices = {{"w", view}};
        step_ = {.in = 0, .weight = 0, .out = 1, .groups = groups, .rounding = rounding};
        plan_.steps = {step_};
        if (!by_library) return;
        expanded_ = DeviceMemory(*device_, expanded_bytes(plan_, kLeastLibraryRows));
        library_ = {.expanded = expanded_.as<uint16_t>(), .from_rows = {1}};
    }

    /// x [m, groups * cols] -> [m, rows]
    std::vector<float> operator()(const std::vector<float>& x, int64_t m) {
        const auto bytes = static_cast<int64_t>(x.size() * sizeof(float));
        const int64_t out_bytes = m * plan_.slots[1].cols * 4;
        DeviceMemory in(*device_, bytes), out(*device_, out_bytes);
        DeviceMemory scratch(*device_, linear_scratch(plan_, step_, m));
        float* slots[] = {in.as<float>(), out.as<float>()};
        Batch batch{};
        batch.rows = m;
        stream_->copy(in.data(), x.data(), bytes);
        run(step_, Frame{plan_,
                         on_device_,
                         batch,
                         slots,
                         nullptr,
                         nullptr,
                         scratch.data(),
                         *stream_,
                         nullptr,
                         {},
                         nullptr,
                         variants_,
                         {},
                         &library_,
                         batch_invariant});
        std::vector<float> y(static_cast<size_t>(m * plan_.slots[1].cols));
        stream_->copy(y.data(), out.data(), out_bytes);
        stream_->wait(std::chrono::minutes(1));
        return y;
    }

    std::vector<float> numbers() const { return quant::decode_matrix(matrix_.view()); }

    bool batch_invariant = false;

private:
    Variants variants_;
    cpu::RandomMatrix matrix_;
    std::vector<std::byte> packed_;
    std::unique_ptr<Device> device_;
    std::unique_ptr<Stream> stream_;
    DeviceMemory weights_;
    Weights on_device_;
    ops::Plan plan_;
    ops::Linear step_;
    DeviceMemory expanded_;
    LibraryProducts library_;
};

/// The error of an output relative to the sizes of what was added up: numbers rounded to e4m3 are exact in one bf16,
/// of others two keep all but 2^-18.
void expect_matches(const MatrixShape& shape, int32_t groups, ops::InputRounding rounding, int64_t m,
                    Variants variants = {}, bool by_library = false) {
    SCOPED_TRACE(to_string(shape) + ", groups " + std::to_string(groups) + ", m " + std::to_string(m));
    Product product(shape, groups, rounding, variants, by_library);
    std::vector<float> x = cpu::random_floats(m * groups * shape.cols, 3);
    const std::vector<float> y = product(x, m), w = product.numbers();
    if (rounding == ops::InputRounding::kE4M3)
        for (int64_t i = 0; i < m * groups; ++i) quant::round_e4m3_blocks128(x.data() + i * shape.cols, shape.cols);
    double worst = 0;
    for (int64_t v = 0; v < m; ++v)
        for (int64_t n = 0; n < shape.rows; ++n) {
            const float* in = x.data() + (v * groups + n / (shape.rows / groups)) * shape.cols;
            double sum = 0, size = 0;
            for (int64_t k = 0; k < shape.cols; ++k) {
                const double term = double{in[k]} * w[static_cast<size_t>(n * shape.cols + k)];
                sum += term;
                size += std::abs(term);
            }
            const double found = y[static_cast<size_t>(v * shape.rows + n)];
            ASSERT_TRUE(std::isfinite(found));
            worst = std::max(worst, std::abs(found - sum) / std::max(size, 1e-30));
        }
    EXPECT_LT(worst, rounding == ops::InputRounding::kE4M3 ? 1e-6 : 4e-6);
}

std::vector<MatrixShape> shapes(int64_t rows, int64_t cols) {
    std::vector<MatrixShape> all;
    for (const Format format : {Format::kF32, Format::kF16, Format::kBF16, Format::kQ8_0, Format::kMxfp4Block})
        all.push_back({.format = format, .rows = rows, .cols = cols});
    for (const Format scales : {Format::kE8M0, Format::kF32, Format::kBF16})
        all.push_back({Format::kE4M3, rows, cols, scales, 128, 128});
    all.push_back({Format::kE2M1Pair, rows, cols, Format::kE8M0, 1, 32});
    all.push_back({Format::kE2M1Pair, rows, cols, Format::kE4M3, 1, 16, false, 1.7e-4f});
    all.push_back({Format::kInt4Pair, rows, cols, Format::kBF16, 1, 128});
    all.push_back({Format::kInt4Pair, rows, cols, Format::kBF16, 1, 32});
    return all;
}

TEST(CudaLinear, FewVectors) {
    for (const MatrixShape& shape : shapes(48, 640))
        for (const int64_t m : {1, 3, 9}) expect_matches(shape, 1, ops::InputRounding::kExact, m);
}

TEST(CudaLinear, ManyVectors) {
    for (const MatrixShape& shape : shapes(304, 256)) expect_matches(shape, 1, ops::InputRounding::kExact, 70);
}

TEST(CudaLinear, VectorsRoundedAsTrained) {
    for (const MatrixShape& shape : shapes(48, 256))
        for (const int64_t m : {2, 33}) expect_matches(shape, 1, ops::InputRounding::kE4M3, m);
}

TEST(CudaLinear, GroupsHaveVectorsOfTheirOwn) {
    expect_matches({Format::kE4M3, 512, 128, Format::kE8M0, 128, 128}, 2, ops::InputRounding::kExact, 40);
    expect_matches({Format::kE4M3, 96, 128, Format::kE8M0, 128, 128}, 3, ops::InputRounding::kExact, 40);
    expect_matches({.format = Format::kBF16, .rows = 20, .cols = 24}, 2, ops::InputRounding::kExact, 5);
}

TEST(CudaLinear, VariantsOfTheSm120Family) {
    constexpr Variants kAll = {.mx_products = true};
    for (const int64_t m : {1, 8, 19, 33})
        expect_matches({Format::kE2M1Pair, 48, 640, Format::kE8M0, 1, 32}, 1, ops::InputRounding::kE4M3, m, kAll);
    expect_matches({Format::kE2M1Pair, 96, 128, Format::kE8M0, 1, 32}, 3, ops::InputRounding::kE4M3, 5, kAll);
    // Inputs that are not rounded, and other scales, go to the portable kernels.
    expect_matches({Format::kE2M1Pair, 48, 256, Format::kE8M0, 1, 32}, 1, ops::InputRounding::kExact, 3, kAll);
    expect_matches({Format::kE2M1Pair, 48, 256, Format::kE4M3, 1, 16}, 1, ops::InputRounding::kE4M3, 3, kAll);
}

/// Whether 40 vectors at once give what each gives alone, in every bit.
bool is_alike_in_any_batch(const MatrixShape& shape, ops::InputRounding rounding, Variants variants,
                           bool batch_invariant) {
    Product product(shape, 1, rounding, variants, false);
    product.batch_invariant = batch_invariant;
    const std::vector<float> x = cpu::random_floats(40 * shape.cols, 3), all = product(x, 40);
    for (int64_t v = 0; v < 40; ++v) {
        const std::vector<float> alone = product({x.begin() + v * shape.cols, x.begin() + (v + 1) * shape.cols}, 1);
        if (!std::equal(alone.begin(), alone.end(), all.begin() + v * shape.rows)) return false;
    }
    return true;
}

TEST(CudaLinear, BatchInvariant) {
    constexpr int64_t kRows = 256, kCols = 1408;  // more blocks than warps: a kernel for many adds up otherwise
    const MatrixShape fp8{Format::kE4M3, kRows, kCols, Format::kE8M0, 128, 128};
    EXPECT_FALSE(is_alike_in_any_batch(fp8, ops::InputRounding::kExact, {}, false)) << "this test shows nothing";
    EXPECT_TRUE(is_alike_in_any_batch(fp8, ops::InputRounding::kExact, {}, true));
    EXPECT_TRUE(is_alike_in_any_batch(fp8, ops::InputRounding::kE4M3, {}, true));
    EXPECT_TRUE(is_alike_in_any_batch({.format = Format::kF32, .rows = kRows, .cols = kCols},
                                      ops::InputRounding::kExact, {}, true));
    const MatrixShape mxfp4{Format::kE2M1Pair, kRows, kCols, Format::kE8M0, 1, 32};
    EXPECT_TRUE(is_alike_in_any_batch(mxfp4, ops::InputRounding::kE4M3, {}, true));
    EXPECT_TRUE(is_alike_in_any_batch(mxfp4, ops::InputRounding::kE4M3, {.mx_products = true}, true));
}

TEST(CudaLinear, ALibraryGivesWhatIsExactInBf16) {
    const auto by_library = [](const MatrixShape& shape, int32_t groups, int64_t m) {
        for (const auto rounding : {ops::InputRounding::kExact, ops::InputRounding::kE4M3})
            expect_matches(shape, groups, rounding, m, {}, true);
    };
    by_library({.format = Format::kBF16, .rows = 48, .cols = 640}, 1, 9);
    by_library({Format::kE4M3, 256, 256, Format::kE8M0, 128, 128}, 1, 33);
    by_library({Format::kE2M1Pair, 48, 1152, Format::kE8M0, 1, 32}, 1, 3);
    by_library({Format::kE2M1Pair, 48, 640, Format::kE4M3, 1, 16, false, 1.7e-4f}, 1, 9);
    by_library({Format::kE4M3, 96, 128, Format::kE8M0, 128, 128}, 3, 5);
    by_library({.format = Format::kBF16, .rows = 140'000, .cols = 128}, 1, 1);  // two stretches of rows
}

TEST(CudaLinear, ALibraryIsNotAskedForWhatBf16DoesNotHold) {
    for (const MatrixShape& shape : {MatrixShape{Format::kE4M3, 128, 128, Format::kF32, 128, 128},
                                     {.format = Format::kQ8_0, .rows = 16, .cols = 128},
                                     {Format::kInt4Pair, 16, 128, Format::kBF16, 1, 32},
                                     {.format = Format::kF32, .rows = 16, .cols = 128}}) {
        const cpu::RandomMatrix matrix(shape, 7);
        ops::Plan plan;
        plan.slots = {{"in", 128, ops::Rows::kTokens}, {"out", shape.rows, ops::Rows::kTokens}};
        plan.matrices = {{"w", quant::packed_form(matrix.view())}};
        plan.steps = {ops::Linear{.in = 0, .weight = 0, .out = 1}};
        EXPECT_EQ(expanded_bytes(plan, 4096), 0) << to_string(shape);
    }
}

// As files hold them where nothing can be packed: odd shapes, zero points.
TEST(CudaLinear, MatricesWithoutAPackedForm) {
    for (const MatrixShape& shape : {MatrixShape{.format = Format::kF32, .rows = 24, .cols = 100},
                                     {.format = Format::kBF16, .rows = 7, .cols = 33},
                                     {Format::kE4M3, 24, 96, Format::kF32, 8, 32},
                                     {Format::kInt4Pair, 24, 64, Format::kBF16, 1, 32, true},
                                     {Format::kE2M1Pair, 9, 64, Format::kE8M0, 1, 32}})
        for (const int64_t m : {1, 11}) expect_matches(shape, 1, ops::InputRounding::kExact, m);
}

}  // namespace
}  // namespace thermocline::cuda
