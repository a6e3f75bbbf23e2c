// Which experts the solver puts on a card, against every other choice there is; placement files that are refused.
#include "scheduler/placement.h"

#include "scheduler/cost_model.h"
#include "scheduler/placement_file.h"
#include "src/base/error.h"

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <random>
#include <set>

namespace thermocline::scheduler {
namespace {

struct Case {
    std::vector<RoutedLayer> layers;
    std::vector<std::vector<int64_t>> counts;
    std::vector<double> seconds;
    int64_t slots;
};

/// Counts as routers make them, times that fall by less and less.
Case draw(std::mt19937& random, int64_t most_layers, int64_t experts, int64_t top_k, int64_t most_slots) {
    Case drawn;
    const auto below = [&](int64_t limit) { return static_cast<int64_t>(random() % static_cast<uint64_t>(limit)); };
    drawn.layers.assign(static_cast<size_t>(1 + below(most_layers)), {experts, top_k});
    for (size_t i = 0; i < drawn.layers.size(); ++i) {
        std::vector<int64_t>& counts = drawn.counts.emplace_back();
        for (int64_t e = 0; e < experts; ++e) counts.push_back(below(4) == 0 ? below(1000) : below(30));
    }
    double gain = 1e-3;
    drawn.seconds = {1e-2};
    for (int64_t k = 0; k < top_k; ++k) {
        drawn.seconds.push_back(drawn.seconds.back() - gain);
        gain *= below(2) == 0 ? 1.0 : 0.4;
    }
    drawn.slots = below(most_slots + 1);
    return drawn;
}

/// The expected time of a token with the experts whose bit is set, straight from the definition.
double seconds_of(const Case& one, uint64_t set) {
    double sum = 0.0;
    for (size_t layer = 0, bit = 0; layer < one.layers.size(); ++layer) {
        double all = 0.0, resident = 0.0;
        for (const int64_t count : one.counts[layer]) {
            all += static_cast<double>(count) + 0.5;
            if (set >> bit++ & 1) resident += static_cast<double>(count) + 0.5;
        }
        const auto top_k = static_cast<int>(one.layers[layer].top_k);
        for (int hits = 0; hits <= top_k; ++hits) {
            const double ways = std::tgamma(top_k + 1) / std::tgamma(hits + 1) / std::tgamma(top_k - hits + 1);
            sum += ways * std::pow(resident / all, hits) * std::pow(1.0 - resident / all, top_k - hits) *
                   one.seconds[static_cast<size_t>(hits)];
        }
    }
    return sum;
}

TEST(Placement, IsTheBestOfAllChoices) {
    std::mt19937 random(7);
    for (int i = 0; i < 200; ++i) {
        const Case one = draw(random, 3, 4, 2, 7);
        const auto experts = one.layers.size() * 4;
        double best = 1.0;
        for (uint64_t set = 0; set < uint64_t{1} << experts; ++set)
            if (std::popcount(set) <= one.slots) best = std::min(best, seconds_of(one, set));
        const Placement placement = place_experts({one.layers, one.counts, one.seconds, one.slots});
        EXPECT_LE(std::ssize(placement.resident), one.slots);
        EXPECT_NEAR(placement.seconds, best, 1e-12) << "case " << i;
        uint64_t chosen = 0;
        for (const ExpertName& name : placement.resident) chosen |= uint64_t{1} << (name.set * 4 + name.expert);
        EXPECT_NEAR(seconds_of(one, chosen), placement.seconds, 1e-12);
    }
}

TEST(Placement, PinsComeFirstAndTheRestIsBest) {
    std::mt19937 random(8);
    for (int i = 0; i < 50; ++i) {
        Case one = draw(random, 3, 4, 2, 5);
        one.slots += 2;
        const ExpertName pin{0, static_cast<int32_t>(random() % 4)};
        const Placement placement = place_experts({one.layers, one.counts, one.seconds, one.slots, {pin, pin}});
        EXPECT_TRUE(std::ranges::count(placement.resident, pin) == 1);
        double best = 1.0;
        for (uint64_t set = 0; set < uint64_t{1} << one.layers.size() * 4; ++set)
            if ((set >> pin.expert & 1) && std::popcount(set) <= one.slots) best = std::min(best, seconds_of(one, set));
        EXPECT_NEAR(placement.seconds, best, 1e-12) << "case " << i;
    }
}

TEST(Placement, OfTheLargestModelTakesNoTime) {
    std::mt19937 random(9);
    Case one = draw(random, 1, 384, 6, 0);
    one.layers.assign(61, one.layers.front());
    one.counts.assign(61, one.counts.front());
    const auto begin = std::chrono::steady_clock::now();
    const Placement placement = place_experts({one.layers, one.counts, one.seconds, 9000});
    EXPECT_LT(std::chrono::steady_clock::now() - begin, std::chrono::seconds(30));  // 2 s asked for; tests may be slow
    EXPECT_EQ(placement.resident.size(), 9000u);
}

TEST(Placement, WhatCannotBePinnedIsSaid) {
    const std::vector<RoutedLayer> layers = {{4, 2}};
    const std::vector<std::vector<int64_t>> counts = {{1, 2, 3, 4}};
    const std::vector<double> seconds = {3, 2, 1};
    EXPECT_THROW(place_experts({layers, counts, seconds, 2, {{0, 4}}}), Error);
    EXPECT_THROW(place_experts({layers, counts, seconds, 2, {{1, 0}}}), Error);
    EXPECT_THROW(place_experts({layers, counts, seconds, 1, {{0, 0}, {0, 1}}}), Error);
}

/// The cost model's times are such as the solver is exact for.
TEST(Placement, LayerTimesFallByLessAndLess) {
    const TokenWork work{.dense_bytes = 7e9,
                         .shared_bytes = 0.5e9,
                         .expert_bytes = 13e6,
                         .expert_flops = 5e7,
                         .layers = 43,
                         .top_k = 6,
                         .experts = 256};
    for (const bool balanced : {false, true})
        for (const double dram : {50e9, 400e9, 4000e9}) {
            const Rates rates{
                .gpu_dense = 1.5e12, .gpu_expert = 1.2e12, .dram = dram, .handoff = 15e-6, .balanced = balanced};
            const std::vector<double> seconds = layer_seconds(work, rates, true);
            ASSERT_EQ(seconds.size(), 7u);
            for (size_t i = 2; i < seconds.size(); ++i)
                EXPECT_LE(seconds[i - 1] - seconds[i], seconds[i - 2] - seconds[i - 1] + 1e-12);
            if (balanced) {
                EXPECT_TRUE(std::is_sorted(seconds.rbegin(), seconds.rend()));
            }
        }
}

TEST(PlacementFile, IsReadAsItWasWrittenAndOnlyForItsModel) {
    const std::vector<RoutedLayer> layers = {{4, 2}, {4, 2}};
    const std::string path = (std::filesystem::path(testing::TempDir()) / "placement.json").string();
    const auto write = [&](const std::string& text) { std::ofstream(path) << text; };
    Placement placement;
    placement.resident = {{0, 3}, {1, 0}, {0, 1}};
    write(dump_json(placement_json(placement, "m", layers)));
    EXPECT_EQ(read_placement(path, "m", layers).resident, (std::vector<ExpertName>{{0, 3}, {0, 1}, {1, 0}}));

    const auto refusal = [&](const std::string& model, const std::vector<RoutedLayer>& of) -> std::string {
        try {
            read_placement(path, model, of);
        } catch (const Error& error) {
            return error.what();
        }
        return "(no error)";
    };
    EXPECT_NE(refusal("other", layers).find("is of m (2 layers, 4 experts, top 2)"), std::string::npos);
    EXPECT_NE(refusal("m", {{4, 2}}).find("but this is m (1 layers"), std::string::npos);
    Json json = placement_json(placement, "m", layers);
    json["resident"][0] = {3, 3};
    write(dump_json(json));
    EXPECT_NE(refusal("m", layers).find("resident[0] holds 3"), std::string::npos) << refusal("m", layers);
    json["resident"][0] = {4};
    write(dump_json(json));
    EXPECT_NE(refusal("m", layers).find("expected ids from 0 to 3"), std::string::npos);
    placement.shares = shares_of(layers, {{9, 0, 0, 99}, {1, 2, 3, 4}});
    json = placement_json(placement, "m", layers);
    write(dump_json(json));
    EXPECT_EQ(read_placement(path, "m", layers).shares, placement.shares);
    EXPECT_NEAR(placement.shares[0][3], 2 * 99.5 / 110, 1e-12);
    EXPECT_EQ(likeliest_experts(placement.shares, 3), (std::vector<ExpertName>{{0, 3}, {1, 3}, {1, 2}}));
    json["shares"][1][0] = -0.5;
    write(dump_json(json));
    EXPECT_NE(refusal("m", layers).find("shares[1] holds -0.5"), std::string::npos) << refusal("m", layers);
    json["shares"][1] = {1};
    write(dump_json(json));
    EXPECT_NE(refusal("m", layers).find("shares[1] is no list of 4"), std::string::npos);
    json["shares"] = nullptr;
    json["residnt"] = Json::array();
    write(dump_json(json));
    EXPECT_NE(refusal("m", layers).find("residnt is no key"), std::string::npos) << refusal("m", layers);
    for (const char* damaged : {"", "{", "[]", R"({"thermocline_placement": 2})", R"({"thermocline_placement": 1})"}) {
        write(damaged);
        EXPECT_NE(refusal("m", layers), "(no error)") << damaged;
    }
}

TEST(Placement, LikeliestFirst) {
    using Names = std::vector<ExpertName>;
    const Names names = {{0, 5}, {0, 6}, {0, 7}, {1, 2}, {1, 0}};
    EXPECT_EQ(likeliest_first(names, {}), (Names{{0, 5}, {1, 2}, {0, 6}, {1, 0}, {0, 7}}));
    std::vector<std::vector<double>> shares(2, std::vector<double>(8, 0.1));
    shares[0][6] = 0.3, shares[1][0] = 0.2, shares[1][7] = 0.9;  // who is not named does not come in
    EXPECT_EQ(likeliest_first(names, shares), (Names{{0, 6}, {1, 0}, {0, 5}, {0, 7}, {1, 2}}));
}

}  // namespace
}  // namespace thermocline::scheduler
