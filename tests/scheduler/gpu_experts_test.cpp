// Routed experts that lie on a card (test_device.h): jobs, products and sums of every format against sums in
// double of the same numbers.
#include "scheduler/gpu_experts.h"

#include "cuda/kernels/experts.h"
#include "cuda/kernels/handoff.h"
#include "cuda/kernels/list.h"
#include "src/quant/activation.h"
#include "src/quant/reference.h"
#include "src/quant/strips.h"
#include "tests/cpu/random_matrix.h"
#include "tests/cuda/pinned_arrays.h"
#include "tests/cuda/test_device.h"

#include <algorithm>
#include <cmath>
#include <deque>
#include <gtest/gtest.h>
#include <numeric>
#include <random>

namespace thermocline::scheduler {
namespace {

using cpu::MatrixShape;
using ops::InputRounding;
using quant::Format;

constexpr int64_t kHidden = 256, kIntermediate = 128;
constexpr int32_t kExperts = 9, kTopK = 3;
constexpr float kLimit = 2.0f;
enum Slots : ops::Slot { kX, kIds, kWeights, kOut, kShared };

class Experts {
public:
    Experts(MatrixShape shape, InputRounding rounding, std::vector<int32_t> resident)
        : resident_(std::move(resident)), device_(cuda::test_device()), stream_(device_->new_stream()) {
        ops::ExpertSet set{"experts", kHidden, kIntermediate, {}, {}, {}};
        for (int32_t e = 0; e < kExperts; ++e)
            for (auto* matrices : {&set.w1, &set.w3, &set.w2}) {
                shape.rows = matrices == &set.w2 ? kHidden : kIntermediate;
                shape.cols = matrices == &set.w2 ? kIntermediate : kHidden;
                matrices->push_back(packed(shape));
            }
        plan_.experts = {set, set};  // the second is not on the card
        const auto slot = [](const char* name, int64_t cols) { return ops::SlotSpec{name, cols, ops::Rows::kTokens}; };
        plan_.slots = {slot("x", kHidden), slot("ids", kTopK), slot("weights", kTopK), slot("out", kHidden),
                       slot("shared", kHidden)};
        step_ = {kX, kIds, kWeights, 0, kOut, kTopK, kLimit, rounding};
        plan_.steps = {step_};
        std::vector<ExpertName> names;
        for (const int32_t e : resident_) names.push_back({0, e});
        const int64_t bytes = GpuExperts::bytes_of(plan_, std::ssize(names));
        memory_ = cuda::DeviceMemory(*device_, bytes);
        on_card_ = std::make_unique<GpuExperts>(plan_, *device_, names, memory_.data(),
                                                ResidencyRules{.policy = ResidencyRules::Policy::kStatic});
    }

    const ops::Plan& plan() const { return plan_; }

