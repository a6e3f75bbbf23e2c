// The engine and the oracle against tests/golden/dsv4-tiny.json (deepseek-v4.md, appendix A): values computed in
// float64 by a program that was compared with the reference implementation.
#include "tests/model/engine_fixture.h"
#include "tests/model/tiny_model.h"
#include "tests/oracle.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <gtest/gtest.h>
#include <map>
#include <span>

namespace thermocline {
namespace {

using model::KvCacheDtype;

constexpr int64_t kTokens = 300;
constexpr int64_t kMtpTokens = 200;

/// By position: largest deviation of `logits` from everything that the golden file records about them.
std::vector<double> logits_deviations(const Logits& logits, const Json& mode) {
    std::vector<double> largest;
    for (size_t i = 0; i < logits.size(); ++i)
        largest.push_back(difference(std::span(logits[i]).first(2), mode["first2_all"][i].get<std::vector<double>>()));
    for (const auto& [position, values] : mode["logits_full"].items()) {
        double& at = largest[std::stoul(position)];
        at = std::max(at, difference(logits[std::stoul(position)], values.get<std::vector<double>>()));
    }
    return largest;
}

double logits_deviation(const Logits& logits, const Json& mode) {
    return std::ranges::max(logits_deviations(logits, mode));
}

int64_t argmax_mismatches(const Logits& logits, const Json& mode) {
    int64_t count = 0;
    for (size_t i = 0; i < logits.size(); ++i) count += argmax(logits[i]) != mode["argmax_all"][i].get<int64_t>();
    return count;
}

TEST(Dsv4Golden, PlainLogitsOnEveryTier) {
    const Json& plain = tiny::golden()["plain"];
    for (const std::string& tier : available_tiers()) {
        SCOPED_TRACE(tier);
        Engine engine(tiny_model(KvCacheDtype::kF32), tier.c_str());
        const auto sequence = engine.new_sequence();
        const Logits logits = engine.feed(*sequence, tiny::tokens(kTokens), kTokens);
        const double deviation = logits_deviation(logits, plain);
        RecordProperty("largest_deviation_" + tier, std::to_string(deviation));
        EXPECT_LT(deviation, 1e-4);
        EXPECT_EQ(argmax_mismatches(logits, plain), 0);
    }
}

TEST(Dsv4Golden, PlainLogitsByDecoding) {
    Engine& engine = tiny_engine(KvCacheDtype::kF32);
    const auto sequence = engine.new_sequence();
    const Logits logits = engine.feed(*sequence, tiny::tokens(kTokens), 1);
    EXPECT_LT(logits_deviation(logits, tiny::golden()["plain"]), 1e-4);
    EXPECT_EQ(argmax_mismatches(logits, tiny::golden()["plain"]), 0);
}

// Here and there a number lies between two codes to within float32, and becomes either one by the order of its sums.
// Where: the golden's own float64 program, its weights perturbed by a relative 6e-8, first differs at position 192 or
// not at all; our scalar kernels, gains of norms perturbed by at most two units, 200 times, first at 69 (32 times), 84
// (10), 109 (6), 128 (2), 192 (34) or 23 (5), else at the last one, by 1.1e-4, or not; with 16 lanes they do at 109.
// Behind the first logits differ by less than 1e-2, at position 204 by 0.0616.
TEST(Dsv4Golden, FakeQuantisedLogits) {
    constexpr size_t kTies[] = {69, 84, 109, 128, 192, kTokens - 1, kTokens}, kFarthest = 204;
    const Json& fakequant = tiny::golden()["fakequant"];
    for (const std::string& tier : available_tiers()) {
        SCOPED_TRACE(tier);
        Engine engine(tiny_model(KvCacheDtype::kFp8F32), tier.c_str());
        for (const int64_t chunk : {kTokens, int64_t{1}}) {
            const auto sequence = engine.new_sequence();
            const Logits logits = engine.feed(*sequence, tiny::tokens(kTokens), chunk);
            EXPECT_EQ(argmax_mismatches(logits, fakequant), 0);
            const std::vector<double> deviations = logits_deviations(logits, fakequant);
            const auto tie = static_cast<size_t>(
                std::ranges::find_if(deviations, [](double d) { return !(d < 1e-4); }) - deviations.begin());
            EXPECT_NE(std::ranges::find(kTies, tie), std::end(kTies)) << "position " << tie;
            for (size_t i = tie; i < kTokens; ++i)
                EXPECT_LT(deviations[i], i == kFarthest ? 0.07 : 1e-2) << "position " << i;
        }
    }
}

TEST(Dsv4Golden, PlainStreams) {
    Engine& engine = tiny_engine(KvCacheDtype::kF32);
    const auto sequence = engine.new_sequence();
    engine.feed(*sequence, tiny::tokens(kTokens), kTokens);
    const int64_t width = engine.trunk.plan().slots[static_cast<size_t>(engine.trunk.plan().streams)].cols / 4;
    for (const auto& [position, values] : tiny::golden()["plain"]["streams_after_last_layer_first2_each"].items()) {
        const float* streams = engine.trunk.streams(std::stol(position));
        for (size_t i = 0; i < 8; ++i)
            EXPECT_NEAR(streams[static_cast<int64_t>(i / 2) * width + static_cast<int64_t>(i % 2)],
                        values[i].get<double>(), 1e-4)
                << "position " << position << " number " << i;
    }
}

/// MTP fed with (h_p, T[p + 1]) in chunks of `chunk`, then one step on its own streams (2.10).
void expect_mtp(Engine& engine, int64_t chunk) {
    const Json& plain = tiny::golden()["plain"];
    const std::vector<int32_t> tokens = tiny::tokens(kTokens);
    const auto trunk = engine.new_sequence();
    engine.feed(*trunk, std::span(tokens).first(kMtpTokens), kMtpTokens);
    ASSERT_TRUE(engine.mtp);
    const auto drafter = engine.mtp->new_sequence();
    ASSERT_TRUE(drafter->reserve(kMtpTokens + 1));

    double largest = 0;
    for (int64_t p = 0; p < kMtpTokens; p += chunk) {
        const int64_t rows = std::min(chunk, kMtpTokens - p);
        const scheduler::Part parts[] = {
            {drafter.get(), std::span(tokens).subspan(static_cast<size_t>(p) + 1, static_cast<size_t>(rows)),
             static_cast<int32_t>(rows)}};
        engine.mtp->forward(parts, engine.trunk.streams(p));
        for (int64_t i = 0; i < rows; ++i) {
            const std::span logits(engine.mtp->logits(i), static_cast<size_t>(engine.mtp->plan().vocab));
            const auto index = static_cast<size_t>(p + i);
            EXPECT_EQ(argmax(logits), plain["mtp"]["argmax"][index].get<int64_t>()) << "position " << index;
            largest = std::max(largest,
                               difference(logits.first(2), plain["mtp"]["first2"][index].get<std::vector<double>>()));
        }
    }
    EXPECT_LT(largest, 1e-4);

    const Json& recursion = plain["mtp_recursion_after_199"];
    const int32_t token[] = {recursion["fed_token"].get<int32_t>()};
    const float* own = engine.mtp->streams((kMtpTokens - 1) % chunk);
    const int64_t width = engine.mtp->plan().slots[static_cast<size_t>(engine.mtp->plan().streams)].cols;
    const std::vector<float> streams(own, own + width);
    const scheduler::Part parts[] = {{drafter.get(), token, 1}};
    engine.mtp->forward(parts, streams.data());
    const std::span logits(engine.mtp->logits(0), static_cast<size_t>(engine.mtp->plan().vocab));
    EXPECT_EQ(argmax(logits), recursion["argmax"].get<int64_t>());
    EXPECT_LT(difference(logits.first(4), recursion["first4"].get<std::vector<double>>()), 1e-4);
}

TEST(Dsv4Golden, PlainMtpAndItsRecursion) {
    expect_mtp(tiny_engine(KvCacheDtype::kF32), kMtpTokens);
    expect_mtp(tiny_engine(KvCacheDtype::kF32), 1);
    expect_mtp(tiny_engine(KvCacheDtype::kF32), 7);
}

// ---- the oracle ---------------------------------------------------------------------------------------------------

/// Plays the whole test sequence on the oracle in one batch; `after` sees the state and slots after every step.
struct OracleRun {
    using After = std::function<void(const oracle::OracleState&, size_t step, const oracle::OracleSlots&)>;

