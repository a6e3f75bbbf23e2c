// The engine and the oracle against HF transformers in float32: tests/golden/hf-tiny, made by
// scripts/make_hf_vectors.py and saved by HF under HF's own tensor names.
#include "src/base/file.h"
#include "tests/model/engine_fixture.h"
#include "tests/oracle.h"

#include <cmath>
#include <gtest/gtest.h>

namespace thermocline {
namespace {

const std::string kDirectory = std::string(THERMOCLINE_SOURCE_DIR) + "/tests/golden/hf-tiny";

struct HfVectors {
    Json expected = parse_json(read_text(kDirectory + "/expected.json"), "expected.json");
    std::vector<int32_t> tokens = expected["tokens"].get<std::vector<int32_t>>();
    std::unique_ptr<model::Model> model = model::load_model(
        kDirectory, {.kv_cache = model::KvCacheDtype::kF32, .activations = model::Activations::kBf16});

    double logits_deviation(const Logits& logits) const {
        double largest = 0;
        for (const auto& [position, values] : expected["logits"].items())
            largest = std::max(largest, difference(logits[std::stoul(position)], values.get<std::vector<double>>()));
        return largest;
    }
    double logprobs_deviation(const Logits& logits) const {
        double largest = 0;
        for (size_t i = 0; i + 1 < tokens.size(); ++i) {
            double sum = 0;
            for (const float logit : logits[i]) sum += std::exp(static_cast<double>(logit));
            const double logprob = logits[i][static_cast<size_t>(tokens[i + 1])] - std::log(sum);
            largest = std::max(largest, std::abs(logprob - expected["logprobs"][i].get<double>()));
        }
        return largest;
    }
    int64_t argmax_mismatches(const Logits& logits) const {
        int64_t count = 0;
        for (size_t i = 0; i < logits.size(); ++i) count += argmax(logits[i]) != expected["argmax"][i].get<int64_t>();
        return count;
    }
};

TEST(HfVectors, EngineMatchesHfTransformers) {
    const HfVectors hf;
    for (const std::string& tier : available_tiers()) {
        for (const int64_t chunk : {int64_t{1}, int64_t{50}, static_cast<int64_t>(hf.tokens.size())}) {
            SCOPED_TRACE(tier + ", chunk " + std::to_string(chunk));
            Engine engine(*hf.model, tier.c_str());
            const auto sequence = engine.new_sequence();
            const Logits logits = engine.feed(*sequence, hf.tokens, chunk);
            EXPECT_LT(hf.logits_deviation(logits), 1e-4);
            EXPECT_LT(hf.logprobs_deviation(logits), 1e-4);
            EXPECT_EQ(hf.argmax_mismatches(logits), 0);
        }
    }
}

TEST(HfVectors, OracleMatchesHfTransformers) {
    const HfVectors hf;
    const ops::Plan& plan = hf.model->trunk;
    oracle::OracleState state(plan);
    oracle::OracleSequences sequences = {&state};
    const oracle::OracleBatch batch(sequences, {hf.tokens}, static_cast<int32_t>(hf.tokens.size()));
    oracle::OracleSlots slots = oracle::make_slots(plan, batch.view());
    oracle::oracle_run(plan, batch.view(), sequences, slots);
    Logits logits;
    const auto& flat = slots[static_cast<size_t>(plan.logits)];
    for (auto at = flat.begin(); at != flat.end(); at += plan.vocab) logits.emplace_back(at, at + plan.vocab);
    EXPECT_LT(hf.logits_deviation(logits), 1e-5);
    EXPECT_LT(hf.logprobs_deviation(logits), 1e-5);
    EXPECT_EQ(hf.argmax_mismatches(logits), 0);
}

}  // namespace
}  // namespace thermocline