    /// Plays the step for `rows` rows with random choices and compares all that it leaves behind.
    void check(int64_t rows, double tolerance) {
        SCOPED_TRACE(std::to_string(rows) + " rows");
        std::vector<float> x = cpu::random_floats(rows * kHidden, 3);
        for (float& one : x) one *= 0.2f;
        const std::vector<float> weights = cpu::random_floats(rows * kTopK, 4),
                                 shared = cpu::random_floats(rows * kHidden, 5),
                                 host = cpu::random_floats(rows * kHidden, 6);
        std::vector<int32_t> ids;
        for (int64_t t = 0; t < rows; ++t) {
            std::vector<int32_t> all(kExperts);
            std::iota(all.begin(), all.end(), 0);
            std::shuffle(all.begin(), all.end(), random_);
            ids.insert(ids.end(), all.begin(), all.begin() + kTopK);
        }
        play(x, ids, weights, shared, host, rows);

        int64_t left = 0;
        double error = 0, size = 0;
        for (int64_t t = 0; t < rows; ++t) {
            std::vector<double> sum = made_by_card(x.data() + t * kHidden, &ids[static_cast<size_t>(t * kTopK)],
                                                   &weights[static_cast<size_t>(t * kTopK)]);
            bool any_left = false;
            for (int32_t k = 0; k < kTopK; ++k) {
                const auto pair = static_cast<size_t>(t * kTopK + k);
                const bool here = is_here(ids[pair]);
                EXPECT_EQ(job_ids_[pair], here ? -1 : ids[pair]);
                EXPECT_EQ(chosen_[pair], ids[pair]);
                EXPECT_EQ(job_weights_[pair], weights[pair]);
                any_left |= !here;
                left += !here;
            }
            for (int64_t i = 0; i < kHidden; ++i) {
                const auto at = static_cast<size_t>(t * kHidden + i);
                EXPECT_EQ(job_x_[at], any_left ? x[at] : 0.0f);
                const double expected = sum[static_cast<size_t>(i)] + shared[at] + host[at];
                error += (out_[at] - expected) * (out_[at] - expected);
                size += expected * expected;
            }
        }
        EXPECT_EQ(flag_, left > 0 ? cuda::kJob : cuda::kNothingToDo);
        EXPECT_EQ(done_, left > 0 ? 0u : 1u);
        EXPECT_LT(std::sqrt(error / size), tolerance);
    }

private:
    bool is_here(int32_t expert) const { return std::ranges::find(resident_, expert) != resident_.end(); }

    quant::Matrix packed(const MatrixShape& shape) {
        matrices_.emplace_back(shape, 11 + static_cast<uint32_t>(matrices_.size()));
        quant::Matrix view = quant::packed_form(matrices_.back().view());
        if (view.layout != quant::Layout::kStrips) return view;
        packed_.emplace_back(static_cast<size_t>(view.rows / quant::kStripRows * view.strip_bytes));
        quant::pack_strips(matrices_.back().view(), 0, view.rows / quant::kStripRows, packed_.back().data());
        view.data = packed_.back().data();
        numbers_.push_back(quant::decode_matrix(matrices_.back().view()));
        return view;
    }

    void play(const std::vector<float>& x, const std::vector<int32_t>& ids, const std::vector<float>& weights,
              const std::vector<float>& shared, const std::vector<float>& host, int64_t rows) {
        std::vector<cuda::DeviceMemory> memory;
        const auto on_device = [&](const void* from, int64_t bytes) {
            memory.emplace_back(*device_, bytes);
            if (from != nullptr) stream_->copy(memory.back().data(), from, bytes);
            return memory.back().as<float>();
        };
        const int64_t wide = rows * kHidden * 4, narrow = rows * kTopK * 4;
        float* slots[] = {on_device(x.data(), wide), on_device(ids.data(), narrow), on_device(weights.data(), narrow),
                          on_device(nullptr, wide), on_device(shared.data(), wide)};
        cuda::Batch batch{};
        batch.rows = rows;
        const cuda::Weights none;
        const auto pairs = cuda::pairs_memory(plan_, rows, [&](int64_t bytes) {
            memory.emplace_back(*device_, bytes);
            return memory.back().data();
        });
        const cuda::Frame frame{plan_, none, batch, slots, nullptr, nullptr, nullptr, *stream_, on_card_->on_card(),
                                pairs};
        PinnedArrays arrays(*device_);
        const auto job_x = arrays.array<float>(x.size()), job_weights = arrays.array<float>(weights.size());
        const auto job_ids = arrays.array<int32_t>(ids.size()), all_ids = arrays.array<int32_t>(ids.size());
        std::ranges::fill(job_ids, -7);
        std::ranges::fill(all_ids, -7);
        out_.resize(x.size());
        const std::span<cuda::Flag> flags = arrays.array<cuda::Flag>(2);
        cuda::send_job(step_, frame,
                       {job_x.data(), job_ids.data(), job_weights.data(), all_ids.data(), &flags[0], &flags[1]});
        cuda::run(step_, frame);
        cuda::sum_experts(step_, frame, arrays.copy(host), kShared, kOut);
        stream_->copy(out_.data(), slots[kOut], wide);
        stream_->wait(std::chrono::minutes(1));
        job_x_.assign(job_x.begin(), job_x.end());
        job_weights_.assign(job_weights.begin(), job_weights.end());
        job_ids_.assign(job_ids.begin(), job_ids.end());
        chosen_.assign(all_ids.begin(), all_ids.end());
        flag_ = flags[0].value;
        done_ = flags[1].value;
        if (flag_ == cuda::kNothingToDo)  // the CPU's numbers must not have been looked at
            for (size_t i = 0; i < out_.size(); ++i) out_[i] += host[i];
    }

