// Every step of the CPU backend against the oracle.
#include "cpu/run.h"
#include "tests/model/engine_fixture.h"
#include "tests/model/tiny_model.h"
#include "tests/oracle.h"
#include "tests/step_check.h"

#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>

namespace thermocline {
namespace {

using model::KvCacheDtype;

/// Buffers and caches of one plan, as the executor lays them out, for playing single steps.
class CpuStage : public Stage {
public:
    CpuStage(const ops::Plan& plan, const char* tier)
        : plan_(plan), kernels_(*cpu::find_kernels(tier)), workers_(std::span<const int>()) {
        for (const ops::SlotSpec& slot : plan.slots) storage_.emplace_back(static_cast<size_t>(slot.cols * kMaxRows));
        for (const ops::RopeTable& rope : plan.ropes)
            rotations_.emplace_back(static_cast<size_t>(rope.dims() * kMaxRows));
        for (auto& slot : storage_) slots_.push_back(slot.data());
        for (auto& rope : rotations_) rotation_pointers_.push_back(rope.data());
        const cpu::ScratchSize size = cpu::scratch_size(plan, kMaxRows, kMaxTokens);
        shared_.resize(static_cast<size_t>(size.shared));
        per_worker_.resize(static_cast<size_t>(size.per_worker));
    }

    void begin(const ops::Batch& batch) override {
        for (size_t i = 0; i < plan_.ropes.size(); ++i) cpu::rotations(plan_.ropes[i], batch, rotations_[i].data());
    }
    void run(const ops::Step& step, const ops::Batch& batch) override {
        const cpu::Frame frame{plan_,   batch,       slots_.data(), rotation_pointers_.data(),
                               shared_, per_worker_, workers_,      kernels_};
        std::visit([&](const auto& one) { cpu::run(one, frame); }, step);
    }
    std::span<float> slot(ops::Slot id) override { return storage_[static_cast<size_t>(id)]; }

private:
    const ops::Plan& plan_;
    const cpu::KernelTable& kernels_;
    cpu::Workers workers_;
    std::vector<std::vector<float>> storage_, rotations_;
    std::vector<float*> slots_;
    std::vector<const float*> rotation_pointers_;
    std::vector<float> shared_, per_worker_;
};

void expect_tier_matches(const ops::Plan& plan, const std::string& tier, double tolerance, double wrong_share) {
    SCOPED_TRACE(tier);
    CpuStage stage(plan, tier.c_str());
    expect_steps_match(plan, stage, tolerance, wrong_share);
}

TEST(Steps, F32CachesMatchTheOracle) {
    for (const std::string& tier : available_tiers()) {
        expect_tier_matches(tiny_model(KvCacheDtype::kF32).trunk, tier, 2e-6, 0);
        expect_tier_matches(*tiny_model(KvCacheDtype::kF32).mtp, tier, 2e-6, 0);
    }
}

// A number that lies between two codes may be rounded to either.
TEST(Steps, RoundedCachesMatchTheOracle) {
    for (const std::string& tier : available_tiers()) {
        for (const KvCacheDtype format : {KvCacheDtype::kBf16, KvCacheDtype::kFp8F32, KvCacheDtype::kFp8})
            expect_tier_matches(tiny_model(format).trunk, tier, 1e-5, 1e-4);
    }
}

// In the tiny model 19 Sinkhorn rounds give nearly the same as 20; mixing matrices that are far from uniform show the
// difference.
TEST(Steps, SinkhornRoundsAreCounted) {
    ops::Plan plan = tiny_model(KvCacheDtype::kF32).trunk;
    const auto set_rounds = [&](int32_t rounds) {
        for (ops::Step& step : plan.steps)
            if (auto* s = std::get_if<ops::HyperIn>(&step)) s->sinkhorn_iterations = rounds;
    };
    for (const ops::Step& step : plan.steps)
        if (const auto* s = std::get_if<ops::HyperIn>(&step))
            for (float& scale : plan.vectors[static_cast<size_t>(s->scale)].values) scale *= 6;

    const auto mixing = [&] {  // of the first site
        oracle::OracleState state(plan);
        oracle::OracleSequences sequences = {&state};
        const oracle::OracleBatch batch(sequences, {tiny::tokens(50)}, 1);
        oracle::OracleSlots slots = oracle::make_slots(plan, batch.view());
        for (const ops::Step& step : plan.steps) {
            oracle::oracle_step(plan, step, batch.view(), sequences, slots);
            if (const auto* s = std::get_if<ops::HyperIn>(&step)) return slots[static_cast<size_t>(s->post_comb)];
        }
        return std::vector<double>();
    };
    const std::vector<double> twenty = mixing();
    set_rounds(19);
    const std::vector<double> nineteen = mixing();
    double largest = 0;
    for (size_t i = 0; i < twenty.size(); ++i) largest = std::max(largest, std::abs(twenty[i] - nineteen[i]));
    EXPECT_GT(largest, 1e-4) << "this test would not see a missing round";

    set_rounds(20);
    for (const std::string& tier : available_tiers()) {
        expect_tier_matches(plan, tier, 1e-5, 0);
    }
}

}  // namespace
}  // namespace thermocline
