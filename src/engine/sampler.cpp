#include "src/engine/sampler.h"

#include "src/base/check.h"
#include "src/base/error.h"
#include "src/base/random.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace thermocline::engine {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// -infinity for every id whose bit is not set, and for ids beyond the bits.
void keep_allowed(std::span<const uint64_t> allowed, std::vector<float>& logits) {
    for (size_t first = 0; first < logits.size(); first += 64) {
        const size_t count = std::min<size_t>(64, logits.size() - first);
        const uint64_t word = first / 64 < allowed.size() ? allowed[first / 64] : 0;
        if (word == 0) {
            std::fill_n(logits.begin() + static_cast<std::ptrdiff_t>(first), count, -kInfinity);
            continue;
        }
        if (word == ~uint64_t{0}) continue;
        for (size_t i = 0; i < count; ++i)
            if ((word >> i & 1) == 0) logits[first + i] = -kInfinity;
    }
}

}  // namespace

void TokenHistory::clear() {
    for (const int32_t id : seen_) counts_[static_cast<size_t>(id)] = kUnseen;
    seen_.clear();
}

void TokenHistory::add_prompt(std::span<const int32_t> ids) {
    for (const int32_t id : ids) {
        if (counts_[static_cast<size_t>(id)] != kUnseen) continue;
        counts_[static_cast<size_t>(id)] = 0;
        seen_.push_back(id);
    }
}

void TokenHistory::add_output(int32_t id) {
    add_prompt({&id, 1});
    ++counts_[static_cast<size_t>(id)];
}

float penalised(float logit, const SamplingParams& params, int32_t count) {
    logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    logit -= params.frequency_penalty * static_cast<float>(count);
    return count > 0 ? logit - params.presence_penalty : logit;
}

Sampler::Sampler(int64_t vocab, const cpu::KernelTable& kernels)
    : kernels_(kernels), weights_(static_cast<size_t>(vocab)), ids_(static_cast<size_t>(vocab)) {
    work_.reserve(static_cast<size_t>(vocab));
    chunk_sums_.resize((static_cast<size_t>(vocab) + kChunk - 1) / kChunk);
}

float Sampler::checked_largest(std::span<const float> logits) const {
    CHECK(logits.size() == weights_.size());
    const auto id = static_cast<size_t>(kernels_.largest(logits.data(), static_cast<int64_t>(logits.size())));
    if (std::isnan(logits[id]) || logits[id] == kInfinity)
        fail("the model computed ", logits[id], " as logit of token ", id, ", expected a finite number");
    return logits[id];
}

void Sampler::adjust(std::span<const float> logits, const SamplingParams& params, const TokenHistory& history,
                     const Choosable& choosable) {
    work_.assign(logits.begin(), logits.end());
    if (!choosable.allowed.empty()) keep_allowed(choosable.allowed, work_);
    for (const int32_t id : choosable.forbidden) work_[static_cast<size_t>(id)] = -kInfinity;
    for (const auto& [id, bias] : params.logit_bias) work_[static_cast<size_t>(id)] += bias;
    for (const int32_t id : history.seen()) {
        float& logit = work_[static_cast<size_t>(id)];
        logit = penalised(logit, params, history.output_count(id));
    }
}

/// weights_ = exp((logit - largest) * factor), 0 for logits below `least`; returns their sum.
double Sampler::weigh(std::span<const float> logits, float largest, float factor, float least) {
    double total = 0;
    for (size_t i = 0; i < chunk_sums_.size(); ++i) {
        const size_t first = i * kChunk, count = std::min(kChunk, logits.size() - first);
        chunk_sums_[i] = kernels_.exp_sum(logits.data() + first, static_cast<int64_t>(count), largest, factor, least,
                                          weights_.data() + first);
        total += chunk_sums_[i];
    }
    return total;
}

/// Ids of the numbers that are at least `least`, larger logits first, lower ids first among equals; the `most` first.
std::span<const int32_t> Sampler::best_first(std::span<const float> numbers, float least, std::span<const float> logits,
                                             int64_t most) {
    const int64_t count = kernels_.at_least(numbers.data(), static_cast<int64_t>(numbers.size()), least, ids_.data());
    const auto is_better = [&](int32_t a, int32_t b) {
        const float x = logits[static_cast<size_t>(a)], y = logits[static_cast<size_t>(b)];
        return x != y ? x > y : a < b;
    };
    if (most >= count) {
        std::sort(ids_.begin(), ids_.begin() + count, is_better);
    } else {
        std::partial_sort(ids_.begin(), ids_.begin() + most, ids_.begin() + count, is_better);
    }
    return {ids_.data(), static_cast<size_t>(std::min(most, count))};
}

