// The engine and the oracle against tests/golden/dsv4-tiny.json (deepseek-v4.md, appendix A): values computed in
// float64 by a program that was compared with the reference implementation.
#include "tests/model/engine_fixture.h"
#include "tests/model/tiny_model.h"
#include "tests/oracle.h"

#include <cmath>
#include <functional>
#include <gtest/gtest.h>
#include <span>

namespace thermocline {
namespace {

using model::KvCacheDtype;

constexpr int64_t kTokens = 300;
constexpr int64_t kMtpTokens = 200;

/// Largest deviation of `logits` from everything that the golden file records about them.
double logits_deviation(const Logits& logits, const Json& mode) {
    double largest = 0;
    for (const auto& [position, values] : mode["logits_full"].items())
        largest = std::max(largest, difference(logits[std::stoul(position)], values.get<std::vector<double>>()));
    for (size_t i = 0; i < logits.size(); ++i)
        largest = std::max(largest,
                           difference(std::span(logits[i]).first(2), mode["first2_all"][i].get<std::vector<double>>()));
    return largest;
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

/// Plays the whole test sequence on the oracle in one batch; `after` sees the slots after every step.
struct OracleRun {
    using After = std::function<void(size_t step, const oracle::OracleSlots& slots)>;

    oracle::OracleState state;
    oracle::OracleSlots slots;
    Logits logits;

    explicit OracleRun(const ops::Plan& plan, oracle::Bf16 bf16 = oracle::Bf16::kRound, const After& after = {})
        : state(plan) {
        oracle::OracleSequences sequences = {&state};
        const oracle::OracleBatch batch(sequences, {tiny::tokens(kTokens)}, kTokens);
        slots = oracle::make_slots(plan, batch.view());
        for (size_t i = 0; i < plan.steps.size(); ++i) {
            oracle::oracle_step(plan, plan.steps[i], batch.view(), sequences, slots, bf16);
            if (after) after(i, slots);
        }
        const auto& flat = slots[static_cast<size_t>(plan.logits)];
        for (int64_t i = 0; i < kTokens; ++i)
            logits.emplace_back(flat.begin() + i * plan.vocab, flat.begin() + (i + 1) * plan.vocab);
    }
};

TEST(Dsv4Golden, OracleMatchesPlain) {
    const OracleRun run(tiny_model(KvCacheDtype::kF32).trunk);
    EXPECT_LT(logits_deviation(run.logits, tiny::golden()["plain"]), 2e-5);  // float32 weights and angles
    EXPECT_EQ(argmax_mismatches(run.logits, tiny::golden()["plain"]), 0);
}

// The golden values keep rotary channels and residual streams exact; with that, the oracle must meet them closely
// although the mode is discontinuous.
TEST(Dsv4Golden, OracleMatchesFakeQuantised) {
    const OracleRun run(tiny_model(KvCacheDtype::kFp8).trunk, oracle::Bf16::kExact);
    EXPECT_LT(logits_deviation(run.logits, tiny::golden()["fakequant"]), 1e-2);
    EXPECT_EQ(argmax_mismatches(run.logits, tiny::golden()["fakequant"]), 0);
}

}  // namespace
}  // namespace thermocline
