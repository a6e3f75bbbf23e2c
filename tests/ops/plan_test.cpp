// Plans: what verify() accepts and refuses, how they print, what they cost.
#include "src/ops/plan.h"

#include "src/base/error.h"
#include "src/ops/cost.h"

#include <algorithm>
#include <functional>
#include <gtest/gtest.h>
#include <string>

namespace thermocline::ops {
namespace {

quant::Matrix f32(int64_t rows, int64_t cols) {
    quant::Matrix matrix;
    matrix.rows = rows;
    matrix.cols = cols;
    matrix.row_bytes = 4 * cols;
    return matrix;
}

/// Embedding, one window attention layer without projections, a routed layer and a head: every step fits.
Plan small_plan() {
    Plan plan;
    plan.name = "trunk";
    plan.vocab = 10;
    plan.slots = {{"x", 8, Rows::kTokens},    {"kv", 4, Rows::kTokens},    {"o", 8, Rows::kTokens},
                  {"gate", 3, Rows::kTokens}, {"ids", 2, Rows::kTokens},   {"weights", 2, Rows::kTokens},
                  {"y", 8, Rows::kTokens},    {"last", 8, Rows::kOutputs}, {"logits", 10, Rows::kOutputs}};
    plan.matrices = {{"embed", f32(10, 8)}, {"wkv", f32(4, 8)}, {"gate", f32(3, 8)}, {"head", f32(10, 8)}};
    plan.vectors = {{"norm.weight", std::vector<float>(8, 1.0f)}, {"attn_sink", {0.0f, 0.0f}}, {"bias", {0, 0, 0}}};
    plan.experts = {{"experts",
                     8,
                     5,
                     {f32(5, 8), f32(5, 8), f32(5, 8)},
                     {f32(8, 5), f32(8, 5), f32(8, 5)},
                     {f32(5, 8), f32(5, 8), f32(5, 8)}}};
    plan.ropes = {{{1.0f}}};
    plan.caches = {{.name = "window",
                    .kind = CacheSpec::Kind::kRing,
                    .format = quant::KvFormat::kF32,
                    .width = 4,
                    .ring_rows = 20,
                    .history = 15}};
    plan.steps = {Embed{0, 0, 1},
                  RmsNorm{0, 0, 0, 8, 1e-6f},
                  Linear{0, 1, 1},
                  Rope{1, 4, 0, false},
                  Attention{.q = 0,
                            .kv = 1,
                            .window_cache = 0,
                            .entries = kNone,
                            .selection = kNone,
                            .sinks = 1,
                            .out = 2,
                            .heads = 2,
                            .width = 4,
                            .window = 16,
                            .ratio = 0,
                            .scale = 0.5f},
                  StoreWindow{1, 0, 4},
                  Linear{2, 2, 3},
                  Route{3, 2, kNone, 4, 5, 3, 2, 1.5f, true},
                  Experts{2, 4, 5, 0, 6, 2, 10.0f, InputRounding::kExact},
                  Add{0, 6, 1},
                  TakeRows{0, 7},
                  Linear{7, 3, 8}};
    plan.streams = 0;
    plan.logits = 8;
    return plan;
}

TEST(Plan, VerifyAcceptsAPlanThatFits) { EXPECT_NO_THROW(verify(small_plan())); }

struct Mistake {
    const char* step;  // that the message must name
    std::function<void(Plan&)> make;
};

TEST(Plan, VerifyNamesTheStepThatDoesNotFit) {
    const Mistake mistakes[] = {
        {"Embed", [](Plan& p) { std::get<Embed>(p.steps[0]).copies = 2; }},
        {"RmsNorm", [](Plan& p) { p.vectors[0].values.pop_back(); }},
        {"RmsNorm", [](Plan& p) { std::get<RmsNorm>(p.steps[1]).width = 0; }},
        {"Linear", [](Plan& p) { p.matrices[1].matrix.cols = 7; }},
        {"Linear", [](Plan& p) { std::get<Linear>(p.steps[2]).weight = 99; }},
        {"Linear", [](Plan& p) { std::get<Linear>(p.steps[2]).out = -1; }},
        {"Linear", [](Plan& p) { std::get<Linear>(p.steps[2]).groups = 3; }},
        {"Linear", [](Plan& p) { p.slots[8].rows = Rows::kTokens; }},
        {"Rope", [](Plan& p) { p.ropes[0].frequencies.resize(3); }},
        {"Rope", [](Plan& p) { std::get<Rope>(p.steps[3]).rope = 1; }},
        {"Attention", [](Plan& p) { p.caches[0].ring_rows = 15; }},
        {"Attention", [](Plan& p) { p.caches[0].kind = CacheSpec::Kind::kEntries; }},
        {"Attention", [](Plan& p) { p.vectors[1].values.push_back(0); }},
        {"StoreWindow", [](Plan& p) { std::get<StoreWindow>(p.steps[5]).window_cache = 3; }},
        {"Route", [](Plan& p) { std::get<Route>(p.steps[7]).top_k = 3; }},
        {"Route", [](Plan& p) { p.vectors[2].values.pop_back(); }},
        {"Experts", [](Plan& p) { p.experts[0].w2[1].cols = 4; }},
        {"Add", [](Plan& p) { std::get<Add>(p.steps[9]).repeat = 2; }},
        {"TakeRows", [](Plan& p) { std::get<TakeRows>(p.steps[10]).in = 7; }},
    };
    for (const Mistake& mistake : mistakes) {
        Plan plan = small_plan();
        mistake.make(plan);
        try {
            verify(plan);
            ADD_FAILURE() << "a wrong " << mistake.step << " was accepted";
        } catch (const Error& error) {
            EXPECT_NE(std::string(error.what()).find(mistake.step), std::string::npos) << error.what();
        }
    }
}

TEST(Plan, PrintsOneLinePerStep) {
    const Plan plan = small_plan();
    const std::string text = to_string(plan);
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), static_cast<std::ptrdiff_t>(plan.steps.size()) + 1);
    for (const Step& step : plan.steps) EXPECT_NE(text.find(step_name(step)), std::string::npos) << step_name(step);
    EXPECT_NE(text.find("wkv F32[4, 8]"), std::string::npos) << text;
}

TEST(Plan, CostCountsWeightsAndCacheRows) {
    const Plan plan = small_plan();
    const int32_t tokens[] = {1};
    const int64_t positions[] = {30};
    const Segment segments[] = {{0, 1, 30, nullptr}};
    const int32_t outputs[] = {0};
    const Batch batch{tokens, positions, segments, outputs};
    EXPECT_EQ(step_cost(plan, plan.steps[2], batch).bytes, 4 * 8 * 4);  // wkv
    EXPECT_EQ(step_cost(plan, plan.steps[2], batch).flops, 2 * 4 * 8);
    EXPECT_EQ(step_cost(plan, plan.steps[4], batch).bytes, 16 * 4 * 4);         // a full window
    EXPECT_EQ(step_cost(plan, plan.steps[8], batch).bytes, 2 * 3 * 5 * 8 * 4);  // two experts of three matrices
    EXPECT_EQ(plan_cost(plan, batch).bytes,
              8 * 4 + 4 * 8 * 4 + 16 * 4 * 4 + 3 * 8 * 4 + 2 * 3 * 5 * 8 * 4 + 10 * 8 * 4);
}

}  // namespace
}  // namespace thermocline::ops
