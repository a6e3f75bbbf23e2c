// Prompts on an emulated card whose library multiplies dense matrices: the same logits as by the kernels alone, and
// what the trial at the start makes of a library that is wrong.
#include "memory/packed_weights.h"
#include "scheduler/gpu_executor.h"
#include "tests/cuda/test_device.h"
#include "tests/model/engine_fixture.h"
#include "tests/source_path.h"

#include <algorithm>
#include <gtest/gtest.h>

namespace thermocline {
namespace {

constexpr int32_t kRows = 300;
constexpr scheduler::ExecutorLimits kLimits = {.max_rows = 320, .max_outputs = 8, .max_tokens = 512};

struct Played {
    std::vector<std::string> report;
    std::vector<float> logits;  // of the last row
};

/// A prompt of the demo model, without rounding of any kind so that only the order of sums differs.
Played play_prompt(const cuda::emulation::Config& config) {
    model::LoadOptions options;
    options.kv_cache = model::KvCacheDtype::kF32;
    options.activations = model::Activations::kBf16;
    const auto model = model::load_model(source_path("models/demo"), options);
    memory::PackedWeights packed(std::vector<ops::Plan*>{&model->trunk}, nullptr,
                                 std::vector<memory::Slice>{{{}, {0}}});
    cpu::Workers workers{std::span<const int>()};
    const auto device = cuda::emulation::open(config);
    scheduler::GpuExecutor executor(model->trunk, *device, workers, cpu::select_kernels("auto"), kLimits, 1);
    executor.set_patience(std::chrono::minutes(5), std::chrono::minutes(5));  // loaded machines
    Played played{executor.use_library(), {}};
    std::vector<int32_t> tokens;
    for (int32_t i = 0; i < kRows; ++i) tokens.push_back((7 * i * i + 300) % static_cast<int32_t>(model->vocab));
    const auto sequence = executor.new_sequence();
    EXPECT_TRUE(sequence->reserve(kRows));
    const scheduler::Part parts[] = {{sequence.get(), tokens, 1}};
    executor.forward(parts);
    played.logits.assign(executor.logits(0), executor.logits(0) + model->vocab);
    return played;
}

int64_t count(const std::vector<std::string>& lines, std::string_view words) {
    return std::count_if(lines.begin(), lines.end(),
                         [&](const std::string& line) { return line.find(words) != std::string::npos; });
}

TEST(GpuLibrary, TakesProductsOfPromptsAndChangesNothing) {
    if (SANITIZED) GTEST_SKIP() << "a pass takes minutes there";
    const Played plain = play_prompt({});
    ASSERT_EQ(plain.report.size(), 1u);
    EXPECT_NE(plain.report[0].find("an emulated card has none"), std::string::npos) << plain.report[0];
    const Played taken = play_prompt({.library = true});
    EXPECT_EQ(count(taken.report, "naive product with 320 rows: "), std::ssize(taken.report));
    EXPECT_GT(count(taken.report, "used from 320 rows on"), 0) << taken.report[0];
    for (size_t i = 0; i < plain.logits.size(); ++i) ASSERT_NEAR(taken.logits[i], plain.logits[i], 1e-3) << i;
    // The product that the trial compares: the third time, of two numbers of bf16 for one of a vector.
    const Played mended = play_prompt({.library = true, .faults = {.spoil_product = 5}});
    EXPECT_EQ(count(mended.report, "it does not give what the kernels of this program give, not used"), 1)
        << mended.report[0];
    for (size_t i = 0; i < plain.logits.size(); ++i) ASSERT_NEAR(mended.logits[i], plain.logits[i], 1e-3) << i;
}

}  // namespace
}  // namespace thermocline