/// The token where the running sum of the weights, in the order of ids, passes `target`, which is below their total.
int32_t Sampler::draw_any(double target) const {
    size_t end = chunk_sums_.size(), chunk = 0;
    while (chunk_sums_[end - 1] == 0) --end;  // rounding must not lead to a token that cannot come out
    double reached = 0;
    for (; chunk + 1 < end && reached + chunk_sums_[chunk] <= target; ++chunk) reached += chunk_sums_[chunk];
    size_t last = 0;
    for (size_t id = chunk * kChunk; id < std::min(weights_.size(), (chunk + 1) * kChunk); ++id) {
        if (weights_[id] == 0) continue;
        reached += weights_[id];
        last = id;
        if (reached > target) break;
    }
    return static_cast<int32_t>(last);
}

/// Draws from the smallest set of most likely tokens whose weights reach p of the total.
int32_t Sampler::draw_top_p(double p, double total, double uniform) {
    // What is below this share belongs to the removed tail in any case: all such together weigh less than 1 - p.
    const double least = total * (1.0 - p) / static_cast<double>(weights_.size());
    const std::span<const int32_t> ids = best_first(weights_, static_cast<float>(least), work_, std::ssize(weights_));
    const auto weight = [&](size_t i) { return double{weights_[static_cast<size_t>(ids[i])]}; };
    double kept = 0;
    size_t count = 0;
    while (count < ids.size() && (count == 0 || kept < p * total)) kept += weight(count++);
    last_ = ids[count - 1];
    double reached = 0;
    for (size_t i = 0; i < count; ++i) {
        reached += weight(i);
        if (reached > uniform * kept) return ids[i];
    }
    return last_;
}

int32_t Sampler::sample(std::span<const float> logits, const SamplingParams& params, const TokenHistory& history,
                        const Choosable& choosable, uint64_t step) {
    checked_largest(logits);
    adjust(logits, params, history, choosable);
    const auto vocab = static_cast<int64_t>(work_.size());
    const auto best = static_cast<int32_t>(kernels_.largest(work_.data(), vocab));
    const float largest = work_[static_cast<size_t>(best)];
    if (largest == -kInfinity)
        throw RequestFault("every token is forbidden by masks, biases and min_tokens, nothing is left to draw");
    factor_ = 1;
    least_ = -kInfinity;
    last_ = -1;
    if (params.temperature < kGreedyTemperature) return best;

    // log(min_p) is the least distance to the largest logit, in units of temperature; -infinity when off.
    least_ = largest + std::log(params.min_p) * params.temperature;
    if (params.top_k > 0 && params.top_k < vocab)  // whatever equals the last of the k stays
        least_ = std::max(least_, kernels_.kth_largest(work_.data(), vocab, params.top_k, ids_.data()));
    factor_ = 1.0f / params.temperature;
    const double total = weigh(work_, largest, factor_, least_);
    const double uniform = random_uniform(params.seed, step);
    return params.top_p < 1.0f ? draw_top_p(params.top_p, total, uniform) : draw_any(uniform * total);
}

std::span<const float> Sampler::drawn_from() {
    const float border = last_ < 0 ? -kInfinity : work_[static_cast<size_t>(last_)];
    for (size_t id = 0; id < work_.size(); ++id) {
        float& logit = work_[id];
        const bool in_top = last_ < 0 || logit > border || (logit == border && id <= static_cast<size_t>(last_));
        logit = in_top && logit >= least_ ? logit * factor_ : -kInfinity;
    }
    return work_;
}

Token Sampler::with_logprobs(std::span<const float> logits, int32_t id, int32_t top) {
    const float largest = checked_largest(logits);
    const double log_total = largest + std::log(weigh(logits, largest, 1.0f, -kInfinity));
    const auto logprob = [&](int32_t i) { return static_cast<float>(logits[static_cast<size_t>(i)] - log_total); };
    Token token;
    token.id = id;
    token.logprob = logprob(id);
    const auto vocab = static_cast<int64_t>(logits.size());
    const int64_t count = std::clamp<int64_t>(top, 0, vocab);
    if (count == 0) return token;
    const float border = kernels_.kth_largest(logits.data(), vocab, count, ids_.data());
    for (const int32_t i : best_first(logits, border, logits, count)) token.top.push_back({i, logprob(i)});
    return token;
}

}  // namespace thermocline::engine
