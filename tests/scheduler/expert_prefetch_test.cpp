// Prefetch: what is foretold, that nothing which is computed depends on it, that it gives way to a job at once, and
// that it is left out where it gains nothing.
#include "scheduler/expert_prefetch.h"

#include "cpu/warm.h"
#include "memory/packed_weights.h"
#include "memory/read_ahead.h"
#include "scheduler/cpu_executor.h"
#include "scheduler/gpu_executor.h"
#include "tests/cuda/test_device.h"
#include "tests/model/engine_fixture.h"
#include "tests/source_path.h"

#include <algorithm>
#include <atomic>
#include <gtest/gtest.h>
#include <set>
#include <thread>

namespace thermocline::scheduler {
namespace {

const model::Model& demo() {
    static const auto model = model::load_model(source_path("models/demo"), {});
    static const memory::PackedWeights packed(std::vector<ops::Plan*>{&model->trunk}, nullptr,
                                              std::vector<memory::Slice>{{{}, {0}}});
    return *model;
}

std::vector<int32_t> some_tokens(int64_t count) {
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>(i * 977 % 4000 + 5));
    return tokens;
}

constexpr ExecutorLimits kLimits = {.max_rows = 8, .max_outputs = 8, .max_tokens = 128};
constexpr TrialRules kNeverTried = {.first = 1 << 30};

Logits feed(Executor& executor, std::span<const int32_t> tokens, size_t chunk) {
    const auto sequence = executor.new_sequence();
    Logits logits;
    EXPECT_TRUE(sequence->reserve(std::ssize(tokens)));
    for (size_t first = 0; first < tokens.size(); first += chunk) {
        const auto part = tokens.subspan(first, std::min(chunk, tokens.size() - first));
        const Part parts[] = {{sequence.get(), part, static_cast<int32_t>(part.size())}};
        executor.forward(parts);
        for (int64_t i = 0; i < std::ssize(part); ++i)
            logits.emplace_back(executor.logits(i), executor.logits(i) + executor.plan().vocab);
    }
    return logits;
}

struct OnCard {
    explicit OnCard(const PrefetchRules& rules, std::span<const ExpertName> resident = {})
        : workers(std::vector<int>{0, 0, 0}),
          device(cuda::test_device({})),
          executor(demo().trunk, *device, workers, cpu::select_kernels("auto"), kLimits, 1, resident,
                   {.policy = ResidencyRules::Policy::kStatic}, {}, nullptr, rules) {
        executor.set_patience(std::chrono::minutes(2), std::chrono::minutes(2));
    }
    cpu::Workers workers;
    std::unique_ptr<cuda::Device> device;
    GpuExecutor executor;
};

TEST(ExpertPrefetch, NothingComputedDependsOnIt) {
    const std::vector<int32_t> tokens = some_tokens(6);
    const std::vector<ExpertName> resident = {{0, 1}, {1, 5}, {2, 0}, {2, 7}, {3, 3}};
    for (const bool with_card_experts : {false, true}) {
        const std::span<const ExpertName> there = with_card_experts ? resident : std::span<const ExpertName>();
        for (const size_t chunk : {size_t{1}, size_t{3}}) {
            if (chunk == 3 && !with_card_experts) continue;  // the emulated card is slow
            OnCard without({}, there);
            const Logits expected = feed(without.executor, tokens, chunk);
            EXPECT_FALSE(without.executor.residency().prefetched.on);
            for (const int32_t wrong_by : {0, 7}) {
                OnCard with({.worker_bytes = 1 << 20, .wrong_by = wrong_by, .trial = kNeverTried}, there);
                EXPECT_EQ(feed(with.executor, tokens, chunk), expected) << wrong_by;
                const Prefetched counters = with.executor.residency().prefetched;
                EXPECT_TRUE(counters.on);
                EXPECT_GT(counters.warmed_bytes, 0);
                EXPECT_EQ(counters.foretold, 6 * 2 * 4);  // layers 2 and 3
                const double right = static_cast<double>(counters.right) / static_cast<double>(counters.foretold);
                EXPECT_GT(right, wrong_by == 0 ? 0.4 : 0.0);
            }
        }
    }
}

TEST(ExpertPrefetch, KnowsWhatGoesByTokenAndHearsTheRest) {
    const ops::Plan& plan = demo().trunk;
    ExpertPrefetch prefetch(plan, {.worker_bytes = 1, .trial = kNeverTried});
    ASSERT_EQ(prefetch.layers().size(), 4u);
    const std::vector<int32_t> tokens = {17, 3000};
    EXPECT_TRUE(prefetch.begin_pass(tokens, true));
    for (size_t layer : {0, 1}) {
        ASSERT_TRUE(prefetch.known(layer, nullptr));
        std::vector<int32_t> expected;
        const std::vector<int32_t>& table = prefetch.layers()[layer].table->values;
        for (size_t k = 0; k < 4; ++k)
            for (const int32_t token : tokens)
                if (const int32_t id = table[static_cast<size_t>(token) * 4 + k];
                    std::find(expected.begin(), expected.end(), id) == expected.end())
                    expected.push_back(id);
        const auto found = prefetch.expected(layer);
        EXPECT_EQ(std::vector(found.begin(), found.end()), expected);
    }
    EXPECT_FALSE(prefetch.known(2, nullptr));
    std::vector<int32_t> early(8, -1);
    EXPECT_FALSE(prefetch.known(2, early.data()));
    early = {9, 2, 4, 5, 2, 11, -1, 0};
    EXPECT_FALSE(prefetch.known(2, early.data()));
    early[6] = 4;
    EXPECT_TRUE(prefetch.known(2, early.data()));
    const auto found = prefetch.expected(2);
    EXPECT_EQ(std::vector(found.begin(), found.end()), (std::vector{9, 2, 11, 4, 5, 0}));  // first choices first
    prefetch.note(2, std::vector<int32_t>{9, 2, 1, 3, 0, 4, 11, 7});
    EXPECT_EQ(prefetch.counters().foretold, 8);
    EXPECT_EQ(prefetch.counters().right, 5);
    prefetch.begin_pass(tokens, true);
    EXPECT_FALSE(prefetch.known(2, nullptr));  // of the pass before
}

TEST(ExpertPrefetch, GivesWayToAJobAtOnce) {
    const ops::Plan& plan = demo().trunk;
    const auto* step = [&] {
        for (const ops::Step& one : plan.steps)
            if (const auto* experts = std::get_if<ops::Experts>(&one)) return experts;
        return static_cast<const ops::Experts*>(nullptr);
    }();
    cpu::Workers workers(std::vector<int>{0, 0});
    std::vector<float> scratch(64);
    const ops::Batch batch{};
    const cpu::Frame frame{plan, batch, nullptr, nullptr, {}, scratch, workers, cpu::select_kernels("auto"), true};
    const ops::ExpertSet& set = plan.experts[0];
    const std::vector<int32_t> experts = {0, 3, 5};
    const int64_t all = 3 * (2 * set.w1[0].bytes() + set.w2[0].bytes());
    uint64_t stop = 0;
    EXPECT_EQ(cpu::warm_experts(*step, frame, experts, int64_t{1} << 30, stop), all);
    EXPECT_EQ(cpu::warm_experts(*step, frame, experts, 5000, stop), 2 * 5000);
    EXPECT_EQ(cpu::warm_experts(*step, frame, {}, 5000, stop), 0);
    stop = 1;
    EXPECT_EQ(cpu::warm_experts(*step, frame, experts, int64_t{1} << 30, stop), 0);

    // A flag that comes meanwhile: whatever was going on ends, long before all of it.
    stop = 0;
    std::vector<int32_t> endless(10'000'000, 1);
    std::thread card([&] {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
        std::atomic_ref<uint64_t>(stop).store(1);
    });
    const int64_t brought = cpu::warm_experts(*step, frame, endless, int64_t{1} << 50, stop);
    card.join();
    EXPECT_LT(brought, all / 3 * std::ssize(endless));
}

/// Passes whose length depends on whether it took part: it stays while it gains, and is left out when it does not.
TEST(ExpertPrefetch, StaysOnlyWhileItGains) {
    for (const double gain : {0.2, 0.0, -0.05}) {
        ExpertPrefetch prefetch(demo().trunk, {.worker_bytes = 1});
        const std::vector<int32_t> tokens = {1};
        int used = 0;
        for (int pass = 0; pass < 400; ++pass) {
            const bool uses = prefetch.begin_pass(tokens, true);
            used += pass >= 300 && uses;
            prefetch.end_pass(std::chrono::duration<double>(uses ? 1e-3 : 1e-3 * (1 + gain)));
        }
        EXPECT_EQ(prefetch.counters().on, gain > 0) << gain;
        EXPECT_NEAR(prefetch.counters().gain, gain, 1e-6);
        EXPECT_GE(used, gain > 0 ? 80 : 0);
        EXPECT_LE(used, gain > 0 ? 100 : 20);
    }
    // While others are tried nothing is measured.
    ExpertPrefetch disturbed(demo().trunk, {.worker_bytes = 1});
    const std::vector<int32_t> tokens = {1};
    for (int pass = 0; pass < 100; ++pass) {
        EXPECT_TRUE(disturbed.begin_pass(tokens, false));
        disturbed.end_pass(std::chrono::duration<double>(1.0));
    }
    EXPECT_EQ(disturbed.counters().gain, 0.0);
}

int64_t bytes_of_expert() {
    const ops::ExpertSet& set = demo().trunk.experts[0];
    return set.w1[0].bytes() + set.w2[0].bytes() + set.w3[0].bytes();
}

/// The CPU alone asks for what lies in files; the text is the same.
TEST(ExpertPrefetch, AsksForExpertsInFiles) {
    const std::vector<int32_t> tokens = some_tokens(12);
    cpu::Workers workers{std::span<const int>()};
    CpuExecutor without(demo().trunk, workers, cpu::select_kernels("auto"), kLimits);
    CpuExecutor with(demo().trunk, workers, cpu::select_kernels("auto"), kLimits,
                     {.reads_file = true, .trial = kNeverTried});
    EXPECT_EQ(feed(with, tokens, 1), feed(without, tokens, 1));
    const Prefetched counters = with.residency().prefetched;
    const int64_t asked = with.residency().asked_bytes;
    EXPECT_EQ(counters.foretold, 12 * 2 * 4);
    EXPECT_GT(counters.right * 10, counters.foretold * 4);
    EXPECT_EQ(counters.warmed_bytes, 0);
    const int64_t least = 12 * 4 * 4 * bytes_of_expert();  // what was chosen
    EXPECT_GE(asked, least);
    EXPECT_LT(asked * 100, least * 140);  // and what was foretold in vain
}

/// What is chosen needs no foretelling: it is asked for, all of it and nothing else, with prefetch off too, in prompts,
/// and by the CPU beside a card.
TEST(ExpertPrefetch, WhatIsChosenIsAskedForInAnyCase) {
    const std::vector<int32_t> tokens = some_tokens(12);
    const PrefetchRules rules = {.reads_file = true, .foretells = false};
    cpu::Workers workers{std::span<const int>()};
    for (const size_t chunk : {size_t{1}, size_t{6}}) {
        CpuExecutor cpu(demo().trunk, workers, cpu::select_kernels("auto"), kLimits, rules);
        RoutingRecord record;
        cpu.record_routing(&record);
        const auto sequence = cpu.new_sequence();
        ASSERT_TRUE(sequence->reserve(12));
        int64_t chosen = 0;
        for (size_t first = 0; first < tokens.size(); first += chunk) {
            const Part part{sequence.get(), std::span(tokens).subspan(first, chunk), 1};
            cpu.forward({&part, 1});
            for (const std::vector<int32_t>& ids : record.ids) chosen += std::ssize(std::set(ids.begin(), ids.end()));
        }
        EXPECT_EQ(cpu.residency().asked_bytes, chosen * bytes_of_expert()) << chunk;
        EXPECT_EQ(cpu.residency().prefetched.foretold, 0);
    }
    const std::vector<ExpertName> resident = {{0, 1}, {1, 5}, {2, 0}, {2, 7}, {3, 3}};
    OnCard card(rules, resident);
    feed(card.executor, std::span(tokens).first(2), 1);
    const ResidencyCounters counters = card.executor.residency();
    EXPECT_EQ(counters.asked_bytes, (counters.choices - counters.hits) * bytes_of_expert());
    EXPECT_FALSE(counters.prefetched.on);
}

TEST(ReadAhead, PassesOnWhatItIsAskedForAndEnds) {
    std::vector<std::byte> bytes(1 << 20);
    memory::ReadAhead reader;
    int64_t passed = 0;
    for (int i = 0; i < 5000; ++i) passed += reader.ask(bytes);
    EXPECT_GT(passed, 0);
    while (!reader.idle()) std::this_thread::yield();
    EXPECT_TRUE(reader.ask(bytes));
}

}  // namespace
}  // namespace thermocline::scheduler
