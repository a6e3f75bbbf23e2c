// Statistics of routing on traces whose answers are known: counts, pairs, foretelling, working sets, merging, the file.
#include "scheduler/routing_profile.h"

#include "scheduler/hits_bound.h"
#include "scheduler/residency_replay.h"
#include "scheduler/routing_watch.h"
#include "src/base/error.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <random>

namespace thermocline::scheduler {
namespace {

constexpr int64_t kExperts = 16, kTopK = 2;

/// Two layers; the second chooses what the first did, one further on.
RoutingTrace trace_of(const std::vector<std::vector<int32_t>>& rows, const std::string& kind = "") {
    RoutingTrace trace{"m", {{kExperts, kTopK}, {kExperts, kTopK}}, {}};
    for (const std::vector<int32_t>& row : rows) {
        std::vector<int32_t> next = row;
        for (int32_t& id : next) id = (id + 1) % kExperts;
        trace.passes.push_back({.decode = true, .kind = kind, .ids = {row, next}, .rows = 1});
    }
    return trace;
}

std::vector<std::vector<int32_t>> random_rows(size_t count, int32_t experts = kExperts) {
    std::mt19937 random(5);
    std::vector<std::vector<int32_t>> rows;
    for (size_t i = 0; i < count; ++i) {
        const auto a = static_cast<int32_t>(random() % static_cast<uint32_t>(experts));
        rows.push_back({a, static_cast<int32_t>((a + 1 + random() % static_cast<uint32_t>(experts - 1)) %
                                                static_cast<uint32_t>(experts))});
    }
    return rows;
}

TEST(RoutingProfile, CountsRowsExpertsAndPairs) {
    RoutingTrace trace = trace_of({{0, 1}, {1, 0}, {5, 2}});
    trace.passes.push_back({.decode = false, .kind = "", .ids = {{7, 8, 8, 9}, {0, 1, 2, 3}}, .rows = 2});
    const RoutingProfile profile = profile_of(trace);
    ASSERT_EQ(profile.classes.size(), 1u);
    const RoutingPhase &decode = profile.classes[0].decode, &prefill = profile.classes[0].prefill;
    EXPECT_EQ(decode.rows, 3);
    EXPECT_EQ(prefill.rows, 2);
    EXPECT_EQ(decode.chosen[0][0], 2);
    EXPECT_EQ(decode.chosen[0][5], 1);
    EXPECT_EQ(decode.chosen[1][6], 1);
    EXPECT_EQ(prefill.chosen[0][8], 2);
    const double one_later = std::exp2(-1 / kRecentHalfLife), two_later = std::exp2(-2 / kRecentHalfLife);
    EXPECT_NEAR(decode.recent[0][0], two_later + one_later, 1e-12);
    EXPECT_EQ(decode.recent[0][5], 1.0);
    EXPECT_NEAR(prefill.recent[0][8], one_later + 1, 1e-12);
    ASSERT_EQ(decode.pairs[0].size(), 2u);
    EXPECT_EQ(decode.pairs[0][0].a, 0);
    EXPECT_EQ(decode.pairs[0][0].b, 1);
    EXPECT_EQ(decode.pairs[0][0].rows, 2);
    EXPECT_EQ(profile.rows(), 5);
    EXPECT_EQ(profile.chosen()[0][8], 2);
}

/// A line of a /proc file about this process, in KiB; -1: there is no such line.
int64_t memory_kib(const std::string& name) {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);)
        if (line.starts_with(name + ":")) return std::stoll(line.substr(name.size() + 1));
    return -1;
}