    oracle::OracleState state;
    oracle::OracleSlots slots;
    Logits logits;

    explicit OracleRun(const ops::Plan& plan, const After& after = {}) : state(plan) {
        oracle::OracleSequences sequences = {&state};
        const oracle::OracleBatch batch(sequences, {tiny::tokens(kTokens)}, kTokens);
        slots = oracle::make_slots(plan, batch.view());
        for (size_t i = 0; i < plan.steps.size(); ++i) {
            oracle::oracle_step(plan, plan.steps[i], batch.view(), sequences, slots);
            if (after) after(state, i, slots);
        }
        const auto& flat = slots[static_cast<size_t>(plan.logits)];
        for (int64_t i = 0; i < kTokens; ++i)
            logits.emplace_back(flat.begin() + i * plan.vocab, flat.begin() + (i + 1) * plan.vocab);
    }
};

TEST(Dsv4Golden, OracleMatchesPlain) {
    const OracleRun run(tiny_model(KvCacheDtype::kF32).trunk);
    EXPECT_LT(logits_deviation(run.logits, tiny::golden()["plain"]),
              4e-6);  // float32 weights and angles; 19 Sinkhorn rounds: 8e-6
    EXPECT_EQ(argmax_mismatches(run.logits, tiny::golden()["plain"]), 0);
}

TEST(Dsv4Golden, OracleMatchesFakeQuantised) {
    const OracleRun run(tiny_model(KvCacheDtype::kFp8F32).trunk);
    EXPECT_LT(logits_deviation(run.logits, tiny::golden()["fakequant"]), 1e-2);
    EXPECT_EQ(argmax_mismatches(run.logits, tiny::golden()["fakequant"]), 0);
}

// Values inside the layers, which only the oracle can show; the engine's steps are compared with the oracle's one by
// one in steps_test.cpp.
struct Intermediates {
    std::map<int, std::vector<double>> attention;  // by layer: [tokens, hidden]
    std::map<int, std::vector<double>> ids, weights, selection;
    std::map<int, std::vector<std::vector<double>>> index_scores;  // [token][entry]
    std::vector<double> first_post_comb, first_x;

