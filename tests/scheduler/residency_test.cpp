// Which experts take the slots of a card, on made-up traces.
#include "scheduler/residency.h"

#include "src/base/error.h"

#include <algorithm>
#include <gtest/gtest.h>
#include <numeric>
#include <random>
#include <set>

namespace thermocline::scheduler {
namespace {

using Policy = ResidencyRules::Policy;

const int64_t kSizes[] = {32, 32};

/// The first `count` experts of either set, in turn.
std::vector<ExpertName> first_ones(int32_t count) {
    std::vector<ExpertName> names;
    for (int32_t e = 0; e < count; ++e)
        for (const ops::ExpertsId set : {0, 1}) names.push_back({set, e});
    return names;
}

/// Passes of one token of which each chooses `ids` in both sets; what comes is there after the pass.
class Played {
public:
    explicit Played(const ResidencyRules& rules, int32_t each = 4) : residency(kSizes, first_ones(each), rules) {
        for (const ExpertName& name : first_ones(each)) here.insert({name.set, name.expert});
    }
    std::vector<Residency::Change> pass(const std::vector<int32_t>& ids, int64_t rows = 1, bool is_prompt = false,
                                        int64_t most = 8) {
        residency.begin_pass(rows, is_prompt);
        for (const ops::ExpertsId set : {0, 1}) residency.note(set, ids);
        const auto changes = residency.choose(most);
        for (const Residency::Change& change : changes) {
            EXPECT_EQ(here.erase({change.out.set, change.out.expert}), 1u);
            EXPECT_TRUE(here.insert({change.in.set, change.in.expert}).second);
            residency.arrived(change.slot);
        }
        return changes;
    }
    double hit_rate() const { return static_cast<double>(residency.hits()) / static_cast<double>(residency.choices()); }

