// Packing by several threads into several slices, on a plan with no model behind it: small enough for the sanitizers.
// What models make of it: tests/model/packed_weights_test.cpp.
#include "memory/packed_weights.h"

#include "src/base/pages.h"
#include "src/quant/reference.h"
#include "src/quant/strips.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

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

/// Pages of [data, data + bytes) that exist.
int64_t pages_there(const std::byte* data, int64_t bytes) {
    const int64_t page = ::sysconf(_SC_PAGESIZE);
    std::vector<unsigned char> there(static_cast<size_t>((bytes + page - 1) / page));
    EXPECT_EQ(::mincore(const_cast<std::byte*>(data), static_cast<size_t>(bytes), there.data()), 0);
    return std::count_if(there.begin(), there.end(), [](unsigned char one) { return one & 1; });
}

TEST(PackedSlices, WhatTheCardAloneHoldsExistsWhileItIsBroughtThere) {
    for (const int64_t slices : {1, 3}) {
        Weights weights;
        ops::Plan* plans[] = {&weights.plan};
        const std::vector<Slice> places(static_cast<size_t>(slices), Slice{{}, {0}});
        ops::ExpertSet& set = weights.plan.experts[0];
        const std::vector<const quant::Matrix*> card_only = {&weights.plan.matrices[0].matrix, &set.w1[1], &set.w3[1],
                                                             &set.w2[1]};
        PackedWeights packed(plans, nullptr, places, {}, card_only);
        const auto bytes_of = [](const quant::Matrix& m) { return m.rows / quant::kStripRows * m.strip_bytes; };
        int64_t held = 0;
        for (const auto* list : {&set.w1, &set.w3, &set.w2}) {
            held += bytes_of((*list)[0]);
            EXPECT_EQ(slice_count((*list)[0]), slice_count((*list)[1]));  // sets are cut alike
        }
        EXPECT_EQ(packed.bytes(), held);
        EXPECT_EQ(packed.card_only_bytes(), held + bytes_of(*card_only[0]));
        EXPECT_EQ(quant::decode_matrix(set.w1[0]), quant::decode_matrix(weights.encoded[1].view()));

        const auto all = weights.matrices();
        const auto expect_made = [&](const std::vector<const quant::Matrix*>& made) {
            for (size_t i = 0; i < all.size(); ++i) {
                if (std::ranges::find(card_only, all[i]) == card_only.end()) continue;
                const bool is_made = std::ranges::find(made, all[i]) != made.end();
                if (is_made) {
                    EXPECT_EQ(quant::decode_matrix(*all[i]), quant::decode_matrix(weights.encoded[i].view()));
                } else {
                    EXPECT_EQ(pages_there(all[i]->data, bytes_of(*all[i])), 0) << i;
                }
            }
        };
        expect_made({});
        const std::byte* two[] = {set.w1[1].data, set.w2[1].data + bytes_of(set.w2[1]) - 1, set.w1[0].data};
        packed.make(two);
        expect_made({&set.w1[1], &set.w2[1]});
        const std::byte* next[] = {set.w2[1].data, card_only[0]->data};  // w2 stays, w1 goes
        packed.make(next);
        expect_made({&set.w2[1], card_only[0]});
        packed.drop();
        expect_made({});
        EXPECT_DEATH_IF_SUPPORTED((void)quant::decode_matrix(set.w1[1]), "");
    }
}

}  // namespace
}  // namespace thermocline::memory
