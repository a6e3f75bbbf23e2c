// Routing for benchmarks: what is drawn, what a trace says, and which traces are refused.
#include "src/app/routing.h"

#include "scheduler/routing_trace.h"
#include "src/base/error.h"
#include "src/base/json.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <set>

namespace thermocline::app {
namespace {

constexpr int32_t kExperts = 32, kTopK = 4, kVocab = 4000;

/// Two layers with nothing but their routers.
ops::Plan plan_of(int32_t experts = kExperts) {
    ops::Plan plan;
    plan.vocab = kVocab;
    for (int i = 0; i < 2; ++i)
        plan.steps.push_back(ops::Route{0, ops::kNone, ops::kNone, 1, 2, experts, kTopK, 1.0f, true});
    return plan;
}

const std::vector<int32_t>& table_of(const ops::Plan& plan, size_t layer) {
    return plan.tables.at(static_cast<size_t>(std::get<ops::Route>(plan.steps[layer]).table)).values;
}

/// How often each expert is named, most often first, and which that is.
struct Counts {
    std::vector<int64_t> sorted;
    int32_t first = 0;
    explicit Counts(const std::vector<int32_t>& ids) : sorted(kExperts) {
        for (const int32_t id : ids) ++sorted[static_cast<size_t>(id)];
        first = static_cast<int32_t>(std::max_element(sorted.begin(), sorted.end()) - sorted.begin());
        std::sort(sorted.begin(), sorted.end(), std::greater<>());
    }
};

TEST(Routing, DrawsDifferentExpertsInARow) {
    for (const char* text : {"uniform", "zipf", "zipf:4"}) {
        ops::Plan plan = plan_of();
        const RoutedTokens tokens = Routing(text).apply(plan, "m", 3);
        EXPECT_TRUE(tokens.prompt.empty() && tokens.generated.empty());
        const std::vector<int32_t>& ids = table_of(plan, 1);
        ASSERT_EQ(ids.size(), size_t{kVocab} * kTopK);
        for (auto it = ids.begin(); it != ids.end(); it += kTopK) {
            const std::set<int32_t> row(it, it + kTopK);
            ASSERT_EQ(row.size(), size_t{kTopK}) << text;
            ASSERT_TRUE(*row.begin() >= 0 && *row.rbegin() < kExperts) << text;
        }
    }
}

TEST(Routing, DrawsTheDistributionThatIsNamed) {
    ops::Plan uniform = plan_of(), zipf = plan_of(), again = plan_of(), other = plan_of();
    Routing("uniform").apply(uniform, "m", 3);
    Routing("zipf:1").apply(zipf, "m", 3);
    Routing("zipf").apply(again, "m", 3);
    Routing("zipf").apply(other, "m", 4);
    const Counts even(table_of(uniform, 0)), skewed(table_of(zipf, 0));
    const double mean = double{kVocab} * kTopK / kExperts;
    EXPECT_LT(static_cast<double>(even.sorted.front()), 1.25 * mean);
    EXPECT_GT(static_cast<double>(even.sorted.back()), 0.75 * mean);
    // Without replacement the likeliest is in most rows, but not four times the mean's share of 1 / H(32) = 0.246.
    EXPECT_GT(static_cast<double>(skewed.sorted.front()), 0.6 * kVocab);
    EXPECT_LT(static_cast<double>(skewed.sorted.back()), 0.5 * mean);
    EXPECT_TRUE(std::is_sorted(skewed.sorted.rbegin(), skewed.sorted.rend()));
    // Every layer has an order of its own; the seed says it all.
    EXPECT_NE(skewed.first, Counts(table_of(zipf, 1)).first);
    EXPECT_EQ(table_of(zipf, 0), table_of(again, 0));
    EXPECT_NE(table_of(zipf, 0), table_of(other, 0));
}

TEST(Routing, ModelLeavesThePlanAlone) {
    ops::Plan plan = plan_of();
    Routing("model").apply(plan, "m", 0);
    EXPECT_TRUE(plan.tables.empty());
    EXPECT_EQ(std::get<ops::Route>(plan.steps[0]).table, ops::kNone);
}

TEST(Routing, TextsThatAreNoneAreNamed) {
    for (const char* text : {"model", "uniform", "zipf", "zipf:0", "zipf:1.25"}) EXPECT_EQ(Routing::fault(text), "");
    for (const char* text : {"zipf:", "zipf:x", "zipf:-1", "zipf:99", "zipf:nan"})
        EXPECT_NE(Routing::fault(text).find("expected an exponent"), std::string::npos) << text;
    EXPECT_NE(Routing::fault("no-such-file").find("no such file"), std::string::npos);
}

class Trace : public testing::Test {
protected:
    std::string path_ = (std::filesystem::path(testing::TempDir()) / "routing_trace.jsonl").string();