    Residency residency;
    std::set<std::pair<ops::ExpertsId, int32_t>> here;
};

TEST(Residency, TheCoreStaysWhateverIsChosenOrOrdered) {
    for (const Policy policy : {Policy::kAdaptive, Policy::kLru, Policy::kStatic}) {
        Played played({.policy = policy, .least_per_set = 0, .core = 5});  // of 8: experts 0 and 1, and one 2
        std::mt19937 random(5);
        for (int i = 0; i < 300; ++i) {
            if (i % 50 == 10) {
                std::vector<ExpertName> wanted;
                for (int32_t e = 8; e < 14; ++e) wanted.push_back({0, e});
                played.residency.want(wanted);
            }
            played.pass({static_cast<int32_t>(8 + random() % 24), static_cast<int32_t>(8 + random() % 4)});
            const std::vector<ExpertName> before = first_ones(4);
            for (const ExpertName& name : std::span(before).first(5))
                ASSERT_TRUE(played.here.contains({name.set, name.expert}));
        }
        EXPECT_EQ(played.here.size(), 8u);
        EXPECT_FALSE(played.here.contains({1, 3}));  // who is no part of it has gone
    }
}

TEST(Residency, WhatIsChosenAgainComes) {
    Played played({.least_per_set = 0});
    EXPECT_TRUE(played.pass({9}).empty());  // once may be chance
    const auto changes = played.pass({9});
    ASSERT_EQ(changes.size(), 2u);
    for (const Residency::Change& change : changes) {
        EXPECT_EQ(change.in.expert, 9);
        EXPECT_LT(change.out.expert, 4);
    }
    EXPECT_EQ(played.residency.hits(), 0);
    played.pass({9});
    EXPECT_EQ(played.residency.hits(), 2);
}

TEST(Residency, WhoIsInUseStays) {
    Played played({.least_per_set = 0});
    for (int i = 0; i < 4; ++i) played.pass({0, 1, 2, 3});
    EXPECT_TRUE(played.pass({0, 1, 2, 3, 20}).empty());
    EXPECT_TRUE(played.pass({0, 1, 2, 3, 20}).empty());  // all others were chosen in the last pass
    // Long after their last use those that are worth less than the newcomer go.
    for (int i = 0; i < 3; ++i) played.pass({});
    for (int i = 0; i < 9; ++i) played.pass({20, 21});
    EXPECT_TRUE(played.here.contains({0, 20}));
}

TEST(Residency, OldScoresFade) {
    Played played({.half_life = 4, .least_per_set = 0});
    for (int i = 0; i < 100; ++i) played.pass({0, 1, 2, 3});
    for (int i = 0; i < 30; ++i) played.pass({10, 11, 12, 13});
    for (const int32_t e : {10, 11, 12, 13}) EXPECT_TRUE(played.here.contains({0, e})) << e;
    Played slow({.half_life = 100'000, .least_per_set = 0});
    for (int i = 0; i < 100; ++i) slow.pass({0, 1, 2, 3});
    for (int i = 0; i < 30; ++i) slow.pass({10, 11, 12, 13});
    for (const int32_t e : {0, 1, 2, 3}) EXPECT_TRUE(slow.here.contains({0, e})) << e;
}

TEST(Residency, ALayerKeepsItsLeast) {
    Played played({.least_per_set = 3});
    for (int i = 0; i < 50; ++i) {
        played.residency.begin_pass(1, false);
        played.residency.note(1, std::vector<int32_t>{i % 20 + 4, i % 7 + 8, i % 3 + 12});
        for (const Residency::Change& change : played.residency.choose(4)) {
            played.here.erase({change.out.set, change.out.expert});
            played.here.insert({change.in.set, change.in.expert});
            played.residency.arrived(change.slot);
        }
    }
    EXPECT_EQ(std::ranges::count_if(played.here, [](const auto& one) { return one.first == 0; }), 3);
    EXPECT_EQ(played.here.size(), 8u);
}

/// Two slots for three layers go wherever the most is chosen, though each layer is to keep four.
TEST(Residency, FewSlotsAreNotHeldByTheLayersThatHadThemFirst) {
    Residency residency(std::vector<int64_t>{4, 4, 4}, std::vector<ExpertName>{{0, 0}, {1, 0}}, {.least_per_set = 4});
    for (int i = 0; i < 50; ++i) {
        residency.begin_pass(1, false);
        for (const int set : {0, 1}) residency.note(set, std::vector<int32_t>{i % 3 + 1});
        residency.note(2, std::vector<int32_t>{1, 2});
        for (const Residency::Change& change : residency.choose(4)) residency.arrived(change.slot);
    }
    const int64_t before = residency.hits();
    residency.begin_pass(1, false);
    residency.note(2, std::vector<int32_t>{1, 2});
    EXPECT_EQ(residency.hits() - before, 2);
}

TEST(Residency, StaticStays) {
    Played played({.policy = Policy::kStatic});
    for (int i = 0; i < 20; ++i) EXPECT_TRUE(played.pass({20, 21, 22}).empty());
    EXPECT_EQ(played.residency.hits(), 0);
}

TEST(Residency, LruTakesWhatCameLast) {
    Played played({.policy = Policy::kLru, .least_per_set = 0}, 2);
    played.pass({0, 1});
    played.pass({});
    played.pass({});
    EXPECT_EQ(played.pass({5, 6}).size(), 4u);  // at once, without a second look
    EXPECT_TRUE(played.here.contains({0, 5}) && played.here.contains({1, 6}));
}

TEST(Residency, NoMoreThanAskedFor) {
    Played played({.least_per_set = 0});
    std::vector<int32_t> many(20);
    std::iota(many.begin(), many.end(), 8);
    played.pass(many);
    EXPECT_EQ(played.pass(many, 1, false, 3).size(), 3u);
    EXPECT_TRUE(played.residency.choose(100).empty());  // the next pass tells anew
}

TEST(Residency, APromptCountsLess) {
    Played played({.half_life = 512, .prompt_weight = 0.25, .most_per_prompt = 2, .least_per_set = 0});
    for (int i = 0; i < 6; ++i) played.pass({0, 1, 2, 3});
    for (int i = 0; i < 3; ++i) played.pass({});
    const std::vector<int32_t> prompt(64, 30);  // 64 tokens count as two, twice: less than six
    played.pass(prompt, 64, true);
    EXPECT_TRUE(played.pass(prompt, 64, true).empty());
    for (int i = 0; i < 6; ++i) played.pass({30});
    EXPECT_TRUE(played.here.contains({0, 30}));
}

/// After a long prompt that chose 30 twice as often as 31: both may stay where there is less, and they differ though
/// each was chosen more often than counts.
/// Though it chose those on the card too: the second prompt, when what is chosen has been seen twice.
TEST(Residency, WhatAPromptChoosesMostComes) {
    Played played({});
    std::vector<int32_t> ids(32);
    std::iota(ids.begin(), ids.end(), 0);                              // all of them once,
    for (int i = 0; i < 96; ++i) ids.push_back(i % 2 == 0 ? 20 : 21);  // two of them most of the time
    EXPECT_TRUE(played.pass(ids, 64, true).empty());
    (void)played.pass(ids, 64, true);
    for (const ops::ExpertsId set : {0, 1})
        for (const int32_t id : {20, 21}) EXPECT_TRUE(played.here.contains({set, id})) << set << ":" << id;
    EXPECT_EQ(played.here.size(), 8u);
}

TEST(Residency, WhatComesInAPromptMayStay) {
    const auto after_prompt = [](const ResidencyRules& rules) {
        Residency residency(kSizes, first_ones(2), rules);
        std::vector<int32_t> ids(100, 30);
        ids.insert(ids.end(), 50, 31);
        residency.begin_pass(150, true);
        residency.note(0, ids);
        return residency;
    };
    Residency adaptive = after_prompt({.most_per_prompt = 2});
    const auto first = adaptive.adopt({0, 31});
    ASSERT_TRUE(first);
    EXPECT_EQ(first->in, (ExpertName{0, 31}));
    EXPECT_EQ(first->out, (ExpertName{0, 0})) << "of its own set";
    EXPECT_FALSE(adaptive.adopt({0, 31})) << "it is on the way";
    adaptive.pin({0, 1}, true);
    EXPECT_FALSE(adaptive.adopt({0, 30})) << "one is pinned, the other has not arrived";
    adaptive.arrived(first->slot);
    const auto second = adaptive.adopt({0, 30});
    ASSERT_TRUE(second);
    EXPECT_EQ(second->out, (ExpertName{0, 31}));
    adaptive.arrived(second->slot);
    EXPECT_FALSE(adaptive.adopt({0, 31})) << "it is worth less";

    EXPECT_FALSE(after_prompt({.policy = Policy::kStatic}).adopt({0, 30}));
    Residency placed = after_prompt({});
    placed.want(first_ones(2));
    EXPECT_FALSE(placed.adopt({0, 30})) << "it is not known yet whether they are there";
    EXPECT_TRUE(placed.choose(4).empty());
    EXPECT_TRUE(placed.adopt({0, 30})) << "what was wanted has come, and is worth less now";
    EXPECT_FALSE(after_prompt({.core = 3}).adopt({0, 30})) << "both of its set are of the core";
    EXPECT_FALSE(after_prompt({}).adopt({0, 20})) << "nobody chose it";
    EXPECT_FALSE(after_prompt({}).adopt({1, 1})) << "it is there";
    EXPECT_TRUE(after_prompt({.policy = Policy::kLru}).adopt({0, 30}));
}

TEST(Residency, WhatIsLikelyFollowsTheScores) {
    Played played({.least_per_set = 0});
    EXPECT_EQ(played.residency.likely(0, 64), std::vector<double>(32, 2.0));
    played.pass({9, 9, 9, 5});
    const std::vector<double> likely = played.residency.likely(1, 8);
    EXPECT_DOUBLE_EQ(likely[9], 6.0);
    EXPECT_DOUBLE_EQ(likely[5], 2.0);
    EXPECT_EQ(std::accumulate(likely.begin(), likely.end(), 0.0), 8.0);
}

/// Recency in a made-up text: topics of a dozen experts that last for a while, and noise.
TEST(Residency, TopicsAreFollowed) {
    const auto rate_of = [](Policy policy) {
        Played played({.policy = policy, .half_life = 64, .least_per_set = 2}, 8);
        std::mt19937 random(7);
        std::vector<int32_t> topic(10);
        for (int token = 0; token < 3000; ++token) {
            if (token % 300 == 0)
                for (int32_t& e : topic) e = static_cast<int32_t>(random() % 32);
            std::set<int32_t> ids;
            while (ids.size() < 4)
                ids.insert(random() % 5 == 0 ? static_cast<int32_t>(random() % 32) : topic[random() % topic.size()]);
            played.pass({ids.begin(), ids.end()}, 1, false, 2);
        }
        return played.hit_rate();
    };
    const double fixed = rate_of(Policy::kStatic), adaptive = rate_of(Policy::kAdaptive), lru = rate_of(Policy::kLru);
    EXPECT_LT(fixed, 0.35);  // a quarter is there
    EXPECT_GT(adaptive, fixed + 0.2);
    EXPECT_GT(adaptive, 0.95 * lru);
}

TEST(Residency, WhatIsExpectedCountsLikeWhatWasChosen) {
    std::vector<std::vector<double>> shares(2, std::vector<double>(32, 0.01));
    for (const int32_t e : {0, 1, 2, 3}) shares[0][static_cast<size_t>(e)] = shares[1][static_cast<size_t>(e)] = 0.9;
    Played played({.half_life = 32, .least_per_set = 0}), unknowing({.half_life = 32, .least_per_set = 0});
    played.residency.expect(shares);
    for (Played* one : {&played, &unknowing})
        for (int i = 0; i < 8; ++i) one->pass({20, 21});
    EXPECT_TRUE(unknowing.here.contains({0, 20}));
    for (const int32_t e : {0, 1, 2, 3}) EXPECT_TRUE(played.here.contains({1, e})) << e;
    for (int i = 0; i < 60; ++i) played.pass({20, 21});  // what was expected fades
    EXPECT_TRUE(played.here.contains({0, 20}) && played.here.contains({1, 21}));
}

TEST(Residency, WantedOnesComeWhateverTheRules) {
    for (const Policy policy : {Policy::kStatic, Policy::kLru, Policy::kAdaptive}) {
        Played played({.policy = policy, .least_per_set = 0});
        played.residency.want({{0, 30}, {1, 2}, {0, 31}});  // the second is there
        EXPECT_EQ(played.pass({}, 1, false, 1).size(), 1u);
        EXPECT_TRUE(played.here.contains({0, 30}));
        EXPECT_EQ(played.pass({}).size(), 1u);
        EXPECT_TRUE(played.here.contains({0, 31}) && played.here.contains({1, 2}));
        EXPECT_EQ(played.residency.waiting(), 0);
    }
}

TEST(Residency, PinnedOnesStay) {
    Played played({.policy = Policy::kLru, .least_per_set = 0}, 2);
    played.residency.pin({0, 1}, true);
    for (int32_t e = 4; e < 30; ++e) played.pass({e, e + 1, e + 2});
    EXPECT_TRUE(played.here.contains({0, 1}));
    EXPECT_FALSE(played.here.contains({1, 1}));
    played.residency.want({{1, 1}, {1, 0}, {0, 0}, {0, 3}});  // more than there is room for beside the pin
    played.pass({});
    EXPECT_TRUE(played.here.contains({0, 1}));
    EXPECT_EQ(played.residency.waiting(), 1);
    played.residency.pin({0, 1}, false);
    played.pass({});
    EXPECT_TRUE(played.here.contains({0, 3}) && !played.here.contains({0, 1}));
}

TEST(Residency, NamesOfPolicies) {
    EXPECT_EQ(residency_policy("lru"), Policy::kLru);
    EXPECT_EQ(residency_policy("static"), Policy::kStatic);
    EXPECT_EQ(residency_policy("adaptive"), Policy::kAdaptive);
    EXPECT_THROW(residency_policy("mru"), Error);
}

}  // namespace
}  // namespace thermocline::scheduler
