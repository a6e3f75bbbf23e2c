#include "src/engine/sampler.h"

#include "src/base/error.h"
#include "src/base/random.h"

#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <map>
#include <random>
#include <set>

namespace thermocline::engine {
namespace {

const std::vector<float> kLogits = {1.0f, 3.0f, 2.0f, 3.0f, -1.0f};

int32_t sample_one(const std::vector<float>& logits, const SamplingParams& params, uint64_t step = 0,
                   const std::vector<int32_t>& forbidden = {}) {
    Sampler sampler(static_cast<int64_t>(logits.size()), cpu::select_kernels("auto"));
    const TokenHistory history(static_cast<int64_t>(logits.size()));
    return sampler.sample(logits, params, history, {{}, forbidden}, step);
}

std::map<int32_t, int> histogram(const std::vector<float>& logits, const SamplingParams& params, int draws,
                                 const TokenHistory& history) {
    Sampler sampler(static_cast<int64_t>(logits.size()), cpu::select_kernels("auto"));
    std::map<int32_t, int> counts;
    for (int step = 0; step < draws; ++step)
        ++counts[sampler.sample(logits, params, history, {}, static_cast<uint64_t>(step))];
    return counts;
}

std::map<int32_t, int> histogram(const std::vector<float>& logits, const SamplingParams& params, int draws) {
    return histogram(logits, params, draws, TokenHistory(static_cast<int64_t>(logits.size())));
}

std::set<int32_t> support(const std::vector<float>& logits, const SamplingParams& params) {
    std::set<int32_t> ids;
    for (const auto& [id, count] : histogram(logits, params, 2000)) ids.insert(id);
    return ids;
}

Token with_logprobs(const std::vector<float>& logits, int32_t id, int32_t top) {
    return Sampler(static_cast<int64_t>(logits.size()), cpu::select_kernels("auto")).with_logprobs(logits, id, top);
}

/// Greedy choice after `output` tokens of history.
int32_t greedy_after(std::vector<float> logits, SamplingParams params, const std::vector<int32_t>& prompt,
                     const std::vector<int32_t>& output) {
    params.temperature = 0;
    Sampler sampler(static_cast<int64_t>(logits.size()), cpu::select_kernels("auto"));
    TokenHistory history(static_cast<int64_t>(logits.size()));
    history.add_prompt(prompt);
    for (const int32_t id : output) history.add_output(id);
    return sampler.sample(logits, params, history, {}, 0);
}

/// The largest of `logits` as a card gives them.
struct Top {
    Top(const std::vector<float>& logits, float factor) {
        for (size_t id = 0; id < logits.size(); ++id) best.push_back({static_cast<int32_t>(id), logits[id]});
        std::sort(best.begin(), best.end(),
                  [](const auto& a, const auto& b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; });
        double sum = 0;
        for (const auto& one : best) sum += std::exp((double{one.logit} - best.front().logit) * factor);
        weights = static_cast<float>(sum * (1 + 1e-6));
        best.resize(std::min<size_t>(best.size(), ops::kTopLogits));
        is_all = best.size() == logits.size();
        std::reverse(best.begin(), best.end());  // any order
    }
    ops::TopLogits view() const { return {best, is_all, weights}; }
    std::vector<ops::TopLogit> best;
    float weights;
    bool is_all;
};

TEST(SamplerTop, DrawsWhatAllLogitsWouldHaveDrawn) {
    constexpr int64_t kVocab = 5000;
    std::mt19937 random(11);
    std::normal_distribution<float> normal;
    Sampler sampler(kVocab, cpu::select_kernels("auto"));
    struct Case {
        const char* name;
        SamplingParams params;
        bool seen = false, masked = false;
        int least = 0, tried = 0, drawn = 0;  // per cent of those tried that must do without the others
    };
    Case cases[] = {
        {.name = "greedy", .params = {.temperature = 0}, .least = 100},
        {.name = "greedy, penalties",
         .params = {.temperature = 0, .presence_penalty = 1, .frequency_penalty = 0.5f, .repetition_penalty = 1.3f},
         .seen = true,
         .least = 100},
        {.name = "greedy, mask", .params = {.temperature = 0}, .masked = true, .least = 100},
        {.name = "greedy, bias", .params = {.temperature = 0, .logit_bias = {{5, -3.0f}}}, .least = 100},
        {.name = "greedy, raised", .params = {.temperature = 0, .logit_bias = {{5, 3.0f}}}},
        {.name = "top_k", .params = {.temperature = 1.5f, .top_k = 40}, .least = 90},
        {.name = "top_k, top_p", .params = {.temperature = 0.7f, .top_p = 0.9f, .top_k = 20}, .least = 90},
        {.name = "min_p", .params = {.temperature = 0.8f, .min_p = 0.1f}, .least = 90},
        {.name = "min_p, mask", .params = {.temperature = 0.5f, .min_p = 0.2f}, .masked = true, .least = 90},
        {.name = "min_p, penalties",
         .params = {.temperature = 0.5f, .min_p = 0.2f, .repetition_penalty = 1.1f},
         .seen = true,
         .least = 90},
        {.name = "top_p", .params = {.temperature = 0.6f, .top_p = 0.95f}, .least = 90},
        {.name = "top_p, mask", .params = {.temperature = 0.6f, .top_p = 0.95f}, .masked = true},
        {.name = "top_p, min_p of a flat one",
         .params = {.temperature = 1.5f, .top_p = 0.9f, .min_p = 0.01f},
         .least = 1},
        {.name = "top_p, as many as there are", .params = {.temperature = 5.0f, .top_p = 0.9f, .top_k = 128}},
        {.name = "top_p of a flat one", .params = {.temperature = 5.0f, .top_p = 0.95f}},
        {.name = "plain", .params = {.temperature = 1.0f}},
    };
    for (int round = 0; round < 200; ++round) {
        std::vector<float> logits(kVocab);
        for (float& one : logits) one = std::round(normal(random) * 8) / 4;  // ties
        for (int i = 0; i < 30; ++i) logits[random() % kVocab] = 8 + normal(random) * 2;
        for (int i = 0; i < 30; ++i) logits[random() % kVocab] = -std::numeric_limits<float>::infinity();
        TokenHistory seen(kVocab);
        const TokenHistory nothing(kVocab);
        for (int i = 0; i < 200; ++i) seen.add_output(static_cast<int32_t>(random() % kVocab));
        for (int i = 0; i < 5; ++i)
            seen.add_output(static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin()));
        std::vector<uint64_t> mask((kVocab + 63) / 64);
        for (uint64_t& word : mask) word = uint64_t{random()} << 32 | random();
        for (Case& one : cases) {
            one.params.seed = static_cast<uint64_t>(round);
            const Top top(logits, one.params.temperature == 0 ? 1.0f : 1.0f / one.params.temperature);
            const TokenHistory& history = one.seen ? seen : nothing;
            const Choosable choosable{one.masked ? std::span<const uint64_t>(mask) : std::span<const uint64_t>(), {}};
            for (uint64_t step = 0; step < 5; ++step) {
                const auto drawn = sampler.sample(top.view(), one.params, history, choosable, step);
                ++one.tried;
                if (!drawn) continue;
                ++one.drawn;
                ASSERT_EQ(*drawn, sampler.sample(logits, one.params, history, choosable, step)) << one.name;
            }
        }
    }
    for (const Case& one : cases) {
        EXPECT_GE(100 * one.drawn, one.least * one.tried) << one.name << ": " << one.drawn << " of " << one.tried;
        if (one.least == 0) {
            EXPECT_EQ(one.drawn, 0) << one.name;
        }
        const bool flat = one.params.temperature > 4;  // nobody knows beforehand
        EXPECT_EQ(Sampler::may_need_all(one.params, one.masked), one.least == 0 && !flat) << one.name;
    }
}

TEST(SamplerTop, ASmallVocabularyIsThereAsAWhole) {
    const Top top(kLogits, 1.0f);
    Sampler sampler(std::ssize(kLogits), cpu::select_kernels("auto"));
    const TokenHistory history(std::ssize(kLogits));
    for (const SamplingParams& params : {SamplingParams{.temperature = 1.0f}, SamplingParams{.top_p = 0.7f},
                                         SamplingParams{.top_k = 4}, SamplingParams{.temperature = 0}})
        for (uint64_t step = 0; step < 100; ++step)
            EXPECT_EQ(sampler.sample(top.view(), params, history, {}, step),
                      sampler.sample(kLogits, params, history, {}, step));
}

TEST(Random, PhiloxGivesThePublishedVectors) {
    // Known-answer vectors of the authors' Random123 library, philox4x32-10.
    EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}), (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
    EXPECT_EQ(philox({~0u, ~0u, ~0u, ~0u}, {~0u, ~0u}),
              (std::array<uint32_t, 4>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
}

TEST(Random, UniformDependsOnSeedAndPositionAlone) {
    EXPECT_EQ(random_uniform(7, 3), random_uniform(7, 3));
    EXPECT_NE(random_uniform(7, 3), random_uniform(7, 4));
    EXPECT_NE(random_uniform(7, 3), random_uniform(8, 3));
    double sum = 0;
    for (uint64_t i = 0; i < 10000; ++i) {
        const double u = random_uniform(1, i);
        ASSERT_GE(u, 0.0);
        ASSERT_LT(u, 1.0);
        sum += u;
    }
    EXPECT_NEAR(sum / 10000, 0.5, 0.02);
}

TEST(Sampler, GreedyTakesTheLowestOfEqualIds) {
    SamplingParams params;
    params.temperature = 0;
    EXPECT_EQ(sample_one(kLogits, params), 1);
    params.temperature = 9e-6f;
    EXPECT_EQ(sample_one(kLogits, params), 1);
}

TEST(Sampler, GreedyIgnoresTruncationButNotBias) {
    SamplingParams params;
    params.temperature = 0;
    params.top_k = 1;
    params.top_p = 0.01f;
    params.min_p = 1.0f;
    params.logit_bias = {{4, 100.0f}};
    EXPECT_EQ(sample_one(kLogits, params), 4);
}

TEST(Sampler, DrawsTheSoftmaxDistribution) {
    for (const float temperature : {0.5f, 1.0f, 2.0f}) {
        SamplingParams params;
        params.temperature = temperature;
        params.seed = 42;
        const int draws = 20000;
        const auto counts = histogram(kLogits, params, draws);
        double total = 0, chi_square = 0;
        for (const float logit : kLogits) total += std::exp(logit / temperature);
        for (size_t id = 0; id < kLogits.size(); ++id) {
            const double expected = draws * std::exp(kLogits[id] / temperature) / total;
            const auto found = counts.find(static_cast<int32_t>(id));
            const double seen = found == counts.end() ? 0 : found->second;
            chi_square += (seen - expected) * (seen - expected) / expected;
        }
        EXPECT_LT(chi_square, 18.47) << "4 degrees of freedom, p = 0.001, temperature " << temperature;
    }
}

TEST(Sampler, SameSeedAndStepSameToken) {
    SamplingParams params;
    params.seed = 123;
    std::set<int32_t> seen;
    for (uint64_t step = 0; step < 50; ++step) {
        EXPECT_EQ(sample_one(kLogits, params, step), sample_one(kLogits, params, step));
        seen.insert(sample_one(kLogits, params, step));
    }
    EXPECT_GT(seen.size(), 1u);
}

TEST(Sampler, TopKKeepsTiesAtTheBorder) {
    SamplingParams params;
    params.top_k = 1;
    EXPECT_EQ(support(kLogits, params), (std::set<int32_t>{1, 3}));
    params.top_k = 3;
    EXPECT_EQ(support(kLogits, params), (std::set<int32_t>{1, 2, 3}));
    params.top_k = -1;
    params.temperature = 2;
    EXPECT_EQ(support(kLogits, params).size(), 5u);
}

TEST(Sampler, TopPKeepsTheSmallestSetThatReachesP) {
    const std::vector<float> logits = {std::log(0.1f), std::log(0.5f), std::log(0.3f), std::log(0.1f)};
    SamplingParams params;
    params.top_p = 0.49f;
    EXPECT_EQ(support(logits, params), (std::set<int32_t>{1}));
    params.top_p = 0.6f;
    EXPECT_EQ(support(logits, params), (std::set<int32_t>{1, 2}));
    params.top_p = 0.85f;
    EXPECT_EQ(support(logits, params), (std::set<int32_t>{0, 1, 2}));
    params.top_p = 1e-6f;
    EXPECT_EQ(support(logits, params), (std::set<int32_t>{1}));
}

TEST(Sampler, MinPIsRelativeToTheBestAfterTemperature) {
    const std::vector<float> logits = {std::log(0.6f), std::log(0.3f), std::log(0.1f)};
    SamplingParams params;
    params.min_p = 0.4f;
    EXPECT_EQ(support(logits, params), (std::set<int32_t>{0, 1}));
    params.temperature = 0.5f;  // squares the ratios: 0.25
    EXPECT_EQ(support(logits, params), (std::set<int32_t>{0}));
    params.min_p = 1.0f;
    EXPECT_EQ(support(logits, params), (std::set<int32_t>{0}));
}

TEST(Sampler, RepetitionPenaltyCountsPromptAndOutput) {
    SamplingParams params;
    params.repetition_penalty = 2.0f;
    EXPECT_EQ(greedy_after({4.0f, 3.0f}, params, {0}, {}), 1);
    EXPECT_EQ(greedy_after({4.0f, 3.0f}, params, {}, {0}), 1);
    EXPECT_EQ(greedy_after({-1.0f, -1.5f}, params, {0}, {}), 1) << "a negative logit is multiplied";
    EXPECT_EQ(greedy_after({4.0f, 3.0f}, params, {0, 0, 0}, {0, 1}), 0) << "once each, however often it came";
}

TEST(Sampler, FrequencyAndPresenceLookAtTheOutputOnly) {
    SamplingParams frequency;
    frequency.frequency_penalty = 1.0f;
    EXPECT_EQ(greedy_after({3.0f, 1.5f}, frequency, {0, 0, 0}, {}), 0);
    EXPECT_EQ(greedy_after({3.0f, 1.5f}, frequency, {}, {0}), 0);
    EXPECT_EQ(greedy_after({3.0f, 1.5f}, frequency, {}, {0, 0}), 1);
    SamplingParams presence;
    presence.presence_penalty = 1.0f;
    EXPECT_EQ(greedy_after({3.0f, 1.5f}, presence, {0}, {0, 0, 0}), 0) << "once only";
    presence.presence_penalty = 2.0f;
    EXPECT_EQ(greedy_after({3.0f, 1.5f}, presence, {}, {0}), 1);
    presence.presence_penalty = -2.0f;
    EXPECT_EQ(greedy_after({1.5f, 3.0f}, presence, {}, {0}), 0) << "a negative penalty is a reward";
}

TEST(Sampler, HistoryIsEmptyAfterClear) {
    TokenHistory history(4);
    history.add_prompt(std::vector<int32_t>{1, 1, 2});
    history.add_output(1);
    EXPECT_EQ(history.seen().size(), 2u);
    EXPECT_EQ(history.output_count(1), 1);
    EXPECT_EQ(history.output_count(2), 0);
    history.clear();
    EXPECT_TRUE(history.seen().empty());
    history.add_prompt(std::vector<int32_t>{1});
    EXPECT_EQ(history.output_count(1), 0);
}

TEST(Sampler, BiasAndMaskDecide) {
    SamplingParams params;
    params.temperature = 0;
    EXPECT_EQ(sample_one(kLogits, params, 0, {1, 3}), 2);
    params.logit_bias = {{1, -100.0f}, {0, 5.0f}};
    EXPECT_EQ(sample_one(kLogits, params), 0);
    params.logit_bias = {{1, 100.0f}};
    EXPECT_EQ(sample_one(kLogits, params, 0, {1}), 3) << "a bias does not lift a mask";
}

TEST(Sampler, TellsWhatItDrewFrom) {
    const float infinity = std::numeric_limits<float>::infinity();
    Sampler sampler(std::ssize(kLogits), cpu::select_kernels("auto"));
    TokenHistory history(std::ssize(kLogits));
    history.add_output(0);
    const auto drawn = [&](const SamplingParams& params, const std::vector<int32_t>& forbidden) {
        sampler.sample(kLogits, params, history, {{}, forbidden}, 0);
        const std::span<const float> logits = sampler.drawn_from();
        return std::vector<float>(logits.begin(), logits.end());
    };
    SamplingParams params;  // of 1, 3, 2, 3, -1
    params.presence_penalty = 0.5f;
    params.logit_bias = {{4, 3.0f}};
    EXPECT_EQ(drawn(params, {1}), (std::vector<float>{0.5f, -infinity, 2.0f, 3.0f, 2.0f}));
    params.temperature = 0.5f;
    EXPECT_EQ(drawn(params, {1}), (std::vector<float>{1.0f, -infinity, 4.0f, 6.0f, 4.0f}));
    params.top_k = 2;
    EXPECT_EQ(drawn(params, {1}), (std::vector<float>{-infinity, -infinity, 4.0f, 6.0f, 4.0f}))
        << "both of the equal ones";
    params.top_k = 0;
    params.top_p = 0.8f;  // 6, 4, 4, 1: 0.783, 0.106, 0.106, 0.005
    EXPECT_EQ(drawn(params, {1}), (std::vector<float>{-infinity, -infinity, 4.0f, 6.0f, -infinity})) << "the lower id";
    params.temperature = 0;
    EXPECT_EQ(drawn(params, {1}), (std::vector<float>{0.5f, -infinity, 2.0f, 3.0f, 2.0f})) << "greedy: no truncation";
    const Token token = sampler.with_logprobs(drawn(params, {0, 1, 2, 4}), 3, 3);
    EXPECT_EQ(token.logprob, 0.0f);
    ASSERT_EQ(token.top.size(), 3u);
    EXPECT_EQ(token.top[0].id, 3);
    EXPECT_EQ(token.top[1].id, 0) << "of equal ones the lower id";
    EXPECT_EQ(token.top[1].logprob, -infinity);
}

TEST(Sampler, RefusesWhatIsNoDistribution) {
    const float nan = std::numeric_limits<float>::quiet_NaN(), infinity = std::numeric_limits<float>::infinity();
    EXPECT_THROW(sample_one({1.0f, nan}, {}), Error);
    EXPECT_THROW(sample_one({1.0f, infinity}, {}), Error);
    EXPECT_THROW(sample_one({1.0f, 2.0f}, {}, 0, {0, 1}), Error);
    EXPECT_THROW(with_logprobs({nan, 0.0f}, 1, 0), Error);
    EXPECT_EQ(sample_one({-infinity, 0.0f}, {}), 1);
}

TEST(Sampler, ExtremeLogitsDoNotOverflow) {
    SamplingParams params;
    params.top_p = 0.9f;
    params.temperature = 1e-4f;
    EXPECT_EQ(sample_one({3e38f, -3e38f, 0.0f}, params), 0);
}

/// A vocabulary of several chunks, of which most tokens cannot come out: what is drawn must be allowed, at every rate.
TEST(Sampler, LargeVocabulariesDrawTheSoftmaxOfWhatIsLeft) {
    const int64_t vocab = 5000;
    std::vector<float> logits(vocab, 0.0f);
    logits[1023] = 9.0f, logits[1024] = 9.0f, logits[4999] = 10.0f;
    SamplingParams params;
    params.min_p = 0.2f;
    const int draws = 20000;
    const double total = 2 * std::exp(-1.0) + 1.0;
    for (const int32_t top_k : {0, 3}) {
        params.top_k = top_k;
        if (top_k > 0) params.min_p = 0.0f;
        auto counts = histogram(logits, params, draws);
        EXPECT_EQ(counts.size(), 3u);
        EXPECT_NEAR(counts[1023], draws * std::exp(-1.0) / total, 300);
        EXPECT_NEAR(counts[1024], draws * std::exp(-1.0) / total, 300);
        EXPECT_NEAR(counts[4999], draws / total, 300);
    }
    // e^10 + 2 e^9 of e^10 + 2 e^9 + 4997: 0.892
    params = {};
    params.top_p = 0.85f;
    EXPECT_EQ(support(logits, params), (std::set<int32_t>{1023, 1024, 4999}));
    params.top_p = 0.95f;
    EXPECT_GT(support(logits, params).size(), 50u);
    std::vector<int32_t> all_but_one;
    for (int32_t id = 0; id < vocab; ++id)
        if (id != 77) all_but_one.push_back(id);
    for (uint64_t step = 0; step < 20; ++step) EXPECT_EQ(sample_one(logits, {}, step, all_but_one), 77);
}

TEST(Logprobs, AreTheLogSoftmaxOfTheRawLogits) {
    double total = 0;
    for (const float logit : kLogits) total += std::exp(logit);
    const Token token = with_logprobs(kLogits, 2, 3);
    EXPECT_EQ(token.id, 2);
    EXPECT_NEAR(token.logprob, 2.0 - std::log(total), 1e-6);
    ASSERT_EQ(token.top.size(), 3u);
    EXPECT_EQ(token.top[0].id, 1) << "equal ones by id";
    EXPECT_EQ(token.top[1].id, 3);
    EXPECT_EQ(token.top[2].id, 2);
    EXPECT_EQ(token.top[2].logprob, token.logprob) << "the same number, bit by bit";
    EXPECT_EQ(with_logprobs(kLogits, 0, 99).top.size(), kLogits.size());
    EXPECT_TRUE(with_logprobs(kLogits, 0, 0).top.empty());
}

}  // namespace
}  // namespace thermocline::engine
