// Host memory without room for all experts: those on the card alone, and those read from the file. The whole chain on
// the bundled demo model and an emulated card.
#include "scheduler/placement_file.h"
#include "src/base/error.h"
#include "src/base/file.h"
#include "src/base/log.h"
#include "src/engine/assemble.h"
#include "src/engine/convert.h"
#include "src/quant/strips.h"
#include "tests/engine/collector.h"

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <gtest/gtest.h>
#include <set>

namespace thermocline::engine {
namespace {

const std::string kDemo = THERMOCLINE_SOURCE_DIR "/models/demo";
constexpr int64_t kContext = 256, kExperts = 64;

/// Numbers of which card and CPU differ by the order of sums alone.
EngineOptions options_for(const std::string& model) {
    EngineOptions options;
    options.model = model;
    options.threads = 1;
    options.max_model_len = kContext;
    options.prefill_chunk = kContext;
    options.load.kv_cache = model::KvCacheDtype::kF32;
    options.load.activations = model::Activations::kBf16;
    return options;
}

/// Budgets with room for so many experts.
struct Budgets {
    Budgets(int64_t slots, int64_t host) {
        model::LoadOptions load = options_for(kDemo).load;
        load.spare_rows = 256;  // as assemble() has them
        const auto model = model::load_model(kDemo, load);
        const ops::Plan* draft = model->mtp ? &*model->mtp : nullptr;
        card_bytes = scheduler::least_gpu_budget(model->trunk, nullptr,
                                                 {.context = kContext,
                                                  .sequences = 1,
                                                  .prefill_chunk = kContext,
                                                  .outputs = 32,
                                                  .least_expert_slots = slots},
                                                 {.runtime_bytes = 0, .library_bytes = 0});
        const auto plan = scheduler::plan_host_memory(
            model->trunk, draft,
            {.budget_bytes = 1, .is_asked = true, .on_card = slots > 0, .context = kContext, .rows = kContext});
        host_bytes = plan.budget_for(host);
    }
    int64_t card_bytes, host_bytes;
};

EngineOptions on_card(const Budgets& budgets, const std::string& model = kDemo) {
    EngineOptions options = options_for(model);
    options.gpus = {.gpus = "emulated", .memory_bytes = budgets.card_bytes};
    options.gpus.host_bytes = budgets.host_bytes;
    return options;
}

/// Greedy, after a prompt that is streamed and one that is not.
std::vector<int32_t> texts(Assembly& assembly) {
    std::string longer;
    for (int i = 0; i < 3; ++i) longer += "He was a very good man and had a house by the sea. ";
    std::vector<int32_t> ids;
    for (const std::string& prompt : {longer, std::string("And it came to pass")}) {
        Request request;
        request.prompt = assembly.tokenizer->encode(prompt);
        request.sampling.temperature = 0;
        request.max_tokens = 8;
        request.ignore_eos = true;
        auto collector = std::make_shared<Collector>();
        EXPECT_NE(assembly.engine->submit(std::move(request), collector), nullptr);
        EXPECT_TRUE(collector->done.pop(std::chrono::minutes(4)));
        EXPECT_EQ(collector->result.reason, FinishReason::kLength) << collector->result.error;
        ids.insert(ids.end(), collector->ids.begin(), collector->ids.end());
    }
    return ids;
}

std::string refusal(const EngineOptions& options) {
    try {
        assemble(options);
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

int64_t mib_after(const std::string& text, const std::string& flag) {
    const auto at = text.find(flag + " ");
    return at == std::string::npos ? 0 : std::stoll(text.substr(at + flag.size() + 1));
}

/// Of the draft head's own matrices.
int64_t packed_draft_bytes(const model::Model& model) {
    int64_t bytes = 0;
    std::set<const std::byte*> trunk;
    const auto count = [&](const quant::Matrix& matrix) {
        if (matrix.layout == quant::Layout::kStrips && !trunk.contains(matrix.data))
            bytes += matrix.rows / quant::kStripRows * matrix.strip_bytes;
    };
    for (const ops::NamedMatrix& named : model.trunk.matrices) trunk.insert(named.matrix.data);
    for (const ops::NamedMatrix& named : model.mtp->matrices) count(named.matrix);
    for (const ops::ExpertSet& set : model.mtp->experts)
        for (const auto* list : {&set.w1, &set.w3, &set.w2}) std::ranges::for_each(*list, count);
    return bytes;
}

TEST(ShortMemory, WhatIsOnTheCardAloneIsNotInHostMemoryAndTheTextStays) {
    log::start("error");
    Assembly cpu = assemble(options_for(kDemo));
    const std::vector<int32_t> expected = texts(cpu);
    const int64_t besides = packed_draft_bytes(*cpu.model);
    for (const auto& [slots, host, residency] : {std::tuple{40, 40, "adaptive"}, {64, 20, "lru"}}) {
        SCOPED_TRACE(std::to_string(slots) + " slots, " + std::to_string(host) + " in host memory, " + residency);
        EngineOptions options = on_card({slots, host});
        options.gpus.residency = residency;
        Assembly assembly = assemble(options);
        const scheduler::ExpertTiers& tiers = assembly.gpus->tiers();
        EXPECT_EQ(tiers.core, kExperts - host);
        EXPECT_EQ(tiers.slots, slots);
        EXPECT_EQ(texts(assembly), expected);
        // Two per cent of what was planned, and no page of what the card alone has.
        const ops::Plan* draft = assembly.model->mtp ? &*assembly.model->mtp : nullptr;
        const auto plan = scheduler::plan_host_memory(assembly.model->trunk, draft, {.on_card = true});
        int64_t least = plan.bytes_of(host), most = least;  // vectors of the draft head are not packed
        for (const scheduler::GpuMemoryLine& line : plan.lines) {
            if (line.name == "routed experts, draft") least += line.bytes;
            if (line.name.find("draft") != std::string::npos) most += line.bytes;
        }
        EXPECT_GE(static_cast<double>(assembly.packed->bytes()), 0.98 * static_cast<double>(least));
        EXPECT_LE(static_cast<double>(assembly.packed->bytes()), 1.02 * static_cast<double>(most));
        EXPECT_EQ(assembly.packed->bytes() - host * plan.expert_bytes, besides);
        EXPECT_LE(assembly.packed->memory().size(), static_cast<size_t>(assembly.packed->bytes()) + (size_t{2} << 20));
        EXPECT_EQ(assembly.packed->bytes() + assembly.packed->card_only_bytes(), cpu.packed->bytes());
        const ExpertUse use = expert_use(assembly);
        EXPECT_EQ(use.core, kExperts - host);
        EXPECT_GT(use.hits, 0);
    }
}

TEST(ShortMemory, WeightsOfAnotherSizeThanPlannedAreRefused) {
    scheduler::HostMemoryPlan plan;
    plan.experts = 10;
    plan.expert_bytes = 100'000'000;
    plan.all_expert_bytes = 1'000'000'000;
    plan.other_weight_bytes = 500'000'000;
    scheduler::check_weights(plan, 10, 1'500'000'000 + 29'000'000);
    scheduler::check_weights(plan, 5, 1'000'000'000 - 19'000'000);
    EXPECT_THROW(scheduler::check_weights(plan, 10, 1'500'000'000 + 31'000'000), Error);
    EXPECT_THROW(scheduler::check_weights(plan, 5, 1'500'000'000), Error);
}

TEST(ShortMemory, TheCoreIsTheLikeliestOfThePlacement) {
    const auto model = model::load_model(kDemo, options_for(kDemo).load);
    const ops::Plan& plan = model->trunk;
    const auto layers = scheduler::routed_layers(plan);
    const Budgets budgets(20, 60);  // a core of 4
    const std::string path = (std::filesystem::path(testing::TempDir()) / "short_memory_placement.json").string();
    std::vector<std::vector<double>> shares(layers.size(), std::vector<double>(16, 0.1));
    shares[2][7] = 1.0, shares[0][3] = 0.9, shares[3][15] = 0.8, shares[1][1] = 0.7, shares[1][2] = 3.0;
    const std::vector<scheduler::ExpertName> placed = {{0, 3}, {0, 4}, {1, 1}, {2, 7}, {2, 8}, {3, 15}};  // not 1:2
    for (const bool shares_known : {true, false}) {
        write_text(path,
                   dump_json(scheduler::placement_json(
                       {.resident = placed, .shares = shares_known ? shares : decltype(shares)()}, "demo", layers)));
        scheduler::Gpus gpus({.gpus = "emulated",
                              .memory_bytes = budgets.card_bytes,
                              .placement = path,
                              .host_bytes = budgets.host_bytes});
        scheduler::ExecutorLimits limits{.max_rows = kContext, .max_outputs = 32, .max_tokens = kContext};
        gpus.reserve(plan, "demo", limits, 1, true, {.draft = model->mtp ? &*model->mtp : nullptr});
        EXPECT_EQ(gpus.tiers().core, 4);
        const auto alone = gpus.card_only(plan);
        std::vector<scheduler::ExpertName> core;
        for (ops::ExpertsId set = 0; set < 4; ++set)
            for (int32_t e = 0; e < 16; ++e)
                if (std::ranges::find(alone, &plan.experts[static_cast<size_t>(set)].w2[static_cast<size_t>(e)]) !=
                    alone.end())
                    core.push_back({set, e});
        // Without shares the first of every layer.
        EXPECT_EQ(core, (std::vector<scheduler::ExpertName>{{0, 3}, {1, 1}, {2, 7}, {3, 15}})) << shares_known;
    }
}

TEST(ShortMemory, WhatFitsNowhereIsRefusedWithTheLeastBudgets) {
    const Budgets budgets(20, 30);
    const std::string refused = refusal(on_card(budgets));
    EXPECT_NE(refused.find("fit nowhere"), std::string::npos) << refused;
    EXPECT_NE(refused.find("--allow-file-experts"), std::string::npos) << refused;
    for (const bool card : {true, false}) {  // either budget is enough, and not a MiB less
        EngineOptions options = on_card(budgets);
        int64_t& budget = card ? options.gpus.memory_bytes : options.gpus.host_bytes;
        budget = mib_after(refused, card ? "--gpu-memory" : "--host-memory") << 20;
        ASSERT_GT(budget, 0) << refused;
        EXPECT_EQ(refusal(options), "") << card;
        budget -= int64_t{2} << 20;
        EXPECT_NE(refusal(options), "") << card;
    }
    // Files that hold no packed weights are read as a whole.
    EngineOptions options = on_card(budgets);
    options.gpus.file_experts = true;
    EXPECT_NE(refusal(options).find("thermocline convert"), std::string::npos) << refusal(options);
    options = on_card(budgets);
    options.gpus.offload_experts = "stream";
    options.gpus.host_bytes = Budgets(20, 50).host_bytes;  // 14 of 20 slots are the core's
    EXPECT_NE(refusal(options).find("of which 14 are in no other memory"), std::string::npos) << refusal(options);
    // Without a card.
    options = options_for(kDemo);
    options.gpus.host_bytes = Budgets(0, 30).host_bytes;
    EXPECT_NE(refusal(options).find("fit nowhere"), std::string::npos) << refusal(options);
    options.gpus.host_bytes = Budgets(0, kExperts).host_bytes;
    EXPECT_EQ(refusal(options), "");
    options.gpus.host_bytes = 1 << 20;
    EXPECT_NE(refusal(options).find("host memory of"), std::string::npos) << refusal(options);
}

TEST(ShortMemory, ConvertedModelsReadFromTheFile) {
    const std::string folder = (std::filesystem::path(testing::TempDir()) / "short_memory_converted").string();
    std::filesystem::remove_all(folder);
    convert({.model = kDemo, .destination = folder});
    Assembly cpu = assemble(options_for(kDemo));
    const std::vector<int32_t> expected = texts(cpu);
    for (const bool card : {true, false}) {
        EngineOptions options = card ? on_card({20, 30}, folder) : options_for(folder);
        if (!card) options.gpus.host_bytes = Budgets(0, 30).host_bytes;
        EXPECT_NE(refusal(options).find("--allow-file-experts"), std::string::npos);
        options.gpus.file_experts = true;
        Assembly assembly = assemble(options);
        EXPECT_EQ(assembly.gpus->tiers().core, card ? 20 : 0);
        EXPECT_EQ(assembly.gpus->tiers().file, card ? 14 : 34);
        EXPECT_EQ(texts(assembly), expected) << card;
    }
    std::filesystem::remove_all(folder);
}

}  // namespace
}  // namespace thermocline::engine
