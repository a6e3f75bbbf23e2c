// --deterministic with an emulated card: what a row gives does not depend on how a prompt is cut, on what is recorded,
// or on the sequence beside it, in any bit.
#include "memory/packed_weights.h"
#include "scheduler/gpu_executor.h"
#include "scheduler/gpus.h"
#include "src/base/error.h"
#include "tests/cuda/test_device.h"
#include "tests/model/engine_fixture.h"
#include "tests/model/tiny_model.h"
#include "tests/source_path.h"

#include <gtest/gtest.h>

namespace thermocline {
namespace {

using scheduler::ResidencyRules;

constexpr size_t kTokens = 72, kPrompt = 68;  // more rows than are recorded; experts of many and of few pairs
constexpr scheduler::ExecutorLimits kLimits = {.max_rows = 96, .max_outputs = 96, .max_tokens = 128};

struct Demo {
    explicit Demo(model::KvCacheDtype kv_cache) {
        model::LoadOptions options;
        options.kv_cache = kv_cache;
        // Vectors of products are rounded to e4m3 as in training, which hides most differences; or not at all.
        if (kv_cache == model::KvCacheDtype::kF32) options.activations = model::Activations::kBf16;
        model = model::load_model(source_path("models/demo"), options);
        packed = std::make_unique<memory::PackedWeights>(std::vector<ops::Plan*>{&model->trunk}, nullptr,
                                                         std::vector<memory::Slice>{{{}, {0}}});
    }

    std::unique_ptr<model::Model> model;
    std::unique_ptr<memory::PackedWeights> packed;
};

/// A card with every second expert.
class OnCard {
public:
    OnCard(const Demo& demo, bool batch_invariant) : vocab_(demo.model->vocab), device_(cuda::test_device({})) {
        const ops::Plan& plan = demo.model->trunk;
        scheduler::ExecutorLimits limits = kLimits;
        limits.batch_invariant = batch_invariant;
        executor_.emplace(plan, *device_, workers_, cpu::select_kernels("auto"), limits, 2,
                          scheduler::spread_experts(scheduler::expert_counts(plan), scheduler::expert_count(plan) / 2),
                          ResidencyRules{.policy = ResidencyRules::Policy::kStatic, .fixed = true});
        executor_->set_patience(std::chrono::minutes(5), std::chrono::minutes(5));  // loaded machines
    }

    scheduler::GpuExecutor& executor() { return *executor_; }

    /// The logits of the last tokens, each of a pass of its own behind a prompt.
    Logits decoded(std::span<const int32_t> tokens) {
        const auto sequence = executor_->new_sequence();
        (void)feed(*executor_, *sequence, tokens.first(kPrompt), kPrompt);
        return feed(*executor_, *sequence, tokens.subspan(kPrompt), 1);
    }

    /// The same of one pass over all, behind a little of it; `beside`: another sequence's tokens in that pass.
    Logits as_prompt(std::span<const int32_t> tokens, std::span<const int32_t> beside) {
        const auto sequence = executor_->new_sequence(), other = executor_->new_sequence();
        (void)feed(*executor_, *sequence, tokens.first(5), 5);
        EXPECT_TRUE(sequence->reserve(kTokens) && other->reserve(kTokens));
        std::vector<scheduler::Part> parts = {{other.get(), beside, 0},
                                              {sequence.get(), tokens.subspan(5), kTokens - kPrompt}};
        if (beside.empty()) parts.erase(parts.begin());
        executor_->forward(parts);
        Logits logits;
        for (size_t i = 0; i < kTokens - kPrompt; ++i) {
            const float* row = executor_->logits(static_cast<int64_t>(i));
            logits.emplace_back(row, row + vocab_);
        }
        return logits;
    }

private:
    int64_t vocab_;
    cpu::Workers workers_{std::span<const int>()};
    std::unique_ptr<cuda::Device> device_;
    std::optional<scheduler::GpuExecutor> executor_;
};

TEST(Deterministic, ARowGivesTheSameBitsInAnyBatch) {
    if (SANITIZED) GTEST_SKIP() << "a pass takes minutes there";
    for (const auto cache : {model::KvCacheDtype::kFp8, model::KvCacheDtype::kF32}) {  // attention in tiles, and not
        const Demo demo(cache);
        const std::vector<int32_t> tokens = tiny::tokens(kTokens);
        OnCard card(demo, true);
        const Logits expected = card.decoded(tokens);
        EXPECT_EQ(card.as_prompt(tokens, {}), expected);
        EXPECT_EQ(card.as_prompt(tokens, std::span(tokens).subspan(11, 20)), expected);
        if (cache == model::KvCacheDtype::kF32) {
            EXPECT_NE(OnCard(demo, false).as_prompt(tokens, {}), expected) << "this test shows nothing";
        }
    }
}

TEST(Deterministic, ExpertsStayWhereTheyAre) {
    const Demo demo(model::KvCacheDtype::kFp8);
    const auto executor_for = [&](bool deterministic) {
        scheduler::Gpus gpus({.memory_bytes = 16'500'000, .offload_experts = "auto", .deterministic = deterministic},
                             cuda::emulation::open({}));
        scheduler::ExecutorLimits limits = kLimits;
        gpus.reserve(demo.model->trunk, "demo", limits, 1, true);
        EXPECT_EQ(limits.batch_invariant, deterministic);
        EXPECT_LT(gpus.tiers().slots, gpus.tiers().experts);
        return gpus.tiers().ring;
    };
    EXPECT_GT(executor_for(false), 0);
    EXPECT_EQ(executor_for(true), 0) << "none pass through the card";

    const std::vector<int32_t> tokens = tiny::tokens(3);
    OnCard card(demo, true);
    EXPECT_EQ(card.executor().movable_slots(), 0);
    const auto before = card.executor().resident();
    (void)feed(card.executor(), *card.executor().new_sequence(), tokens, 1);
    EXPECT_EQ(card.executor().resident(), before);
    EXPECT_EQ(card.executor().residency().changes, 0);
}

TEST(Deterministic, WhatMovesExpertsIsRefused) {
    try {
        scheduler::Gpus gpus({.offload_experts = "stream", .deterministic = true}, cuda::emulation::open({}));
        FAIL();
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("--deterministic"), std::string::npos) << error.what();
    }
}

}  // namespace
}  // namespace thermocline
