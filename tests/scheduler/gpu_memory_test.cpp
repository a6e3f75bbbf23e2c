// Budgets of a card against the byte tables of hybrid-engine.md (1.1, 1.2, 5.2) for the published models, of which only
// the configs are here, and against what the loaded demo model really has.
#include "scheduler/gpu_memory.h"

#include "cpu/kernels.h"
#include "cuda/emulation/device.h"
#include "memory/packed_weights.h"
#include "scheduler/gpu_executor.h"
#include "scheduler/gpu_weights.h"
#include "src/base/error.h"
#include "src/model/registry.h"

#include <algorithm>
#include <gtest/gtest.h>
#include <memory>

namespace thermocline::scheduler {
namespace {

constexpr int64_t kKi = 1024;
const std::string kRoot = THERMOCLINE_SOURCE_DIR;

std::unique_ptr<model::Model> outline(const std::string& name, model::KvCacheDtype kv = model::KvCacheDtype::kFp8) {
    model::LoadOptions options;
    options.format = model::LoadFormat::kOutline;
    options.kv_cache = kv;
    options.spare_rows = 0;
    return model::load_model(kRoot + "/configs/models/" + name + ".json", options);
}
const model::Model& flash() {
    static const std::unique_ptr<model::Model> model = outline("deepseek-v4-flash");
    return *model;
}
const model::Model& pro() {
    static const std::unique_ptr<model::Model> model = outline("deepseek-v4-pro");
    return *model;
}

double gb(int64_t bytes) { return static_cast<double>(bytes) * 1e-9; }

int64_t bytes_of(const GpuMemoryPlan& plan, const std::string& name) {
    const auto found = std::find_if(plan.lines.begin(), plan.lines.end(),
                                    [&](const GpuMemoryLine& line) { return line.name == name; });
    return found == plan.lines.end() ? 0 : found->bytes;
}

/// Every byte of the budget is in one place.
void expect_whole(const GpuMemoryPlan& plan) {
    if (plan.refusal.empty())
        EXPECT_EQ(plan.fixed_bytes() + plan.expert_slots * plan.slot_bytes + plan.unused_bytes, plan.budget_bytes);
    else
        EXPECT_EQ(plan.expert_slots * plan.slot_bytes + plan.unused_bytes,
                  std::max<int64_t>(0, plan.budget_bytes - plan.fixed_bytes()));
}

TEST(GpuMemory, WeightsAreThoseOfTheByteTable) {
    EXPECT_NEAR(gb(GpuWeights::bytes_of(flash().trunk)), 7.76, 0.04);
    EXPECT_NEAR(gb(GpuWeights::bytes_of(pro().trunk)), 26.81, 0.13);
    EXPECT_EQ(expert_slot_bytes(flash().trunk), 13'369'344);
    EXPECT_NEAR(gb(expert_slot_bytes(pro().trunk)) * 1e3, 35.095, 0.001);
    const GpuMemoryPlan plan =
        plan_gpu_memory(flash().trunk, nullptr, {.budget_bytes = 96'000'000'000, .context = 8 * kKi});
    EXPECT_EQ(plan.experts, 43 * 256);
    EXPECT_NEAR(gb(plan.experts * plan.slot_bytes), 147.2, 0.1);
}

TEST(GpuMemory, CachesAreThoseOfTheTables) {
    for (const auto& [context, of_flash, of_pro] :
         {std::tuple{64 * kKi, 0.26, 0.37}, {256 * kKi, 1.01, 1.45}, {1024 * kKi, 4.04, 5.78}}) {
        // The tables count index keys of 132 bytes (FP8), fp8 keeps the 68 bytes of FP4; states are not in them.
        const auto with_fp8_keys = [](const SequenceKv& kv) {
            return gb(kv.entries.bytes) + gb(kv.keys.bytes) * 132.0 / 68.0;
        };
        EXPECT_NEAR(with_fp8_keys(sequence_kv(flash().trunk, context)), of_flash, 0.03 * of_flash + 0.005) << context;
        EXPECT_NEAR(with_fp8_keys(sequence_kv(pro().trunk, context)), of_pro, 0.03 * of_pro + 0.005) << context;
    }
    const SequenceKv kv = sequence_kv(flash().trunk, 128 * kKi);
    EXPECT_NEAR(gb(kv.windows.bytes) * 1e3, 3.2, 0.1);  // 5.3
    EXPECT_NEAR(gb(kv.windows.bytes + kv.states.bytes) * 1e3, 16.0, 1.5);
    EXPECT_EQ(kv.bytes(), gpu_sequence_bytes(flash().trunk, 128 * kKi));
    // A million tokens: field-notes.md has 3.9 GB (FP8) and 6.9 (BF16); 1024 bytes an entry and 256 an index key make
    // it 7.2.
    const auto bf16 = outline("deepseek-v4-flash", model::KvCacheDtype::kBf16);
    EXPECT_NEAR(gb(sequence_kv(bf16->trunk, 1024 * kKi).bytes()), 7.23, 0.02);
    EXPECT_NEAR(gb(sequence_kv(flash().trunk, 1024 * kKi).bytes()), 3.9 - 0.35, 0.2);  // index keys of FP4
}

TEST(GpuMemory, TheExampleOfTheFieldNotes) {
    // 8 x 36K tokens: a guide plans about 2 GB of KV. Computed: 3.5 KB a token and 14 MB of windows and states.
    const GpuMemoryPlan plan =
        plan_gpu_memory(flash().trunk, nullptr,
                        {.budget_bytes = 192'000'000'000, .context = 36 * kKi, .sequences = 8, .prefill_chunk = 4096});
    EXPECT_EQ(plan.refusal, "");
    int64_t kv = 0;
    for (const GpuMemoryLine& line : plan.lines)
        if (line.name.rfind("KV", 0) == 0) kv += line.bytes;
    EXPECT_NEAR(gb(kv), 1.15, 0.05);
    EXPECT_EQ(plan.expert_slots, plan.experts);  // one card of 192 GB holds all
    expect_whole(plan);
}

TEST(GpuMemory, BudgetsOfTheTwoReferenceMachines) {
    const auto plan_of = [](int64_t budget, int64_t chunk) {
        return plan_gpu_memory(flash().trunk, &*flash().mtp,
                               {.budget_bytes = budget, .context = 128 * kKi, .prefill_chunk = chunk});
    };
    const GpuMemoryPlan w1 = plan_of(96'000'000'000, 8192), w3 = plan_of(32'000'000'000, 4096);
    for (const GpuMemoryPlan* plan : {&w1, &w3}) {
        EXPECT_EQ(plan->refusal, "");
        EXPECT_TRUE(plan->given_up.empty());
        EXPECT_TRUE(plan->draft_heads);
        expect_whole(*plan);
        EXPECT_LT(plan->unused_bytes, plan->slot_bytes);
    }
    EXPECT_NEAR(gb(bytes_of(w1, "safety")), 1.44, 1e-9);
    // 5.2 counts 190 KB of activations a token. Slots of a plan are float32 and live side by side: 508 KB, and scratch.
    const auto with_workspace = [](const GpuMemoryPlan& plan, double wanted) {
        const int64_t ours = bytes_of(plan, "workspace: decode") + bytes_of(plan, "workspace: prefill") +
                             bytes_of(plan, "workspace: experts");
        return static_cast<double>(plan.expert_slots) +
               (static_cast<double>(ours) - wanted) / static_cast<double>(plan.slot_bytes);
    };
    EXPECT_NEAR(with_workspace(w1, 1.6e9), 6200, 62) << gpu_memory_text(w1);
    EXPECT_NEAR(with_workspace(w3, 0.8e9), 1550, 31) << gpu_memory_text(w3);
}

TEST(GpuMemory, TheDraftHeadGoesFirstThenTheChunk) {
    GpuMemoryWishes wishes{.budget_bytes = 16'000'000'000, .context = 64 * kKi, .prefill_chunk = 8192};
    const GpuMemoryPlan roomy = plan_gpu_memory(flash().trunk, &*flash().mtp, wishes);
    ASSERT_TRUE(roomy.draft_heads) << gpu_memory_text(roomy);
    wishes.budget_bytes = roomy.fixed_bytes() - 50'000'000;  // safety is less of a smaller budget
    const GpuMemoryPlan no_draft = plan_gpu_memory(flash().trunk, &*flash().mtp, wishes);
    EXPECT_FALSE(no_draft.draft_heads);
    EXPECT_EQ(no_draft.prefill_chunk, 8192);
    ASSERT_EQ(no_draft.given_up.size(), 1u);
    EXPECT_NE(no_draft.given_up[0].find("draft head"), std::string::npos);
    wishes.budget_bytes = no_draft.fixed_bytes() - 100'000'000;
    const GpuMemoryPlan shorter = plan_gpu_memory(flash().trunk, &*flash().mtp, wishes);
    EXPECT_EQ(shorter.refusal, "");
    EXPECT_LT(shorter.prefill_chunk, 8192);
    EXPECT_NE(shorter.given_up.at(1).find("instead of 8192"), std::string::npos) << shorter.given_up.at(1);
    expect_whole(shorter);
    // Before a slot that was asked for.
    wishes.budget_bytes = roomy.budget_bytes;
    wishes.least_expert_slots = roomy.expert_slots + 1;
    EXPECT_FALSE(plan_gpu_memory(flash().trunk, &*flash().mtp, wishes).draft_heads);
}

int64_t number_after(const std::string& text, const std::string& flag) {
    const size_t at = text.find(flag);
    EXPECT_NE(at, std::string::npos) << text;
    return at == std::string::npos ? 0 : std::stoll(text.substr(at + flag.size()));
}

TEST(GpuMemory, ARefusalNamesTheLargestValueThatFits) {
    GpuMemoryWishes wishes{
        .budget_bytes = 14'000'000'000, .context = 1024 * kKi, .sequences = 16, .prefill_chunk = 512};
    const auto refusal = [&] {
        const GpuMemoryPlan plan = plan_gpu_memory(flash().trunk, nullptr, wishes);
        expect_whole(plan);
        return plan.refusal;
    };
    const std::string text = refusal();
    EXPECT_NE(text.find("KV: compressed entries"), std::string::npos) << text;
    const GpuMemoryWishes asked = wishes;
    for (const auto& [flag, wish] :
         {std::pair{"--max-model-len ", &GpuMemoryWishes::context}, {"--max-num-seqs ", &GpuMemoryWishes::sequences}}) {
        wishes = asked;
        wishes.*wish = number_after(text, flag);
        EXPECT_EQ(refusal(), "") << flag;
        wishes.*wish += wishes.*wish < 1000 ? 1 : 64 * kKi;
        EXPECT_NE(refusal(), "") << flag;
    }
    wishes = asked;
    wishes.budget_bytes = number_after(text, "or --gpu-memory ") << 20;
    EXPECT_EQ(refusal(), "");
    wishes.budget_bytes -= 2 << 20;
    EXPECT_NE(refusal(), "");
}

TEST(GpuMemory, AModelThatDoesNotFitIsRefusedByItsWeights) {
    // hybrid-engine.md 1.1: V4-Pro cannot be served from a 32 GB card with more than a little context.
    GpuMemoryWishes wishes{.budget_bytes = 27'000'000'000, .context = 8 * kKi, .prefill_chunk = 512};
    const GpuMemoryPlan plan = plan_gpu_memory(pro().trunk, &*pro().mtp, wishes);
    EXPECT_NE(plan.refusal.find("dense weights of 26.8"), std::string::npos) << plan.refusal;
    EXPECT_EQ(plan.refusal.find("--max-model-len"), std::string::npos) << plan.refusal;
    wishes.budget_bytes = number_after(plan.refusal, "; use --gpu-memory ") << 20;
    EXPECT_EQ(plan_gpu_memory(pro().trunk, nullptr, wishes).refusal, "");
    // All experts resident, as --offload-experts none asks.
    wishes.budget_bytes = 96'000'000'000;
    wishes.least_expert_slots = 61 * 384;
    const std::string text = plan_gpu_memory(pro().trunk, nullptr, wishes).refusal;
    EXPECT_NE(text.find("23424 expert slots"), std::string::npos) << text;
    EXPECT_LT(text.size(), 300u);
}

TEST(GpuMemory, EveryBudgetFromNothingUpIsWholeAndMonotone) {
    int64_t last = 0;
    for (int64_t budget = 1; budget < 400'000'000'000; budget = budget * 3 / 2 + 1) {
        const GpuMemoryPlan plan =
            plan_gpu_memory(flash().trunk, nullptr, {.budget_bytes = budget, .context = 8 * kKi});
        expect_whole(plan);
        EXPECT_GE(plan.expert_slots, last);
        last = plan.expert_slots;
    }
    EXPECT_EQ(last, 43 * 256);
}

/// The budget against a card that has been loaded: nothing is taken that was not counted, to the byte.
TEST(GpuMemory, WhatIsPlannedIsWhatIsTaken) {
    const auto model = model::load_model(kRoot + "/models/demo", {});
    const ops::Plan& plan = model->trunk;
    const int64_t slot = expert_slot_bytes(plan);
    const GpuMemoryWishes wishes{.budget_bytes = 200'000'000,
                                 .context = 256,
                                 .sequences = 2,
                                 .prefill_chunk = 64,
                                 .least_prefill_chunk = 64,
                                 .outputs = 8};
    const GpuMemoryPlan budget = plan_gpu_memory(plan, nullptr, wishes, {.runtime_bytes = 0, .library_bytes = 0});
    EXPECT_EQ(budget.refusal, "") << gpu_memory_text(budget);
    EXPECT_EQ(budget.expert_slots, budget.experts);
    const memory::PackedWeights packed(std::vector<ops::Plan*>{&model->trunk}, nullptr,
                                       std::vector<memory::Slice>{{{}, {0}}});
    EXPECT_EQ(expert_slot_bytes(plan), slot);  // as before packing
    const auto device = cuda::emulation::open({});
    const int64_t before = device->free_bytes();
    cpu::Workers workers({});
    const ExecutorLimits limits{.max_rows = 64, .max_outputs = 8, .max_tokens = 256, .max_parts = 2};
    const GpuExecutor executor(plan, *device, workers, cpu::select_kernels("scalar"), limits, 2,
                               spread_experts(expert_counts(plan), budget.expert_slots));
    EXPECT_EQ(before - device->free_bytes(), budget.executor_bytes()) << gpu_memory_text(budget);
}

TEST(GpuMemory, WishesAreChecked) {
    const GpuMemoryWishes wishes{
        .budget_bytes = 96'000'000'000, .context = 8 * kKi, .sequences = 4, .prefill_chunk = 512};
    for (const auto& [wish, value, part] :
         {std::tuple{&GpuMemoryWishes::context, int64_t{0}, "--max-model-len is 0"},
          {&GpuMemoryWishes::sequences, int64_t{1} << 40, "--max-num-seqs is"},
          {&GpuMemoryWishes::budget_bytes, int64_t{-5}, "--gpu-memory is -5"},
          {&GpuMemoryWishes::least_expert_slots, int64_t{1} << 40, "expert slots is"}}) {
        GpuMemoryWishes wrong = wishes;
        wrong.*wish = value;
        try {
            plan_gpu_memory(flash().trunk, nullptr, wrong);
            ADD_FAILURE() << part;
        } catch (const Error& error) {
            EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
        }
    }
}

TEST(GpuMemory, TheTableIsForPeople) {
    const std::string text = gpu_memory_text(
        plan_gpu_memory(flash().trunk, &*flash().mtp,
                        {.budget_bytes = 96'000'000'000, .context = 128 * kKi, .sequences = 2, .prefill_chunk = 4096}));
    for (const char* part : {"dense weights", "KV: index keys", "2 sequences x", "expert slots", "of 11008 experts",
                             "budget                       96.000 GB"})
        EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
    size_t column = 0;
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
        const size_t at = line.find(" GB");
        if (column == 0) column = at;
        EXPECT_EQ(at, column) << text;
    }
}

}  // namespace
}  // namespace thermocline::scheduler