/// Pairs of all layers together would be gigabytes.
TEST(RoutingProfile, AModelOfAnySizeTakesLittleMemory) {
    RoutingTrace trace{"m", std::vector<RoutedLayer>(512, {1024, 2}), {}};
    for (const bool decode : {false, true})
        trace.passes.push_back(
            {.decode = decode, .kind = "", .ids = std::vector<std::vector<int32_t>>(512, {1023, 0}), .rows = 1});
    std::ofstream("/proc/self/clear_refs") << "5";  // the peak starts anew
    const int64_t before = memory_kib("VmRSS");
    if (memory_kib("VmHWM") > before + 20'000) GTEST_SKIP() << "the kernel does not tell";
    const RoutingProfile profile = profile_of(trace);
    EXPECT_LT(memory_kib("VmHWM") - before, 600 * 1024);  // sanitizers keep what was given back
    EXPECT_EQ(profile.classes.at(0).decode.chosen[511][1023], 1);
    EXPECT_EQ(profile.classes.at(0).prefill.pairs[0].size(), 1u);
}

TEST(RoutingProfile, ForetellsWhatFollowsAndNotWhatDoesNot) {
    const RoutingProfile follows = profile_of(trace_of(random_rows(400)));
    EXPECT_EQ(follows.classes[0].next_layer[0], 0.0);
    EXPECT_GT(follows.classes[0].next_layer[1], 0.85);
    RoutingTrace chance = trace_of(random_rows(400));
    std::mt19937 random(6);
    for (RoutedPass& pass : chance.passes) {
        const auto a = static_cast<int32_t>(random() % kExperts);
        pass.ids[1] = {a, static_cast<int32_t>((a + 3) % kExperts)};
    }
    EXPECT_LT(profile_of(chance).classes[0].next_layer[1], 0.4);
}

TEST(RoutingProfile, CountsWhatWasForetold) {
    RoutingTrace trace = trace_of(random_rows(40));
    EXPECT_TRUE(profile_of(trace).classes[0].foretold.empty());
    for (size_t i = 0; i < trace.passes.size(); ++i) {
        RoutedPass& pass = trace.passes[i];
        pass.foretold = {pass.ids[0], std::vector<int32_t>(pass.ids[1].size(), -1)};
        if (i % 4 == 0) pass.foretold[1][1] = pass.ids[1][0];  // in any place
    }
    RoutingProfile profile = profile_of(trace);
    EXPECT_EQ(profile.classes[0].foretold, (std::vector{1.0, 0.125}));
    merge(profile, profile_of(trace_of(random_rows(10))));  // of which nothing is known
    EXPECT_EQ(profile.classes[0].foretold, (std::vector{1.0, 0.125}));
    EXPECT_EQ(profile.classes[0].foretold_rows, 40);
}

/// With every policy, what is always chosen is found, and foresight is never beaten.
TEST(RoutingProfile, WorkingSetsKnowRecencyAndForesight) {
    std::vector<std::vector<int32_t>> rows;
    for (int32_t i = 0; i < 400; ++i) rows.push_back({i / 50 % 8 * 2, i / 50 % 8 * 2 + 1});  // fifty times the same
    const WorkingSet slow = profile_of(trace_of(rows)).classes[0].decode.working_set;
    EXPECT_EQ(slow.choices, 200 * 2 * kTopK);
    const size_t quarter = 3;
    ASSERT_EQ(kCurveFractions[quarter], 0.25);
    EXPECT_GT(slow.at[quarter].adaptive, 0.7);  // 8 slots for 4 experts that are chosen now
    EXPECT_GT(slow.at[quarter].lru, 0.9);
    EXPECT_LT(slow.at[quarter].fixed, 0.5);  // learned on the first half, which chose others
    const WorkingSet chance = profile_of(trace_of(random_rows(400))).classes[0].decode.working_set;
    for (const WorkingSet* set : {&slow, &chance})
        for (const WorkingSet::Rates& rates : set->at)
            for (const double rate : {rates.adaptive, rates.lru, rates.fixed}) EXPECT_LE(rate, rates.optimum);
}

/// What a pass of many rows chooses counts by its rows, and is there in the next.
TEST(RoutingProfile, WorkingSetsOfPromptsAreTheirOwn) {
    RoutingTrace trace = trace_of(random_rows(40));
    for (int pass = 0; pass < 4; ++pass)  // always the same 2 of 16 experts, by three rows
        trace.passes.push_back(
            {.decode = false, .kind = "", .ids = {{3, 4, 4, 3, 3, 4}, {5, 6, 6, 5, 5, 6}}, .rows = 3});
    const RoutingClass one = profile_of(trace).classes[0];
    EXPECT_EQ(one.decode.working_set.choices, 20 * 2 * kTopK);
    EXPECT_EQ(one.prefill.working_set.choices, 2 * 3 * 2 * kTopK);
    const WorkingSet::Rates& quarter = one.prefill.working_set.at[3];
    EXPECT_EQ(quarter.lru, 1.0);
    EXPECT_EQ(quarter.fixed, 1.0);
    EXPECT_EQ(quarter.optimum, 1.0);
    EXPECT_LT(one.decode.working_set.at[3].lru, 0.8);
}

/// The optimum against every way to fill two slots, on short traces.
TEST(ResidencyReplay, OptimumIsTheBestThatCanBe) {
    for (uint32_t seed = 0; seed < 20; ++seed) {
        std::mt19937 random(seed);
        RoutingTrace trace{"m", {{4, 1}}, {}};
        for (int i = 0; i < 12; ++i)
            trace.passes.push_back(
                {.decode = true, .kind = "", .ids = {{static_cast<int32_t>(random() % 4)}}, .rows = 1});
        // best[set]: most hits so far with these experts in the slots; after a pass its expert may take any slot.
        std::vector<int64_t> best(16, -1);
        best[0b0011] = 0;
        for (const RoutedPass& pass : trace.passes) {
            const uint32_t chosen = 1u << pass.ids[0][0];
            std::vector<int64_t> next(16, -1);
            for (uint32_t set = 0; set < 16; ++set) {
                if (best[set] < 0) continue;
                const int64_t hits = best[set] + ((set & chosen) != 0);
                for (uint32_t then = 0; then < 16; ++then)
                    if (std::popcount(then) <= 2 && (then & ~(set | chosen)) == 0)
                        next[then] = std::max(next[then], hits);
            }
            best = next;
        }
        const ExpertName start[] = {{0, 0}, {0, 1}};
        EXPECT_EQ(replay_optimum(trace, start).hits, *std::max_element(best.begin(), best.end())) << seed;
    }
}

/// Where every pass chooses all experts, the best are those that most rows of the next one choose.
TEST(ResidencyReplay, OptimumOfPromptsIsTheBestOfEveryPass) {
    std::mt19937 random(3);
    RoutingTrace trace{"m", {{6, 1}}, {}};
    int64_t hits = 0, choices = 0;
    for (int p = 0; p < 9; ++p) {
        std::vector<int32_t> ids;
        std::vector<int64_t> rows(6);
        for (int32_t e = 0; e < 6; ++e) {
            rows[static_cast<size_t>(e)] = 1 + static_cast<int64_t>(random() % 50);
            ids.insert(ids.end(), static_cast<size_t>(rows[static_cast<size_t>(e)]), e);
        }
        trace.passes.push_back(
            {.decode = false, .kind = "", .ids = {ids}, .rows = static_cast<int32_t>(std::ssize(ids))});
        std::sort(rows.rbegin(), rows.rend());
        hits += p == 0 ? 0 : rows[0] + rows[1];
        choices += p == 0 ? 0 : std::ssize(ids);
    }
    const ExpertName start[] = {{0, 0}, {0, 1}};
    const Replayed best = replay_optimum(trace, start, 1);
    EXPECT_EQ(best.hits, hits);
    EXPECT_EQ(best.choices, choices);
}

/// Against every way to fill two slots with so many changes: the bound is the concave hull of what can be reached.
TEST(HitsBound, IsWhatForesightReachesWithSoManyChanges) {
    constexpr size_t kMostChanges = 12;
    for (uint32_t seed = 0; seed < 20; ++seed) {
        std::mt19937 random(seed);
        RoutingTrace trace{"m", {{3, 1}, {2, 1}}, {}};
        for (int i = 0; i < 12; ++i)
            trace.passes.push_back({.decode = true,
                                    .kind = "",
                                    .ids = {{static_cast<int32_t>(random() % 3)}, {static_cast<int32_t>(random() % 2)}},
                                    .rows = 1});
        constexpr size_t kFrom = 2;
        std::vector<std::vector<int64_t>> best(32, std::vector<int64_t>(kMostChanges + 1, -1));  // [set][changes]
        for (uint32_t set = 0; set < 32; ++set)
            if (std::popcount(set) <= 2) best[set][0] = 0;
        for (size_t p = kFrom; p < trace.passes.size(); ++p) {
            const uint32_t chosen = 1u << trace.passes[p].ids[0][0] | 8u << trace.passes[p].ids[1][0];
            auto next = best;
            for (auto& of_set : next) std::fill(of_set.begin(), of_set.end(), -1);
            for (uint32_t set = 0; set < 32; ++set)
                for (size_t changes = 0; changes <= kMostChanges; ++changes)
                    for (uint32_t then = 0; then < 32 && best[set][changes] >= 0; ++then) {
                        const size_t sum = changes + static_cast<size_t>(std::popcount(then & ~set));
                        if (std::popcount(then) > 2 || sum > kMostChanges || (then & ~(set | chosen)) != 0) continue;
                        next[then][sum] = std::max(next[then][sum], best[set][changes] + std::popcount(set & chosen));
                    }
            best = next;
        }
        std::vector<double> most(kMostChanges + 1, 0.0);
        for (size_t changes = 0; changes <= kMostChanges; ++changes)
            for (const auto& of_set : best) most[changes] = std::max(most[changes], double(of_set[changes]));
        for (size_t c = 0; c <= kMostChanges; ++c) {
            double hull = *std::max_element(most.begin(), most.begin() + static_cast<std::ptrdiff_t>(c) + 1);
            for (size_t a = 0; a < c; ++a)
                for (size_t b = c + 1; b <= kMostChanges; ++b)
                    hull = std::max(hull, most[a] + (most[b] - most[a]) * double(c - a) / double(b - a));
            EXPECT_NEAR(most_hits(trace, 2, kFrom, static_cast<int64_t>(c)), hull, 1.0 / 64) << seed << ", " << c;
        }
    }
}

class ProfileFile : public testing::Test {
protected:
    std::string path_ = (std::filesystem::path(testing::TempDir()) / "profile.json").string();
    void write(const std::string& text) const { std::ofstream(path_) << text; }
    std::string error() const {
        try {
            read_routing_profile(path_);
        } catch (const Error& error) {
            return error.what();
        }
        return "(no error)";
    }
};

TEST_F(ProfileFile, IsReadAsItWasWritten) {
    RoutingTrace trace = trace_of(random_rows(100), "code");
    for (const RoutedPass& pass : trace_of(random_rows(30), "").passes) trace.passes.push_back(pass);
    for (RoutedPass& pass : trace.passes)
        if (pass.kind == "code") pass.foretold = pass.ids;
    const Json json = to_json(profile_of(trace));
    ASSERT_EQ(json["classes"].size(), 2u);
    ASSERT_TRUE(json["classes"][1].contains("foretold"));
    ASSERT_FALSE(json["classes"][0].contains("foretold"));
    write(dump_json(json));
    EXPECT_EQ(to_json(read_routing_profile(path_)), json);
}

TEST_F(ProfileFile, WhatIsWrongIsNamed) {
    const Json good = to_json(profile_of(trace_of(random_rows(20))));
    const auto expect = [&](const char* pointer, const Json& value, const std::string& part) {
        Json json = good;
        json[Json::json_pointer(pointer)] = value;
        write(dump_json(json));
        EXPECT_NE(error().find(part), std::string::npos) << pointer << ": " << error();
    };
    expect("/thermocline_profile", 1, "expected \"thermocline_profile\": 2");
    expect("/layers/0/experts", 0, "layer 0 has 0 experts");
    expect("/layers/0/experts", 100000, "layer 0 has 100000 experts");
    expect("/layers/0/top_k", 17, "chooses 17");
    expect("/classes", Json::array(), "classes is no list, or empty");
    expect("/clases", Json::array(), "clases is no key");
    expect("/classes/0/decoed", Json::object(), "classes[0]: decoed is no key");
    expect("/classes/0/decode/row", 3, "classes[0].decode: row is no key");
    expect("/classes/0/decode/curves/lrv", Json::array(), "classes[0].decode.curves: lrv is no key");
    expect("/classes/0/decode/curves/fractions/0", 0.5, "classes[0].decode.curves.fractions is");
    expect("/classes/1", good["classes"][0], "classes[1] is named");
    expect("/layers/0/topk", 2, "layer 0: topk is no key");
    expect("/classes/0/decode/counts/1", Json::array(), "classes[0].decode.counts[1] is []");
    expect("/classes/0/decode/counts/1/3", -1, "expected a count");
    expect("/classes/0/decode/counts/1/3", 9999, "does not add up to 20 rows of 2 experts");
    expect("/classes/0/decode/rows", 1e300, "expected a count");
    expect("/classes/0/decode/recent/1/3", -0.5, "classes[0].decode.recent[1] is -0.5, expected 0 to its count");
    expect("/classes/0/decode/recent/1/3", 50.5, "expected 0 to its count");
    expect("/classes/0/decode/pairs/0", {{1, 1, 5}}, "two experts, the lower first");
    expect("/classes/0/decode/pairs/0", {{1, 99, 5}}, "two experts, the lower first");
    expect("/classes/0/next_layer", {0.5}, "a list of 2");
    expect("/classes/0/decode/curves/lru/0", 1.5, "expected 0 to 1");
    expect("/classes/0/foretold", {{"rows", 0}, {"shares", {1.0, 0.5}}}, "expected at least 1");
    expect("/classes/0/foretold", {{"rows", 5}, {"shares", {1.0}}}, "a list of 2");
    Json json = good;
    json["classes"][0].erase("prefill");
    write(dump_json(json));
    EXPECT_NE(error().find("classes[0].prefill is missing"), std::string::npos) << error();
    write(dump_json(good).substr(0, 500));
    EXPECT_NE(error().find("not valid JSON"), std::string::npos) << error();
}

TEST(RoutingTraceFile, IsReadAsItWasWritten) {
    const std::string path = (std::filesystem::path(testing::TempDir()) / "trace.jsonl").string();
    const std::vector<RoutedLayer> layers = {{4, 2}, {300, 1}};
    RoutingRecord record;
    record.ids = {{0, 3, 1, 2, 3, 0}, {299, 0, 17}};
    RoutingTraceWriter writer(path, "m", layers);
    writer.add(record, 1, 2, false, "a \"class\"");
    record.foretold = {{0, 3, -1, -1, 3, 0}, {-1, 0, 17}};
    writer.add(record, 1, 1, true);
    writer.close();
    const RoutingTrace trace = read_routing_trace(path);
    EXPECT_EQ(trace.layers, layers);
    ASSERT_EQ(trace.passes.size(), 2u);
    EXPECT_EQ(trace.passes[0].ids, (std::vector<std::vector<int32_t>>{{1, 2, 3, 0}, {0, 17}}));
    EXPECT_EQ(trace.passes[0].kind, "a \"class\"");
    EXPECT_FALSE(trace.passes[0].decode);
    EXPECT_EQ(trace.passes[0].rows, 2);
    EXPECT_TRUE(trace.passes[1].decode);
    EXPECT_EQ(trace.passes[1].foretold, (std::vector<std::vector<int32_t>>{{-1, -1}, {0}}));
}

TEST(RoutingTraceFile, WhatIsWrongIsNamedWithItsLine) {
    const std::string head = R"({"thermocline_routing": 1, "model": "m", "layers": [{"experts": 4, "top_k": 2}]})";
    const auto refusal = [&](const std::string& first, const std::string& pass) -> std::string {
        try {
            parse_routing_trace(first + "\n" + pass + "\n", "t");
        } catch (const Error& error) {
            return error.what();
        }
        return "(no error)";
    };
    EXPECT_EQ(refusal(head, R"({"phase": "decode", "ids": [[[0, 3]]]})"), "(no error)");
    for (const auto& [pass, part] :
         {std::pair{R"({"phase": "decode", "ids": [[[0, 4]]]})", "t, line 2, layer 0: expert 4, expected 0 to 3"},
          {R"({"phase": "decode", "ids": [[[0, 0]]]})", "names expert 0 twice"},
          {R"({"phase": "decode", "ids": [[[0, 3]]], "klass": "x"})", "line 2: klass is no key"},
          {R"({"phase": "decode", "ids": [[[0, 3]]], "class": 5})", "line 2: class is number"},
          {R"({"phase": "decode", "ids": [[[0, 3]])", "not valid JSON"}})
        EXPECT_NE(refusal(head, pass).find(part), std::string::npos) << refusal(head, pass);
    EXPECT_NE(refusal(R"({"thermocline_routing": 1, "mdl": "m"})", "{}").find("mdl is no key"), std::string::npos);
}

TEST_F(ProfileFile, ProfilesOfOneModelAreMerged) {
    const auto rows = random_rows(60);
    const std::vector first(rows.begin(), rows.begin() + 20), second(rows.begin() + 20, rows.end());
    RoutingProfile merged = profile_of(trace_of(first));
    merge(merged, profile_of(trace_of(second)));
    merge(merged, profile_of(trace_of(second, "code")));
    const RoutingProfile whole = profile_of(trace_of(rows));
    ASSERT_EQ(merged.classes.size(), 2u);
    EXPECT_EQ(merged.classes[0].decode.rows, 60);
    EXPECT_EQ(merged.classes[0].decode.chosen, whole.classes[0].decode.chosen);
    for (size_t e = 0; e < kExperts; ++e)  // as if the second had come after the first
        EXPECT_NEAR(merged.classes[0].decode.recent[1][e], whole.classes[0].decode.recent[1][e], 1e-9);
    EXPECT_EQ(merged.classes[1].name, "code");
    const double a = profile_of(trace_of(first)).classes[0].decode.working_set.at[3].lru,
                 b = profile_of(trace_of(second)).classes[0].decode.working_set.at[3].lru;
    EXPECT_NEAR(merged.classes[0].decode.working_set.at[3].lru, (a * 10 + b * 20) / 30, 1e-12);

    RoutingProfile other = whole;
    other.model = "another";
    EXPECT_THROW(merge(merged, other), Error);
    other = whole;
    other.layers[1].experts = 8;
    EXPECT_THROW(merge(merged, other), Error);
}

TEST(RoutingWatch, CountsAndKeepsWhatPassesChose) {
    RoutingWatch watch("m", {{4, 2}});
    watch.keep();
    watch.record()->ids = {{0, 1, 1, 2, 3, 0}};
    const std::vector<int32_t> prompt = {1, 2}, token = {3};
    const Part parts[] = {{nullptr, prompt, 1}, {nullptr, token, 1}};
    watch.set_kind("code");
    watch.passed(parts, {.choices = 6, .hits = 2});
    const RoutingWatch::Counts counts = watch.counts();
    EXPECT_EQ(counts.rows, 3);
    EXPECT_EQ(counts.residency.hits, 2);
    EXPECT_EQ(counts.chosen[0], (std::vector<int64_t>{2, 2, 1, 1}));
    const RoutingTrace& trace = watch.trace();
    ASSERT_EQ(trace.passes.size(), 2u);
    EXPECT_FALSE(trace.passes[0].decode);
    EXPECT_EQ(trace.passes[0].ids[0], (std::vector<int32_t>{0, 1, 1, 2}));
    EXPECT_TRUE(trace.passes[1].decode);
    EXPECT_EQ(trace.passes[1].ids[0], (std::vector<int32_t>{3, 0}));
    EXPECT_EQ(trace.passes[1].kind, "code");
    RoutingWatch none("dense", {});
    EXPECT_THROW(none.keep(), Error);
    EXPECT_THROW(watch.write_to("/no/such/folder/trace"), Error);
}

}  // namespace
}  // namespace thermocline::scheduler