    void after(const ops::Plan& plan, const oracle::OracleState& state, size_t index,
               const oracle::OracleSlots& slots) {
        const auto slot = [&](ops::Slot id) { return slots[static_cast<size_t>(id)]; };
        int layer = -1;
        if (const auto* s = std::get_if<ops::Linear>(&plan.steps[index])) {
            const std::string& name = plan.matrices[static_cast<size_t>(s->weight)].name;
            if (name.ends_with(".attn.wo_b") && std::sscanf(name.c_str(), "layers.%d.", &layer) == 1)
                attention[layer] = slot(s->out);
        } else if (const auto* r = std::get_if<ops::Route>(&plan.steps[index])) {
            layer = static_cast<int>(ids.size());
            ids[layer] = slot(r->ids);
            weights[layer] = slot(r->weights);
        } else if (const auto* e = std::get_if<ops::SelectEntries>(&plan.steps[index])) {
            std::sscanf(plan.caches[static_cast<size_t>(e->keys)].name.c_str(), "layers.%d.", &layer);
            selection[layer] = slot(e->selection);
            index_scores[layer] = scores(*e, state.caches[static_cast<size_t>(e->keys)], slot(e->q), slot(e->gates));
        } else if (const auto* h = std::get_if<ops::HyperIn>(&plan.steps[index]); h != nullptr && first_x.empty()) {
            first_post_comb = slot(h->post_comb);
            first_x = slot(h->x);
        }
    }