    /// w2 (weight * swiglu(w1 x, w3 x)) of the experts of a row that are on the card.
    std::vector<double> made_by_card(const float* row, const int32_t* ids, const float* weights) const {
        std::vector<float> x(row, row + kHidden);
        if (step_.rounding == InputRounding::kE4M3) quant::round_e4m3_blocks128(x.data(), kHidden);
        std::vector<double> sum(kHidden, 0.0);
        for (int32_t k = 0; k < kTopK; ++k) {
            if (!is_here(ids[k])) continue;
            const auto* w = &numbers_[static_cast<size_t>(ids[k] * 3)];  // w1, w3, w2
            const auto times = [](const std::vector<float>& matrix, const std::vector<float>& in, int64_t n) {
                double total = 0;
                for (size_t i = 0; i < in.size(); ++i)
                    total += double{matrix[static_cast<size_t>(n) * in.size() + i]} * in[i];
                return total;
            };
            std::vector<float> h(kIntermediate);
            for (int64_t n = 0; n < kIntermediate; ++n) {
                const double gate = std::min(times(w[0], x, n), double{kLimit}),
                             up = std::clamp(times(w[1], x, n), -double{kLimit}, double{kLimit});
                h[static_cast<size_t>(n)] = static_cast<float>(weights[k] * gate / (1 + std::exp(-gate)) * up);
            }
            if (step_.rounding == InputRounding::kE4M3) quant::round_e4m3_blocks128(h.data(), kIntermediate);
            for (int64_t n = 0; n < kHidden; ++n) sum[static_cast<size_t>(n)] += times(w[2], h, n);
        }
        return sum;
    }

