// Timing steps: it changes no result, every step is counted, and no time and no byte is lost.
#include "scheduler/profiler.h"

#include "cpu/kernels.h"
#include "scheduler/cpu_executor.h"
#include "src/model/registry.h"

#include <cmath>
#include <gtest/gtest.h>
#include <vector>

namespace thermocline::scheduler {
namespace {

class Profiled : public testing::Test {
protected:
    Profiled() : workers_({}) {
        model::LoadOptions options;
        options.format = model::LoadFormat::kDummy;
        options.layers = 3;
        model_ = model::load_model(std::string(THERMOCLINE_SOURCE_DIR) + "/models/demo", options);
    }

    std::vector<float> logits(StepProfile* profile, int passes = 1) {
        CpuExecutor executor(model_->trunk, workers_, cpu::select_kernels("auto"), {.max_rows = 8, .max_tokens = 64});
        executor.profile_steps(profile);
        const std::vector<int32_t> tokens = {3, 1, 4, 1, 5};
        for (int i = 0; i < passes; ++i) {
            const auto sequence = executor.new_sequence();
            EXPECT_TRUE(sequence->reserve(5));
            const Part parts[] = {{sequence.get(), tokens, 1}};
            executor.forward(parts);
        }
        cost_ = executor.last_cost();
        return {executor.logits(0), executor.logits(0) + model_->vocab};
    }

    cpu::Workers workers_;
    std::unique_ptr<model::Model> model_;
    ops::Cost cost_;
};

TEST_F(Profiled, DummyWeightsGiveFiniteLogitsThatDiffer) {
    const std::vector<float> values = logits(nullptr);
    float lowest = values.front(), highest = values.front();
    for (const float value : values) {
        ASSERT_TRUE(std::isfinite(value));
        lowest = std::min(lowest, value);
        highest = std::max(highest, value);
    }
    EXPECT_GT(highest - lowest, 1.0f);
    EXPECT_LT(highest - lowest, 1000.0f);
    EXPECT_EQ(values, logits(nullptr));
}

TEST_F(Profiled, TimingChangesNothingAndMissesNothing) {
    StepProfile profile(model_->trunk);
    EXPECT_EQ(logits(&profile, 2), logits(nullptr));
    int64_t calls = 0;
    double seconds = 0.0;
    ops::Cost cost;
    bool named = false;
    for (const StepProfile::Line& line : profile.lines()) {
        calls += line.calls;
        seconds += line.seconds;
        cost += line.cost;
        if (line.name == "Linear attn.wq_b") {
            named = true;
            EXPECT_EQ(line.calls, 6);  // three layers, two passes
            EXPECT_GT(line.cost.bytes, 0);
        }
    }
    EXPECT_TRUE(named);
    EXPECT_EQ(calls, 2 * std::ssize(model_->trunk.steps));
    EXPECT_NEAR(seconds, profile.seconds(), 1e-6);
    EXPECT_EQ(cost.bytes, 2 * cost_.bytes);
    EXPECT_EQ(cost.flops, 2 * cost_.flops);
    EXPECT_NE(profile_table(profile, 10.0).find("between steps"), std::string::npos);
}

}  // namespace
}  // namespace thermocline::scheduler
