// Packing by several threads into several slices, on a plan with no model behind it: small enough for the sanitizers.
// What models make of it: tests/model/packed_weights_test.cpp.
#include "memory/packed_weights.h"

#include "src/base/pages.h"
#include "src/quant/reference.h"
#include "src/quant/strips.h"

#include <cmath>
#include <cstring>
#include <gtest/gtest.h>

namespace thermocline::memory {
namespace {

constexpr int64_t kRows = 640, kCols = 512;

/// One FP8 matrix and a set of MXFP4 experts, in pages that packing gives back.
struct Weights {
    ops::Plan plan;
    std::vector<quant::EncodedMatrix> encoded;
    std::vector<Pages> pages;

    Weights() {
        plan.matrices.push_back({"fp8", make(quant::kFp8Blocks, kRows, kCols)});
        plan.steps.emplace_back(ops::Linear{0, 0, 0});
        ops::ExpertSet set{"experts", kCols, kRows, {}, {}, {}};
        for (int e = 0; e < 2; ++e) {
            set.w1.push_back(make(quant::kMxfp4, kRows, kCols));
            set.w3.push_back(make(quant::kMxfp4, kRows, kCols));
            set.w2.push_back(make(quant::kMxfp4, kCols, kRows));
        }
        plan.experts.push_back(std::move(set));
    }

    quant::Matrix make(const quant::Recipe& recipe, int64_t rows, int64_t cols) {
        std::vector<float> numbers(static_cast<size_t>(rows * cols));
        for (size_t i = 0; i < numbers.size(); ++i)
            numbers[i] = std::sin(static_cast<float>(i + 17 * encoded.size())) * static_cast<float>(1 + i % 7);
        quant::EncodedMatrix& made = encoded.emplace_back(quant::encode_matrix(recipe, numbers.data(), rows, cols));
        quant::Matrix matrix = made.view();
        pages.emplace_back(made.codes.size());
        std::memcpy(pages.back().bytes().data(), made.codes.data(), made.codes.size());
        matrix.data = pages.back().bytes().data();
        matrix.scales = scales_of(made);
        return matrix;
    }

    /// Scales of the strips are packed too; those of FP8 stay where they are.
    const std::byte* scales_of(const quant::EncodedMatrix& made) {
        pages.emplace_back(made.scales.size());
        std::memcpy(pages.back().bytes().data(), made.scales.data(), made.scales.size());
        return pages.back().bytes().data();
    }

    std::vector<const quant::Matrix*> matrices() const {
        std::vector<const quant::Matrix*> all = {&plan.matrices[0].matrix};
        for (size_t e = 0; e < plan.experts[0].w1.size(); ++e)
            for (const auto* list : {&plan.experts[0].w1, &plan.experts[0].w3, &plan.experts[0].w2})
                all.push_back(&(*list)[e]);
        return all;
    }
};

TEST(PackedSlices, HoldTheNumbersWhoeverPacksThem) {
    for (const int64_t slices : {1, 2, 3, 4}) {
        Weights weights;
        ops::Plan* plans[] = {&weights.plan};
        const std::vector<Slice> places(static_cast<size_t>(slices), Slice{{}, {0, 1}});
        int64_t last = 0;
        const PackedWeights packed(plans, nullptr, places, [&](int64_t done, int64_t all) {
            EXPECT_LE(last, done);
            EXPECT_LE(done, all);
            last = done;
        });
        EXPECT_GT(last, 0);
        const auto matrices = weights.matrices();
        for (size_t i = 0; i < matrices.size(); ++i) {
            EXPECT_EQ(slice_count(*matrices[i]), i == 0 ? std::min<int64_t>(slices, 3) : slices) << i;
            EXPECT_EQ(quant::decode_matrix(*matrices[i]), quant::decode_matrix(weights.encoded[i].view()))
                << slices << " slices, matrix " << i;
        }
    }
}

}  // namespace
}  // namespace thermocline::memory