    std::vector<int32_t> resident_;
    std::mt19937 random_{5};
    std::deque<cpu::RandomMatrix> matrices_;
    std::deque<std::vector<std::byte>> packed_;
    std::vector<std::vector<float>> numbers_;
    ops::Plan plan_;
    ops::Experts step_;
    std::unique_ptr<cuda::Device> device_;
    std::unique_ptr<cuda::Stream> stream_;
    cuda::DeviceMemory memory_;
    std::unique_ptr<GpuExperts> on_card_;
    std::vector<float> job_x_, job_weights_, out_;
    std::vector<int32_t> job_ids_, chosen_;
    uint64_t flag_ = 0, done_ = 0;
};

const MatrixShape kFormats[] = {{Format::kBF16, 0, 0},
                                {Format::kQ8_0, 0, 0},
                                {Format::kE4M3, 0, 0, Format::kF32, 128, 128},
                                {Format::kE2M1Pair, 0, 0, Format::kE8M0, 1, 32},
                                {Format::kE2M1Pair, 0, 0, Format::kE4M3, 1, 16, false, 1.7e-4f},
                                {Format::kInt4Pair, 0, 0, Format::kBF16, 1, 128},
                                {Format::kInt4Pair, 0, 0, Format::kBF16, 1, 32}};

TEST(GpuExperts, EveryFormat) {
    for (const MatrixShape& format : kFormats) {
        SCOPED_TRACE(std::string(quant::traits(format.format).name));
        Experts experts(format, InputRounding::kExact, {7, 0, 3, 4});
        for (const int64_t rows : {1, 2, 14, 70}) experts.check(rows, 1e-5);  // few pairs an expert, some, many
    }
}

TEST(GpuExperts, VectorsAreRoundedAsTheModelWasTrained) {
    for (const MatrixShape& format : {kFormats[2], kFormats[3], kFormats[0]}) {
        Experts experts(format, InputRounding::kE4M3, {1, 2, 5, 8});
        // A number of h between two codes may become either.
        for (const int64_t rows : {1, 20}) experts.check(rows, 5e-3);
    }
}

TEST(GpuExperts, AllOfThemOrOne) {
    const MatrixShape& mxfp4 = kFormats[3];
    Experts all(mxfp4, InputRounding::kExact, {8, 7, 6, 5, 4, 3, 2, 1, 0}), one(mxfp4, InputRounding::kExact, {6});
    for (const int64_t rows : {1, 5, 60}) {
        all.check(rows, 1e-5);
        one.check(rows, 1e-5);
    }
}

TEST(GpuExperts, LongListsOfPairs) {
    Experts experts(kFormats[0], InputRounding::kExact, {2, 3});
    experts.check(cuda::ListPairs::kPiece / kTopK + 5, 1e-5);
}

/// What a trial has switched off still lies on the card: hits say so, so that a roofline of the hit rate is not lower
/// for it.
TEST(GpuExperts, WhatATrialLeavesOutIsAHitAllTheSame) {
    const Experts model(kFormats[0], InputRounding::kExact, {1, 4});
    const auto device = cuda::emulation::open({});
    const auto stream = device->new_stream();
    const std::vector<ExpertName> names = {{0, 1}, {0, 4}};
    const cuda::DeviceMemory memory(*device, GpuExperts::bytes_of(model.plan(), 2));
    GpuExperts experts(model.plan(), *device, names, memory.data(),
                       {.policy = ResidencyRules::Policy::kStatic, .tries = true});
    for (int pass = 0; pass < 100; ++pass) {
        experts.begin_pass(*stream, 1, false);
        const bool used = experts.on_card() != nullptr;
        experts.note(0, std::vector<int32_t>{1, 2, 3});
        experts.end_pass(std::chrono::duration<double>(used ? 2e-3 : 1e-3));  // it does not pay
    }
    EXPECT_EQ(experts.on_card(), nullptr);
    EXPECT_FALSE(experts.counters().decode.on);
    EXPECT_EQ(experts.counters().choices, 300);
    EXPECT_EQ(experts.counters().hits, 100);
}

/// R2: of those that are here as many are left to the CPU as make the longer side shortest, those of the fewest pairs
/// first; looked for one number after the other.
TEST(GpuExperts, WhatWouldMakeTheCardTheLongerSideIsLeftToTheCpu) {
    std::mt19937 random(11);
    const auto device = cuda::test_device();
    const auto stream = device->new_stream();
    constexpr int32_t kMany = 40;
    std::deque<cuda::DeviceMemory> memory;
    const auto ints = [&](int64_t count) {
        memory.emplace_back(*device, count * 4);
        return memory.back().as<int32_t>();
    };
    const cuda::PairLists lists{ints(kMany), ints(kMany + 1), ints(512), ints(2), ints(kMany)};
    int32_t *const card_ids = ints(512), *const card_slots = ints(kMany);
    int left_in_all = 0, taken_in_all = 0;
    for (int round = 0; round < 200; ++round) {
        const int64_t pairs = random() % 64 + 1;
        const auto number = [&](double most) {
            return static_cast<float>(random() % 1000) * 1e-3f * static_cast<float>(most);
        };
        const cuda::Balance balance{number(20) + 0.1f, number(20),
                                    number(60) + 0.1f, number(9),
                                    number(30),        random() % 2 == 0 ? 0 : static_cast<int32_t>(random() % 20)};
        std::vector<int32_t> ids(static_cast<size_t>(pairs)), slot_of(kMany), counts(kMany);
        for (int32_t& slot : slot_of) slot = random() % 3 == 0 ? -1 : static_cast<int32_t>(random() % 30);
        for (int32_t& id : ids) ++counts[static_cast<size_t>(id = static_cast<int32_t>(random() % kMany))];
        stream->copy(card_ids, ids.data(), pairs * 4);
        stream->copy(card_slots, slot_of.data(), kMany * 4);
        cuda::launch(*stream,
                     {.threads = cuda::ListPairs::kThreads, .shared_bytes = cuda::ListPairs::shared_bytes(kMany)},
                     cuda::ListPairs{card_ids, card_slots, lists, pairs, kMany, balance});
        std::vector<int32_t> taken(kMany), count(2);
        stream->copy(taken.data(), lists.taken, kMany * 4);
        stream->copy(count.data(), lists.count, 8);
        stream->wait(std::chrono::minutes(1));

        std::vector<int32_t> here;  // the first to be left first
        size_t stays = 0;           // of the core
        double cpu = balance.cpu_rest;
        bool any = false;
        const auto cost = [&](int32_t e) {
            return std::max(balance.cpu_expert, static_cast<float>(counts[static_cast<size_t>(e)]) * balance.cpu_pair);
        };
        for (int32_t e = kMany; e-- > 0;) {
            if (counts[static_cast<size_t>(e)] == 0) continue;
            if (slot_of[static_cast<size_t>(e)] >= balance.core)
                here.push_back(e);
            else if (slot_of[static_cast<size_t>(e)] >= 0)
                ++stays;
            else
                cpu += cost(e), any = true;
        }
        std::ranges::stable_sort(here, {}, [&](int32_t e) { return counts[static_cast<size_t>(e)]; });
        double best = INFINITY;
        size_t left = 0;
        for (size_t n = 0; n <= here.size(); ++n) {
            const double card = balance.card_rest + static_cast<double>(here.size() + stays - n) * balance.card_expert;
            const double longer = std::max(card, any || n > 0 ? cpu : 0.0);
            if (longer < best - 1e-4) best = longer, left = n;
            if (n < here.size()) cpu += cost(here[n]);
        }
        std::vector<int32_t> expected = slot_of;
        for (size_t n = 0; n < left; ++n) expected[static_cast<size_t>(here[n])] = -1;
        EXPECT_EQ(taken, expected) << round;
        int64_t elsewhere = 0;
        for (const int32_t id : ids) elsewhere += expected[static_cast<size_t>(id)] < 0;
        EXPECT_EQ(count[1], elsewhere);
        left_in_all += static_cast<int>(left);
        taken_in_all += count[0];
    }
    EXPECT_GT(left_in_all, 150);
    EXPECT_GT(taken_in_all, 300);
}

TEST(GpuExperts, WhatCannotLieOnACardIsNamed) {
    const Experts f32({Format::kF32, 0, 0}, InputRounding::kExact, {});
    EXPECT_EQ(GpuExperts::why_not(f32.plan()), "experts are F32 without a packed form that a GPU kernel takes");
    const Experts bf16(kFormats[0], InputRounding::kExact, {});
    EXPECT_EQ(GpuExperts::why_not(bf16.plan()), "");
    ops::Plan mixed = bf16.plan();
    mixed.experts[0].w2[4] = mixed.experts[0].w1[4];
    EXPECT_EQ(GpuExperts::why_not(mixed), "experts are not all of one format");
}

TEST(Placement, ExpertsAreSpreadOverTheLayers) {
    const Experts two_layers(kFormats[0], InputRounding::kExact, {});
    const auto names = spread_experts(expert_counts(two_layers.plan()), 5);
    ASSERT_EQ(names.size(), 5u);
    EXPECT_EQ(std::ranges::count_if(names, [](const ExpertName& one) { return one.set == 0; }), 3);
    EXPECT_EQ(spread_experts(expert_counts(two_layers.plan()), 1000).size(), 2u * kExperts);
    EXPECT_TRUE(spread_experts(expert_counts(two_layers.plan()), 0).empty());
}

}  // namespace
}  // namespace thermocline::scheduler