    static std::vector<std::vector<double>> scores(const ops::SelectEntries& s, const oracle::History& keys,
                                                   const std::vector<double>& q, const std::vector<double>& gates) {
        std::vector<std::vector<double>> all(kTokens);
        const double scale = 1 / std::sqrt(static_cast<double>(s.width) * s.heads);
        for (size_t t = 0; t < kTokens; ++t) {
            for (size_t w = 0; w < (t + 1) / static_cast<size_t>(s.ratio); ++w) {
                double score = 0;
                for (size_t h = 0; h < static_cast<size_t>(s.heads); ++h) {
                    const size_t row = t * static_cast<size_t>(s.heads) + h;
                    double product = 0;
                    for (size_t c = 0; c < keys[w].size(); ++c) product += q[row * keys[w].size() + c] * keys[w][c];
                    score += gates[row] * std::max(product, 0.0) * scale;
                }
                all[t].push_back(score);
            }
        }
        return all;
    }
};

void expect_near(std::span<const double> found, const Json& expected, double tolerance, const std::string& what) {
    ASSERT_GE(found.size(), expected.size()) << what;
    for (size_t i = 0; i < expected.size(); ++i)
        EXPECT_NEAR(found[i], expected[i].get<double>(), tolerance) << what << " [" << i << "]";
}

void expect_intermediates(KvCacheDtype format, const Json& mode, double tolerance) {
    const ops::Plan& plan = tiny_model(format).trunk;
    Intermediates seen;
    const OracleRun run(plan, [&](const oracle::OracleState& state, size_t step, const oracle::OracleSlots& slots) {
        seen.after(plan, state, step, slots);
    });
    const auto row = [](const std::vector<double>& slot, int position) {
        const size_t cols = slot.size() / kTokens;
        return std::span(slot).subspan(static_cast<size_t>(position) * cols, cols);
    };
    int layer = 0, position = 0;
    for (const auto& [key, values] : mode["attn_out_first4"].items()) {
        ASSERT_EQ(std::sscanf(key.c_str(), "layer %d pos %d", &layer, &position), 2);
        expect_near(row(seen.attention[layer], position), values, tolerance, "attention " + key);
    }
    for (const auto& [key, routing] : mode["routing"].items()) {
        ASSERT_EQ(std::sscanf(key.c_str(), "layers.%d. pos %d", &layer, &position), 2);
        expect_near(row(seen.ids[layer], position), routing["ids"], 0, "expert ids " + key);
        expect_near(row(seen.weights[layer], position), routing["weights"], tolerance, "expert weights " + key);
    }
    for (const auto& [key, indexer] : mode["indexer"].items()) {
        ASSERT_EQ(std::sscanf(key.c_str(), "layers.%d. pos %d", &layer, &position), 2);
        const auto chosen = row(seen.selection[layer], position);
        EXPECT_EQ(chosen[0], static_cast<double>(indexer["selected"].size()));
        expect_near(chosen.subspan(1), indexer["selected"], 0, "selection " + key);
        expect_near(seen.index_scores[layer][static_cast<size_t>(position)], indexer["scores_first12"], tolerance,
                    "index scores " + key);
    }
    for (const auto& [key, values] : mode["entries_first4_last4"].items()) {
        char kind[16] = {};
        int entry = 0;
        ASSERT_EQ(std::sscanf(key.c_str(), "layer%d %15s %d", &layer, kind, &entry), 3);
        const std::string compressor = std::string(kind) == "main" ? ".attn.compressor" : ".attn.indexer.compressor";
        const std::string name = "layers." + std::to_string(layer) + compressor + ".entries";
        for (size_t i = 0; i < plan.caches.size(); ++i) {
            if (plan.caches[i].name != name) continue;
            const std::vector<double>& e = run.state.caches[i].at(static_cast<size_t>(entry));
            std::vector<double> ends(e.begin(), e.begin() + 4);
            ends.insert(ends.end(), e.end() - 4, e.end());
            expect_near(ends, values, tolerance, "entry " + key);
        }
    }
    const Json& hyper = tiny::golden()["hc_layer0_pos0"];
    expect_near(std::span(seen.first_post_comb).first(4), hyper["post"], 1e-6, "post");
    expect_near(std::span(seen.first_post_comb).subspan(4, 16), hyper["comb_rowmajor"], 1e-6, "comb");
    expect_near(std::span(seen.first_x).first(4), hyper["x_first4"], 1e-6, "x");
}

TEST(Dsv4Golden, OracleIntermediatesPlain) { expect_intermediates(KvCacheDtype::kF32, tiny::golden()["plain"], 1e-5); }

TEST(Dsv4Golden, OracleIntermediatesFakeQuantised) {
    expect_intermediates(KvCacheDtype::kFp8F32, tiny::golden()["fakequant"], 1e-3);
}

// Rounded caches make the model discontinuous: a float32 engine sometimes rounds to the neighbouring code, now and then
// that changes a selected entry or expert, and the positions that depend on it differ by tenths. So half of the
// positions must agree closely and nine of ten roughly; steps_test.cpp compares these formats step by step.
void expect_agrees_with_oracle(KvCacheDtype format, double half, double most) {
    Engine& engine = tiny_engine(format);
    const auto sequence = engine.new_sequence();
    const Logits logits = engine.feed(*sequence, tiny::tokens(kTokens), kTokens);
    const OracleRun run(tiny_model(format).trunk);
    std::vector<double> deviations;
    for (size_t i = 0; i < kTokens; ++i)
        deviations.push_back(difference(logits[i], std::vector<double>(run.logits[i].begin(), run.logits[i].end())));
    std::sort(deviations.begin(), deviations.end());
    testing::Test::RecordProperty("median", std::to_string(deviations[kTokens / 2]));
    testing::Test::RecordProperty("ninth_decile", std::to_string(deviations[kTokens * 9 / 10]));
    EXPECT_LT(deviations[kTokens / 2], half);
    EXPECT_LT(deviations[kTokens * 9 / 10], most);
}

TEST(Dsv4Golden, EngineAgreesWithOracleBf16Cache) { expect_agrees_with_oracle(KvCacheDtype::kBf16, 0.05, 0.3); }

TEST(Dsv4Golden, EngineAgreesWithOracleFp8Cache) { expect_agrees_with_oracle(KvCacheDtype::kFp8, 0.1, 0.3); }

}  // namespace
}  // namespace thermocline
