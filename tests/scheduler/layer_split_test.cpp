// Which card plays which layers: against every other split there is, for the largest model, for cards of any sizes.
#include "scheduler/layer_split.h"

#include "scheduler/split_forecast.h"
#include "src/base/error.h"
#include "src/model/registry.h"
#include "src/ops/uses.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <functional>
#include <gtest/gtest.h>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <set>
#include <string>

namespace thermocline::scheduler {
namespace {

constexpr int64_t kGB = 1'000'000'000;
constexpr double kInfinite = std::numeric_limits<double>::infinity();

std::unique_ptr<model::Model> outline(const std::string& name) {
    model::LoadOptions options;
    options.format = model::LoadFormat::kOutline;
    options.kv_cache = model::KvCacheDtype::kFp8;
    return model::load_model(THERMOCLINE_SOURCE_DIR "/configs/models/" + name + ".json", options);
}
const model::Model& flash() {
    static const std::unique_ptr<model::Model> model = outline("deepseek-v4-flash");
    return *model;
}
const model::Model& demo() {
    static const std::unique_ptr<model::Model> model = model::load_model(THERMOCLINE_SOURCE_DIR "/models/demo", {});
    return *model;
}
MachineDescription machine(const std::string& name) {
    return read_machine(THERMOCLINE_SOURCE_DIR "/configs/machines/" + name + ".json");
}

/// Calls body with every division of `layers` layers among `cards` cards.
void for_each_split(size_t layers, size_t cards, const std::function<void(const std::vector<LayerRange>&)>& body) {
    for (uint64_t cuts = 0; cuts < uint64_t{1} << (layers - 1); ++cuts) {
        if (std::popcount(cuts) != static_cast<int>(cards) - 1) continue;
        std::vector<LayerRange> ranges = {{0, 0}};
        for (size_t layer = 1; layer < layers; ++layer)
            if (cuts >> (layer - 1) & 1) {
                ranges.back().last = layer;
                ranges.push_back({layer, 0});
            }
        ranges.back().last = layers;
        body(ranges);
    }
}

double sum_over(const std::vector<LayerRange>& ranges, const std::function<double(size_t, LayerRange)>& seconds) {
    double sum = 0.0;
    for (size_t card = 0; card < ranges.size(); ++card) sum += seconds(card, ranges[card]);
    return sum;
}

TEST(LayerSplit, IsTheBestOfAllSplits) {
    std::mt19937 random(3);
    const auto below = [&](uint64_t limit) { return static_cast<size_t>(random() % limit); };
    int64_t none = 0;
    for (int i = 0; i < 300; ++i) {
        const size_t layers = 1 + below(8), cards = 1 + below(std::min<size_t>(4, layers));
        std::vector<double> table(cards * (layers + 1) * (layers + 1));
        for (double& seconds : table) seconds = below(5) == 0 ? kInfinite : static_cast<double>(1 + below(1000));
        const auto seconds = [&](size_t card, LayerRange range) {
            return table[(card * (layers + 1) + range.first) * (layers + 1) + range.last];
        };
        double best = kInfinite;
        for_each_split(layers, cards, [&](const auto& ranges) { best = std::min(best, sum_over(ranges, seconds)); });
        const std::vector<LayerRange> found = split_layers(layers, cards, seconds);
        none += found.empty();
        ASSERT_EQ(found.empty(), best == kInfinite) << i;
        if (!found.empty()) {
            EXPECT_EQ(sum_over(found, seconds), best) << i;
        }
    }
    EXPECT_GT(none, 5);
    EXPECT_LT(none, 200);
    // Of equal ones the most even.
    const auto found =
        split_layers(9, 3, [](size_t, LayerRange range) { return 0.1 * static_cast<double>(range.count()); });
    EXPECT_EQ(found, (std::vector<LayerRange>{{0, 3}, {3, 6}, {6, 9}}));
}

/// Split and resident sets together: 200 random cases against all splits with all sets of experts that fit.
TEST(LayerSplit, WithItsResidentSetsIsTheBestOfAll) {
    std::mt19937 random(4);
    const auto below = [&](int64_t limit) { return static_cast<int64_t>(random() % static_cast<uint64_t>(limit)); };
    for (int i = 0; i < 200; ++i) {
        const size_t count = 2 + static_cast<size_t>(below(3)), cards = 2;
        const std::vector<RoutedLayer> layers(count, {3, 2});
        std::vector<std::vector<int64_t>> counts(count);
        for (auto& layer : counts)
            for (int e = 0; e < 3; ++e) layer.push_back(below(3) == 0 ? below(500) : below(20));
        const auto shares = shares_of(layers, counts);
        std::vector<int64_t> room, fixed;
        std::vector<std::vector<double>> seconds;
        for (size_t c = 0; c < cards; ++c) {
            room.push_back(below(12));
            const double first = 1e-3 * static_cast<double>(1 + below(9)),
                         second = first * 0.1 * static_cast<double>(below(11));
            seconds.push_back({2e-2, 2e-2 - first, 2e-2 - first - second});
        }
        for (size_t l = 0; l < count; ++l) fixed.push_back(1 + below(2));
        const auto slots_of = [&](size_t card, LayerRange range) {
            return room[card] - std::accumulate(fixed.begin() + static_cast<std::ptrdiff_t>(range.first),
                                                fixed.begin() + static_cast<std::ptrdiff_t>(range.last), int64_t{0});
        };
        const auto by_solver = [&](size_t card, LayerRange range) {
            const int64_t slots = slots_of(card, range);
            if (slots < 0) return kInfinite;
            double sum = 0.0;
            std::vector<double> gains;
            for (size_t l = range.first; l < range.last; ++l) {
                const auto by_slots = seconds_by_slots(layers[l], shares[l], seconds[card]);
                sum += by_slots.front();
                for (size_t k = 1; k < by_slots.size(); ++k) gains.push_back(by_slots[k - 1] - by_slots[k]);
            }
            std::ranges::sort(gains, std::greater<>());
            for (size_t k = 0; k < gains.size() && static_cast<int64_t>(k) < slots; ++k) sum -= gains[k];
            // The same as the placement inside.
            const std::vector<RoutedLayer> own(layers.begin() + static_cast<std::ptrdiff_t>(range.first),
                                               layers.begin() + static_cast<std::ptrdiff_t>(range.last));
            const std::vector<std::vector<int64_t>> own_counts(
                counts.begin() + static_cast<std::ptrdiff_t>(range.first),
                counts.begin() + static_cast<std::ptrdiff_t>(range.last));
            EXPECT_NEAR(place_experts({own, own_counts, seconds[card], slots}).seconds, sum, 1e-12);
            return sum;
        };
        const auto by_force = [&](size_t card, LayerRange range) {
            const int64_t slots = slots_of(card, range);
            double best = kInfinite;
            for (uint64_t set = 0; slots >= 0 && set < uint64_t{1} << (3 * range.count()); ++set) {
                if (std::popcount(set) > slots) continue;
                double sum = 0.0;
                for (size_t l = range.first; l < range.last; ++l) {
                    double hit = 0.0;
                    for (size_t e = 0; e < 3; ++e)
                        if (set >> (3 * (l - range.first) + e) & 1) hit += shares[l][e] / 2;
                    sum += (1 - hit) * (1 - hit) * seconds[card][0] + 2 * hit * (1 - hit) * seconds[card][1] +
                           hit * hit * seconds[card][2];
                }
                best = std::min(best, sum);
            }
            return best;
        };
        double best = kInfinite;
        for_each_split(count, cards, [&](const auto& ranges) { best = std::min(best, sum_over(ranges, by_force)); });
        const std::vector<LayerRange> found = split_layers(count, cards, by_solver);
        ASSERT_EQ(found.empty(), best == kInfinite) << i;
        if (!found.empty()) {
            EXPECT_NEAR(sum_over(found, by_force), best, 1e-12) << i;
        }
    }
}

/// Shares as of routers that prefer some experts.
std::vector<std::vector<double>> skewed(const ops::Plan& plan) {
    std::vector<std::vector<int64_t>> counts;
    for (const RoutedLayer& layer : routed_layers(plan))
        for (auto& of = counts.emplace_back(); std::ssize(of) < layer.experts;)
            of.push_back(1'000'000 / (1 + std::ssize(of)));
    return shares_of(routed_layers(plan), counts);
}

SplitQuestion question(const ops::Plan& plan, std::vector<int64_t> budgets) {
    SplitQuestion asked{plan, {}, {.context = 8192, .sequences = 1, .prefill_chunk = 4096}, {}};
    for (const int64_t budget : budgets) asked.cards.push_back({budget, {}, assumed_rates()});
    return asked;
}

TEST(LayerSplit, OfTheLargestModelTakesNoTime) {
    const auto pro = outline("deepseek-v4-pro");
    SplitQuestion asked = question(pro->trunk, {96 * kGB, 96 * kGB});
    asked.shares = skewed(pro->trunk);
    const auto begin = std::chrono::steady_clock::now();
    const std::vector<LayerRange> ranges = split_over_cards(asked);
    const double took = std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
    std::printf("V4-Pro over 2 cards: %.2f s\n", took);
    EXPECT_LT(took, 30.0);  // 2 s asked for; tests may be slow
    ASSERT_EQ(ranges.size(), 2u);
    EXPECT_NEAR(static_cast<double>(ranges[0].count()), 30.5, 2.5);  // equal cards, and the head on the second
    EXPECT_EQ(ranges[1].last, 61u);
    EXPECT_EQ(parts_of(asked, ranges)[1].memory.refusal, "");
}

TEST(LayerSplit, CardsOfAnySizeGetTheLayersThatFit) {
    const ops::Plan& plan = flash().trunk;
    const auto counts = [&](std::vector<int64_t> budgets) {
        std::vector<size_t> found;
        for (const LayerRange& range : split_over_cards(question(plan, std::move(budgets))))
            found.push_back(range.count());
        return found;
    };
    const auto equal = counts({32 * kGB, 32 * kGB}), lesser = counts({32 * kGB, 96 * kGB}),
               four = counts({32 * kGB, 32 * kGB, 32 * kGB, 32 * kGB});
    ASSERT_EQ(equal.size(), 2u);
    EXPECT_NEAR(static_cast<double>(equal[0]), 21.5, 2.5);
    EXPECT_LT(lesser[0] * 2, lesser[1]);
    ASSERT_EQ(four.size(), 4u);
    EXPECT_EQ(std::accumulate(four.begin(), four.end(), size_t{0}), 43u);
    EXPECT_TRUE(counts({2 * kGB, 2 * kGB}).empty());
    // What is said then names the card's own refusal.
    const auto parts = parts_of(question(plan, {2 * kGB, 2 * kGB}), {});
    EXPECT_NE(parts[0].memory.refusal.find("--gpu-memory"), std::string::npos);
    EXPECT_THROW(split_over_cards(question(plan, std::vector<int64_t>(44, kGB))), Error);
    // More experts on two cards than on one of them, and none lost.
    const auto both =
        parts_of(question(plan, {32 * kGB, 32 * kGB}), split_over_cards(question(plan, {32 * kGB, 32 * kGB})));
    const GpuMemoryPlan alone =
        plan_gpu_memory(plan, nullptr, {.budget_bytes = 32 * kGB, .context = 8192, .prefill_chunk = 4096});
    EXPECT_GT(both[0].memory.expert_slots + both[1].memory.expert_slots, 2 * alone.expert_slots);
    EXPECT_EQ(both[0].memory.experts + both[1].memory.experts, alone.experts);
}

TEST(LayerSplit, NumbersByHandMustFit) {
    EXPECT_EQ(ranges_of(std::vector<int64_t>{2, 3}, 5, 2), (std::vector<LayerRange>{{0, 2}, {2, 5}}));
    for (const std::vector<int64_t>& wrong :
         std::vector<std::vector<int64_t>>{{5}, {0, 5}, {2, 2}, {4, 2}, {1, 2, 2}, {-1, 6}})
        EXPECT_THROW(ranges_of(wrong, 5, 2), Error);
}

/// A plan whose last layer reads what one of the first has made, besides the streams.
TEST(LayerSplit, WhatCannotBeCutIsRefusedWithTheReason) {
    ops::Plan plan = flash().trunk;
    const auto kept = static_cast<ops::Slot>(plan.slots.size());
    plan.slots.push_back({"kept for later", 1, ops::Rows::kTokens});
    ops::Linear *first = nullptr, *last = nullptr;
    for (ops::Step& step : plan.steps)
        if (auto* linear = std::get_if<ops::Linear>(&step)) last = linear, first = first == nullptr ? linear : first;
    EXPECT_EQ(ops::why_not_cut(plan), "");
    EXPECT_EQ(layers_to_split(plan), 43u);
    first->out = last->in = kept;
    try {
        layers_to_split(plan);
        FAIL() << "it was cut";
    } catch (const Error& error) {
        const std::string what = error.what();
        EXPECT_NE(what.find("kept for later"), std::string::npos) << what;
        EXPECT_NE(what.find(plan.experts[0].name), std::string::npos) << what;
        EXPECT_NE(what.find("Use --gpus 1"), std::string::npos) << what;
    }
    ForecastQuestion asked{plan, nullptr, machine("2x-pro6000-epyc9005-12ch"), 8192, 1, 4096};
    asked.cards = 2;
    EXPECT_THROW(forecast_split(asked), Error);
    asked.layer_counts = {22, 21};  // by hand: the same
    EXPECT_THROW(forecast_split(asked), Error);
    plan.experts.clear();
    EXPECT_EQ(ops::why_not_cut(plan), "it has no routed experts");
}

/// The parts of a plan are the plan, cut where only the streams pass.
TEST(LayerSplit, PartsAreThePlan) {
    for (const ops::Plan* plan : {&demo().trunk, &flash().trunk}) {
        const std::vector<size_t> starts = ops::layer_starts(*plan);
        ASSERT_EQ(starts.size() - 1, plan->experts.size());
        size_t steps = 0, caches = 0, experts = 0;
        int64_t dense = 0;
        std::set<ops::Slot> written;
        for (size_t i = 0; i + 1 < starts.size(); ++i) {
            const ops::PlanPart part = ops::layers_of(*plan, i, i + 1);
            EXPECT_EQ(part.first_step, steps);
            EXPECT_EQ(part.first_cache, static_cast<ops::CacheId>(caches));
            EXPECT_EQ(part.first_experts, static_cast<ops::ExpertsId>(experts));
            ASSERT_EQ(part.plan.experts.size(), 1u);
            EXPECT_EQ(part.plan.experts[0].name, plan->experts[i].name);
            EXPECT_EQ(part.plan.caches[0].name, plan->caches[caches].name);
            EXPECT_EQ(part.plan.logits != ops::kNone, i + 2 == starts.size());
            steps += part.plan.steps.size();
            caches += part.plan.caches.size();
            experts += part.plan.experts.size();
            for (const ops::NamedVector& vector : part.plan.vectors) dense += std::ssize(vector.values);
            if (i == 0) continue;
            const ops::Step& begin = part.plan.steps.front();  // reads the streams and nothing else of before
            for (const ops::Slot slot : ops::uses_of(begin).reads)
                EXPECT_TRUE(slot == ops::kNone || slot == plan->streams);
        }
        EXPECT_EQ(steps, plan->steps.size());
        EXPECT_EQ(caches, plan->caches.size());
        for (const ops::NamedVector& vector : plan->vectors) dense -= std::ssize(vector.values);
        EXPECT_EQ(dense, 0);  // every vector is in one part
    }
}

ForecastQuestion asked_of(const MachineDescription& m, size_t cards) {
    ForecastQuestion asked{flash().trunk, &*flash().mtp, m, 8192, 1, 4096};
    asked.cards = cards;
    return asked;
}

TEST(SplitForecast, TwoLargeCardsHoldAllExperts) {
    const MachineDescription two = machine("2x-pro6000-epyc9005-12ch");
    const SplitForecast both = forecast_split(asked_of(two, 2));
    const Forecast one = forecast(asked_of(two, 1));
    EXPECT_EQ(both.refusal, "");
    EXPECT_EQ(both.all().slots, both.all().experts);
    EXPECT_EQ(both.expected[1].hit, 1.0);
    // Nothing is missing any more, so it is a little faster; it is no twice as fast: cards take turns.
    EXPECT_GT(both.expected[1].decode.tokens_per_s(), one.expected[1].decode.tokens_per_s());
    EXPECT_LT(both.expected[1].decode.tokens_per_s(), 1.5 * one.expected[1].decode.tokens_per_s());
    EXPECT_NEAR(both.seconds[0] + both.seconds[1], both.expected[1].decode.seconds, 1e-9);
    const std::string text = split_text(both, two);
    EXPECT_NE(text.find("--gpus 2 --layer-split "), std::string::npos) << text;
    const Json json = parse_json(dump_json(split_json(both, two)), "json");
    EXPECT_EQ(json["split"].size(), 2u);
    EXPECT_EQ(json["split"][0]["layers"].get<int>() + json["split"][1]["layers"].get<int>(), 43);
    EXPECT_EQ(json["split"][1]["first_layer"], json["split"][0]["layers"]);
}

TEST(SplitForecast, UnequalCardsAndWishes) {
    MachineDescription mixed = machine("rtx5090-epyc9004-12ch");
    mixed.gpus.push_back(machine("pro6000-epyc9005-12ch").gpus[0]);
    const SplitForecast both = forecast_split(asked_of(mixed, 2));
    EXPECT_EQ(both.refusal, "");
    EXPECT_LT(both.cards[0].layers.count(), both.cards[1].layers.count());
    const auto alone = forecast_each_card(asked_of(mixed, 1));
    for (const Forecast& one : alone) EXPECT_GT(both.all().slots, one.tiers.slots);
    EXPECT_GT(both.expected[1].decode.tokens_per_s(), alone[0].expected[1].decode.tokens_per_s());
    // No other split is expected to be faster by more than the workspace that it is solved with is off.
    for (int64_t first = 1; first < 43; ++first) {
        ForecastQuestion asked = asked_of(mixed, 2);
        asked.layer_counts = {first, 43 - first};
        const SplitForecast other = forecast_split(asked);
        if (!other.refusal.empty()) continue;
        EXPECT_LT(both.expected[1].decode.seconds, 1.002 * other.expected[1].decode.seconds) << first;
    }
    ForecastQuestion asked = asked_of(mixed, 2);
    asked.card_memory = {24 * kGB, 64 * kGB};
    const SplitForecast less = forecast_split(asked);
    EXPECT_EQ(less.cards[0].memory.budget_bytes, 24 * kGB);
    EXPECT_EQ(less.cards[1].memory.budget_bytes, 64 * kGB);
    asked.card_memory = {64 * kGB, 64 * kGB};
    EXPECT_THROW(forecast_split(asked), Error);  // the first has 32
    asked.card_memory = {24 * kGB};
    EXPECT_THROW(forecast_split(asked), Error);
    EXPECT_THROW(forecast_split(asked_of(mixed, 3)), Error);
    asked.card_memory = {kGB, 64 * kGB};
    const std::string refusal = forecast_split(asked).refusal;
    EXPECT_NE(refusal.find("card 0, layers 0 to 20: --gpu-memory"), std::string::npos) << refusal;
}

TEST(SplitForecast, HostMemoryIsSharedByTheCards) {
    const std::vector<ExpertRoom> rooms = {{.experts = 100, .slots = 30}, {.experts = 60, .slots = 60}};
    const auto ample = divide_experts(rooms, 500);
    EXPECT_EQ(ample[0].host, 100);
    EXPECT_EQ(ample[1].host, 60);
    EXPECT_EQ(ample[0].core + ample[1].core, 0);
    const auto scarce = divide_experts(rooms, 85);  // 70 that the first card has no slot for, 15 more
    EXPECT_EQ(scarce[0].host, 75);
    EXPECT_EQ(scarce[1].host, 10);
    EXPECT_EQ(scarce[0].core, 25);
    EXPECT_EQ(scarce[1].core, 50);
    const auto none = divide_experts(rooms, 40);
    EXPECT_EQ(sum_of(none).file, 30);
    EXPECT_EQ(sum_of(none).core, 90);
    EXPECT_EQ(sum_of(none).experts, 160);
}

}  // namespace
}  // namespace thermocline::scheduler