    void write(const std::string& text) const { std::ofstream(path_, std::ios::binary) << text; }
    std::string error(int32_t experts = kExperts) const {
        try {
            ops::Plan plan = plan_of(experts);
            Routing(path_).apply(plan, "served", 0);
        } catch (const Error& error) {
            return error.what();
        }
        return "(no error)";
    }
    /// Row t of layer l names experts l + t, l + t + 1, ...
    static std::vector<int32_t> row(int32_t layer, int32_t t) {
        std::vector<int32_t> ids;
        for (int32_t k = 0; k < kTopK; ++k) ids.push_back((layer + t + k) % kExperts);
        return ids;
    }
    static scheduler::RoutingRecord pass(int32_t first, int32_t rows) {
        scheduler::RoutingRecord record;
        for (int32_t layer = 0; layer < 2; ++layer) {
            record.ids.emplace_back();
            for (int32_t t = first; t < first + rows; ++t)
                for (const int32_t id : row(layer, t)) record.ids.back().push_back(id);
        }
        return record;
    }
    void record() const {
        scheduler::RoutingTraceWriter writer(path_, "recorded", scheduler::routed_layers(plan_of()));
        writer.add(pass(0, 5), 0, 5, false);
        writer.add(pass(5, 1), 0, 1, true);
        writer.add(pass(6, 1), 0, 1, true);
        writer.close();
    }
};

TEST_F(Trace, IsReplayedRowByRow) {
    record();
    ops::Plan plan = plan_of();
    const RoutedTokens tokens = Routing(path_).apply(plan, "served", 0);
    EXPECT_EQ(tokens.prompt, (std::vector<int32_t>{0, 1, 2, 3, 4}));
    EXPECT_EQ(tokens.generated, (std::vector<int32_t>{5, 6}));
    for (int32_t layer = 0; layer < 2; ++layer)
        for (int32_t t = 0; t < 7; ++t)
            for (size_t k = 0; k < kTopK; ++k)
                EXPECT_EQ(table_of(plan, static_cast<size_t>(layer))[static_cast<size_t>(t) * kTopK + k],
                          row(layer, t)[k]);
}

TEST_F(Trace, OfAnotherShapeIsRefusedByNamingBoth) {
    record();
    const std::string text = error(64);
    EXPECT_NE(text.find("recorded from recorded (2 layers, 32 experts, top 4)"), std::string::npos) << text;
    EXPECT_NE(text.find("served has 2 layers, 64 experts, top 4"), std::string::npos) << text;
}

TEST_F(Trace, ThatIsDamagedIsRefusedByLine) {
    const std::string head = R"({"thermocline_routing": 1, "model": "m", "layers": [{"experts": 32, "top_k": 4},)"
                             R"({"experts": 32, "top_k": 4}]})"
                             "\n";
    const auto expect = [&](const std::string& text, const char* part) {
        write(text);
        EXPECT_NE(error().find(part), std::string::npos) << part << ": " << error();
        EXPECT_EQ(error().find('\n'), std::string::npos);
    };
    expect("", "holds no routing");
    expect(head, "holds no routing");
    expect("[1]\n", "line 1: expected \"thermocline_routing\": 1");
    expect(R"({"thermocline_routing": 2})", "expected \"thermocline_routing\": 1");
    expect(R"({"thermocline_routing": 1})", "line 1: layers is no list");
    expect(R"({"thermocline_routing": 1, "layers": 3, "model": "m"})", "line 1: layers is no list");
    expect(R"({"thermocline_routing": 1, "layers": 3, "model": 4})", "line 1: model is number, expected a text");
    expect(head + "{", "line 2: not valid JSON");
    expect(head + "[]", "line 2: is array");
    expect(head + R"({"phase": "sleep"})", "phase");
    expect(head + R"({"phase": "decode"})", "ids is no list of 2 layers");
    expect(head + R"({"phase": "decode", "ids": [[[1, 2, 3, 4]], 3]})", "layer 1: has not 1 rows");
    expect(head + R"({"phase": "decode", "ids": [[[1, 2, 3, 4]], [[1, 2, 3]]]})", "layer 1: a row has not 4 experts");
    expect(head + R"({"phase": "decode", "ids": [[[1, 2, 3, 32]], [[1, 2, 3, 4]]]})",
           "layer 0: expert 32, expected 0 to 31");
    expect(head + R"({"phase": "decode", "ids": [[[1, 2, 3, -1]], [[1, 2, 3, 4]]]})", "layer 0: expert -1");
    expect(head + R"({"phase": "decode", "ids": [[[1, 2, 3, 1]], [[1, 2, 3, 4]]]})", "names expert 1 twice");
}

}  // namespace
}  // namespace thermocline::app
