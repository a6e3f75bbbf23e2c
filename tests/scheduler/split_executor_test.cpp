// Models whose layers are split over emulated cards: the same logits as on one card to the last bit, and as on the CPU;
// experts of all layers wherever they lie; and what happens when one of the cards fails.
#include "scheduler/split_executor.h"

#include "memory/packed_weights.h"
#include "scheduler/gpus.h"
#include "scheduler/placement_file.h"
#include "scheduler/routing_profile.h"
#include "src/base/error.h"
#include "src/base/file.h"
#include "src/base/json.h"
#include "tests/cuda/test_device.h"
#include "tests/model/engine_fixture.h"
#include "tests/model/tiny_model.h"
#include "tests/source_path.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <gtest/gtest.h>
#include <memory>
#include <numeric>
#include <set>
#include <string>
#include <vector>

namespace thermocline {
namespace {

using model::KvCacheDtype;
using scheduler::ExecutorLimits;
using scheduler::ExpertName;
using scheduler::LayerRange;
using Configs = std::vector<cuda::emulation::Config>;

constexpr ExecutorLimits kLimits = {.max_rows = 48, .max_outputs = 48, .max_tokens = 128, .max_parts = 2};
constexpr std::chrono::minutes kPatience(2);  // sanitizers and loaded machines

size_t layers_of(const ops::Plan& plan) { return ops::layer_starts(plan).size() - 1; }

/// The demo model, packed, its caches and activations not rounded: what differs by an order of sums stays close.
struct Demo {
    Demo() {
        model::LoadOptions options;
        options.kv_cache = KvCacheDtype::kF32;
        options.activations = model::Activations::kBf16;
        model = model::load_model(source_path("models/demo"), options);
        packed = std::make_unique<memory::PackedWeights>(std::vector<ops::Plan*>{&model->trunk}, nullptr,
                                                         std::vector<memory::Slice>{{{}, {0}}});
    }
    std::unique_ptr<model::Model> model;
    std::unique_ptr<memory::PackedWeights> packed;
};
Demo& demo() {
    static Demo one;
    return one;
}

/// A trunk on emulated cards; with one range on one.
class OnCards {
public:
    OnCards(const model::Model& of, const std::vector<LayerRange>& ranges, std::span<const ExpertName> resident,
            const Configs& configs = {},
            const scheduler::ResidencyRules& rules = {.policy = scheduler::ResidencyRules::Policy::kStatic})
        : model(of), workers(std::span<const int>()), executor(model.trunk, kLimits) {
        for (size_t i = 0; i < ranges.size(); ++i) {
            cuda::emulation::Config config = i < configs.size() ? configs[i] : cuda::emulation::Config();
            config.index = static_cast<int>(i);
            devices.push_back(cuda::emulation::open(config));
        }
        for (size_t i = 0; i < ranges.size(); ++i)
            executor.add(ranges[i], [&](const ops::Plan& part) {
                return std::make_unique<scheduler::GpuExecutor>(part, *devices[i], workers, cpu::select_kernels("auto"),
                                                                kLimits, 2,
                                                                scheduler::experts_within(resident, ranges[i]), rules);
            });
        executor.set_patience(kPatience, kPatience);
    }

    const model::Model& model;
    cpu::Workers workers;
    std::vector<std::unique_ptr<cuda::Device>> devices;
    scheduler::SplitExecutor executor;
};

/// Prompt, decode and a few rows at once.
Logits played(scheduler::Executor& executor) {
    const std::vector<int32_t> tokens = tiny::tokens(48);
    const auto sequence = executor.new_sequence();
    Logits logits = feed(executor, *sequence, std::span(tokens).first(40), 40);
    for (const auto& [first, count, chunk] : {std::tuple{40, 3, 1}, std::tuple{43, 5, 5}}) {
        const Logits more = feed(executor, *sequence, std::span(tokens).subspan(first, count), chunk);
        logits.insert(logits.end(), more.begin(), more.end());
    }
    return logits;
}

void compare_splits(const model::Model& model, const Logits& expected, std::span<const ExpertName> resident,
                    double tolerance) {
    const size_t layers = layers_of(model.trunk);
    scheduler::RoutingRecord there, here;
    OnCards one(model, {{0, layers}}, resident);
    one.executor.record_routing(&here);
    const Logits single = played(one.executor);
    EXPECT_LT(largest_difference(single, expected), tolerance);
    for (const auto& ranges : std::vector<std::vector<LayerRange>>{
             {{0, 1}, {1, layers}}, {{0, layers - 1}, {layers - 1, layers}}, {{0, 1}, {1, 3}, {3, layers}}}) {
        OnCards cards(model, ranges, resident);
        cards.executor.record_routing(&there);
        EXPECT_EQ(largest_difference(played(cards.executor), single), 0.0) << ranges[0].last;
        EXPECT_EQ(there.ids, here.ids);
        EXPECT_EQ(cards.executor.resident(), one.executor.resident());
        EXPECT_EQ(cards.executor.residency().choices, one.executor.residency().choices);
        EXPECT_EQ(cards.executor.residency().hits, one.executor.residency().hits);
        EXPECT_EQ(cards.executor.residency().layers_played, one.executor.residency().layers_played);
        EXPECT_EQ(cards.executor.last_cost().bytes, one.executor.last_cost().bytes);
        EXPECT_EQ(cards.executor.sequence_bytes(128), one.executor.sequence_bytes(128));
    }
}

TEST(SplitExecutor, AnySplitHasTheSameBits) {
    if (SANITIZED) GTEST_SKIP() << "a pass takes minutes there";
    const model::Model& tiny = tiny_model(KvCacheDtype::kF32);
    compare_splits(tiny, played(tiny_engine(KvCacheDtype::kF32).trunk), {}, 1e-4);
}

TEST(SplitExecutor, AnySplitHasTheSameBitsWithExpertsOnTheCards) {
    const model::Model& model = *demo().model;
    cpu::Workers workers{std::span<const int>()};
    scheduler::CpuExecutor cpu(model.trunk, workers, cpu::select_kernels("auto"), kLimits);
    auto some = scheduler::spread_experts(scheduler::expert_counts(model.trunk), 20);
    std::ranges::sort(some);
    compare_splits(model, played(cpu), some, 1e-3);
}

TEST(SplitExecutor, SequencesKeepTheirPagesOnEveryCard) {
    const size_t layers = layers_of(tiny_model(KvCacheDtype::kF32).trunk);
    OnCards cards(tiny_model(KvCacheDtype::kF32), {{0, 2}, {2, layers}}, {});
    Engine& cpu = tiny_engine(KvCacheDtype::kF32);
    const std::vector<int32_t> tokens = tiny::tokens(40);
    const auto there = cards.executor.new_sequence(), other = cards.executor.new_sequence(), here = cpu.new_sequence();
    feed(cards.executor, *there, std::span(tokens).first(30), 30);
    feed(cards.executor, *other, std::span(tokens).subspan(5, 12), 12);
    here->restore(there->snapshot());  // the pages of both cards
    EXPECT_LT(largest_difference(feed(cards.executor, *there, std::span(tokens).subspan(30, 4), 1),
                                 feed(cpu.trunk, *here, std::span(tokens).subspan(30, 4), 1)),
              1e-4);
    other->clear();
    other->restore(here->snapshot());
    EXPECT_LT(largest_difference(feed(cards.executor, *other, std::span(tokens).subspan(34), 6),
                                 feed(cpu.trunk, *here, std::span(tokens).subspan(34), 6)),
              1e-4);
    // Two in one pass, on their own.
    const auto a = cpu.new_sequence(), b = cpu.new_sequence();
    there->clear(), other->clear();
    ASSERT_TRUE(there->reserve(20) && other->reserve(20));
    const scheduler::Part parts[] = {{there.get(), std::span(tokens).first(9), 1},
                                     {other.get(), std::span(tokens).subspan(20, 6), 1}};
    cards.executor.forward(parts);
    const auto vocab = cards.model.vocab;
    const Logits found = {{cards.executor.logits(0), cards.executor.logits(0) + vocab},
                          {cards.executor.logits(1), cards.executor.logits(1) + vocab}};
    EXPECT_LT(largest_difference(found, {cpu.feed(*a, std::span(tokens).first(9), 9).back(),
                                         cpu.feed(*b, std::span(tokens).subspan(20, 6), 6).back()}),
              1e-4);
}

TEST(SplitExecutor, StepsAreTimedUnderTheirOwnNames) {
    const ops::Plan& plan = tiny_model(KvCacheDtype::kF32).trunk;
    OnCards cards(tiny_model(KvCacheDtype::kF32), {{0, 2}, {2, layers_of(plan)}}, {});
    scheduler::StepProfile profile(plan);
    cards.executor.profile_steps(&profile);
    const auto sequence = cards.executor.new_sequence();
    feed(cards.executor, *sequence, tiny::tokens(3), 3);
    int64_t calls = 0, heads = 0;
    for (const auto& line : profile.lines()) {
        if (line.name != "between steps") calls += line.calls;
        if (line.name == "Linear head") heads = line.calls;
    }
    EXPECT_EQ(calls, std::ssize(plan.steps));
    EXPECT_EQ(heads, 1);
}

TEST(SplitExecutor, ExpertsMoveOnEveryCard) {
    const model::Model& model = *demo().model;
    const ops::Plan& plan = model.trunk;
    const size_t layers = layers_of(plan);
    const std::vector<LayerRange> ranges = {{0, 2}, {2, layers}};
    const auto some = scheduler::spread_experts(scheduler::expert_counts(plan), scheduler::expert_count(plan) / 4);
    OnCards cards(model, ranges, some, {}, {.least_per_set = 0});
    const auto slots = cards.executor.slot_ranges();
    ASSERT_EQ(slots.size(), 2u);
    EXPECT_EQ(slots[0].slots + slots[1].slots, cards.executor.movable_slots());
    EXPECT_EQ(slots[1].first, 2);
    // One of either card that is not there.
    const std::set<ExpertName> there(some.begin(), some.end());
    scheduler::ExpertOrders orders;
    for (const LayerRange& range : ranges) {
        ExpertName name{static_cast<ops::ExpertsId>(range.last - 1), 0};
        while (there.contains(name)) ++name.expert;
        orders.pinned.push_back(name);
    }
    cards.executor.order(orders);
    const std::vector<int32_t> tokens = tiny::tokens(120);
    const auto sequence = cards.executor.new_sequence();
    const auto arrived = [&] {
        const auto names = cards.executor.resident();
        return std::ranges::all_of(orders.pinned, [&](ExpertName name) { return std::ranges::count(names, name) > 0; });
    };
    cpu::Workers workers{std::span<const int>()};
    scheduler::CpuExecutor cpu(plan, workers, cpu::select_kernels("auto"), kLimits);
    const auto here = cpu.new_sequence();
    for (size_t at = 0; at < tokens.size() && !(arrived() && at >= 8); ++at)
        EXPECT_LT(largest_difference(feed(cards.executor, *sequence, std::span(tokens).subspan(at, 1), 1),
                                     feed(cpu, *here, std::span(tokens).subspan(at, 1), 1)),
                  1e-3);
    EXPECT_TRUE(arrived());
    EXPECT_GE(cards.executor.residency().changes, 2);
}

// When a card fails: an error that says which one, sequences that are not advanced.

std::string failure(scheduler::Executor& executor, memory::SequenceCache& sequence, std::span<const int32_t> tokens) {
    const int64_t before = sequence.position();
    try {
        feed(executor, sequence, tokens, std::ssize(tokens));
    } catch (const Error& error) {
        EXPECT_EQ(sequence.position(), before);
        return error.what();
    }
    return "";
}

TEST(SplitExecutorFaults, ALostCardIsNamed) {
    const size_t layers = layers_of(tiny_model(KvCacheDtype::kF32).trunk);
    const std::vector<int32_t> tokens = tiny::tokens(8);
    for (const size_t lost : {0, 1}) {
        Configs configs(2);
        configs[lost].faults.lose_device = 60;
        OnCards cards(tiny_model(KvCacheDtype::kF32), {{0, 2}, {2, layers}}, {}, configs);
        const auto sequence = cards.executor.new_sequence();
        std::string said;
        for (int i = 0; i < 20 && said.empty(); ++i)
            said = failure(cards.executor, *sequence, std::span(tokens).first(1));
        const std::string name = "GPU " + std::to_string(lost) + " (emulated): the device was lost";
        EXPECT_NE(said.find(name), std::string::npos) << said;
        EXPECT_NE(failure(cards.executor, *cards.executor.new_sequence(), tokens).find(name), std::string::npos);
    }
}

TEST(SplitExecutorFaults, AfterALostFlagTheNextPassIsWhole) {
    const size_t layers = layers_of(tiny_model(KvCacheDtype::kF32).trunk);
    const std::vector<int32_t> tokens = tiny::tokens(6);
    Configs configs(2);
    OnCards sound(tiny_model(KvCacheDtype::kF32), {{0, 2}, {2, layers}}, {}, configs);
    const auto start = std::chrono::steady_clock::now();
    (void)feed(sound.executor, *sound.executor.new_sequence(), tokens, 6);
    const auto whole_pass = std::chrono::steady_clock::now() - start;
    configs[1].faults.lose_flag = 1;
    OnCards cards(tiny_model(KvCacheDtype::kF32), {{0, 2}, {2, layers}}, {}, configs);
    cards.executor.set_patience(
        std::chrono::duration_cast<std::chrono::milliseconds>(std::chrono::milliseconds(500) + 8 * whole_pass),
        kPatience);
    const auto sequence = cards.executor.new_sequence();
    EXPECT_NE(failure(cards.executor, *sequence, tokens).find("GPU 1: no job for the experts"), std::string::npos);
    cards.executor.set_patience(kPatience, kPatience);
    Engine& cpu = tiny_engine(KvCacheDtype::kF32);
    EXPECT_LT(
        largest_difference(feed(cards.executor, *sequence, tokens, 6), feed(cpu.trunk, *cpu.new_sequence(), tokens, 6)),
        1e-4);
}

// Through Gpus, as --gpus asks for.

std::vector<std::unique_ptr<cuda::Device>> devices_of(const Configs& configs) {
    std::vector<std::unique_ptr<cuda::Device>> devices;
    for (size_t i = 0; i < configs.size(); ++i) {
        cuda::emulation::Config config = configs[i];
        config.index = static_cast<int>(i);
        devices.push_back(cuda::emulation::open(config));
    }
    return devices;
}

std::string refusal_of(const scheduler::GpuWishes& wishes, const Configs& configs) {
    try {
        scheduler::Gpus gpus(wishes, devices_of(configs));
        ExecutorLimits limits = kLimits;
        gpus.reserve(tiny_model(KvCacheDtype::kF32).trunk, "tiny", limits, 1, true);
    } catch (const Error& error) {
        return error.what();
    }
    return "";
}

TEST(SplitGpus, EveryCardTakesItsPartAndTheTextIsTheSame) {
    const ops::Plan& plan = demo().model->trunk;
    cpu::Workers workers{std::span<const int>()};
    const cpu::KernelTable& kernels = cpu::select_kernels("auto");
    const std::vector<int32_t> tokens = tiny::tokens(12);
    const auto played_by = [&](scheduler::GpuWishes wishes, size_t cards, scheduler::ExpertTiers* tiers = nullptr) {
        wishes.residency = "static";
        scheduler::Gpus gpus(wishes, devices_of(Configs(cards)));
        ExecutorLimits limits = kLimits;
        gpus.reserve(plan, "demo", limits, 1, true);
        if (tiers != nullptr) *tiers = gpus.tiers();
        EXPECT_TRUE(gpus.card_only(plan).size() >= scheduler::GpuWeights::matrices_of(plan).size());
        const auto executor = gpus.new_executor(plan, workers, kernels, limits, demo().packed.get());
        EXPECT_EQ(std::ssize(executor->resident()), gpus.tiers().resident());
        const auto sequence = executor->new_sequence();
        Logits logits = feed(*executor, *sequence, std::span(tokens).first(9), 9);
        const Logits more = feed(*executor, *sequence, std::span(tokens).subspan(9), 1);
        logits.insert(logits.end(), more.begin(), more.end());
        return logits;
    };
    scheduler::CpuExecutor cpu(plan, workers, kernels, kLimits);
    const auto sequence = cpu.new_sequence();
    const Logits expected = feed(cpu, *sequence, tokens, 12);
    const auto layers = static_cast<int64_t>(layers_of(plan));
    EXPECT_LT(largest_difference(played_by({.offload_experts = "cpu"}, 2), expected), 1e-3);
    scheduler::ExpertTiers all, some;
    EXPECT_LT(largest_difference(played_by({.offload_experts = "none"}, 2, &all), expected), 1e-3);
    EXPECT_EQ(all.slots, scheduler::expert_count(plan));
    // A little card and a large one.
    const std::string refusal = refusal_of({.card_memory = {1 << 20, 1 << 30}}, Configs(2));
    EXPECT_NE(refusal.find("GPU 0 of "), std::string::npos) << refusal;
    scheduler::GpuWishes wishes{.offload_experts = "auto", .layer_split = {1, layers - 1}};
    EXPECT_LT(largest_difference(played_by(wishes, 2, &some), expected), 1e-3);
}

TEST(SplitGpus, PlacementsAndProfilesAreForAllCards) {
    const ops::Plan& plan = demo().model->trunk;
    const auto layers = scheduler::routed_layers(plan);
    const auto path = (std::filesystem::path(testing::TempDir()) / "split_placement.json").string();
    const std::vector<ExpertName> placed = {{0, 3}, {static_cast<ops::ExpertsId>(layers.size()) - 1, 2}};
    const auto start = [&](Json counts, std::vector<int64_t> split) {
        Json json = scheduler::placement_json({.resident = placed}, "demo", layers);
        if (!counts.is_null()) json["layers_of_cards"] = std::move(counts);
        write_text(path, dump_json(json));
        scheduler::Gpus gpus({.residency = "static", .placement = path, .layer_split = std::move(split)},
                             devices_of(Configs(2)));
        ExecutorLimits limits = kLimits;
        gpus.reserve(plan, "demo", limits, 1, true);
        cpu::Workers workers{std::span<const int>()};
        const auto executor =
            gpus.new_executor(plan, workers, cpu::select_kernels("auto"), limits, demo().packed.get());
        const auto names = executor->resident();
        for (const ExpertName& name : placed) EXPECT_EQ(std::ranges::count(names, name), 1);
        return executor->slot_ranges()[0].last;
    };
    const auto count = static_cast<int64_t>(layers.size());
    EXPECT_EQ(start({1, count - 1}, {}), 1);
    EXPECT_EQ(start({1, count - 1}, {count - 1, 1}), count - 1);    // the flag wins
    EXPECT_EQ(start(Json::array({count}), {}), start(Json(), {}));  // made for one card
    EXPECT_THROW(start({1, count}, {}), Error);
    EXPECT_THROW(start({0, count}, {}), Error);
    EXPECT_THROW(start("two", {}), Error);
    std::filesystem::remove(path);
}

TEST(SplitGpus, WhatCannotBeIsRefusedWithARemedy) {
    const auto layers = static_cast<int64_t>(layers_of(tiny_model(KvCacheDtype::kF32).trunk));
    EXPECT_EQ(refusal_of({}, Configs(2)), "");
    EXPECT_NE(refusal_of({.layer_split = {1, layers}}, Configs(2)).find("expected one number for each"),
              std::string::npos);
    EXPECT_NE(refusal_of({.layer_split = {layers}}, Configs(2)).find("--layer-split has 1 values"), std::string::npos);
    EXPECT_NE(refusal_of({.card_memory = {1 << 30}}, Configs(2)).find("--gpu-memory has 1 values"), std::string::npos);
    EXPECT_NE(refusal_of({.memory_bytes = 100'000}, Configs(2)).find("use --gpu-memory "), std::string::npos);
    EXPECT_NE(refusal_of({}, Configs(static_cast<size_t>(layers) + 1)).find("layers with routed experts"),
              std::string::npos);
    // The second card has no room, or refuses what it has.
    Configs configs(2);
    configs[1].memory_bytes = 100'000;
    EXPECT_NE(refusal_of({}, configs).find("GPU 1 of "), std::string::npos);
    configs[1] = {.faults = {.refuse_memory = 1}};
    EXPECT_NE(refusal_of({}, configs).find("GPU 1 "), std::string::npos);
}

TEST(SplitGpus, MemoryThatIsRefusedLaterIsSaidToo) {
    const model::Model& model = tiny_model(KvCacheDtype::kF32);
    cpu::Workers workers{std::span<const int>()};
    int64_t refused = 0;
    for (int64_t n = 2; n <= 5; ++n) {
        Configs configs(2);
        configs[1].faults.refuse_memory = n;  // the first is what reserve() takes
        scheduler::Gpus gpus({.offload_experts = "cpu"}, devices_of(configs));
        ExecutorLimits limits = kLimits;
        gpus.reserve(model.trunk, "tiny", limits, 1, true);
        try {
            const auto executor =
                gpus.new_executor(model.trunk, workers, cpu::select_kernels("auto"), limits, std::span<std::byte>());
        } catch (const Error& error) {
            ++refused;
            EXPECT_NE(std::string(error.what()).find("GPU 1 "), std::string::npos) << error.what();
        }
    }
    EXPECT_GT(refused, 0);
}

}  // namespace
}  // namespace thermocline
