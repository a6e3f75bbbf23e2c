#include "src/engine/sampler.h"

#include "src/base/error.h"
#include "src/base/random.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace thermocline::engine {
namespace {

constexpr float kMinusInfinity = -std::numeric_limits<float>::infinity();

/// Larger logit first, lower id first among equals.
template <typename Item>
bool better(const Item& a, const Item& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

void check_logits(std::span<const float> logits) {
    for (size_t i = 0; i < logits.size(); ++i) {
        if (std::isnan(logits[i]) || logits[i] == -kMinusInfinity)
            fail("the model computed ", logits[i], " as logit of token ", i, ", expected a finite number");
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

int32_t argmax(std::span<const float> logits) {
    return static_cast<int32_t>(std::max_element(logits.begin(), logits.end()) - logits.begin());
}

void Sampler::adjust(std::span<const float> logits, const SamplingParams& params, const TokenHistory& history,
                     std::span<const int32_t> forbidden) {
    work_.assign(logits.begin(), logits.end());
    for (const int32_t id : forbidden) work_[static_cast<size_t>(id)] = kMinusInfinity;
    for (const auto& [id, bias] : params.logit_bias) work_[static_cast<size_t>(id)] += bias;
    for (const int32_t id : history.seen()) {
        float& logit = work_[static_cast<size_t>(id)];
        const auto count = static_cast<float>(history.output_count(id));
        logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
        logit -= params.frequency_penalty * count;
        if (count > 0) logit -= params.presence_penalty;
    }
}

/// Keeps the k largest and whatever equals the last of them.
void Sampler::keep_top_k(size_t k) {
    if (k == 0 || k >= kept_.size()) return;
    std::nth_element(kept_.begin(), kept_.begin() + static_cast<int64_t>(k - 1), kept_.end(), better<Weighted>);
    const float border = kept_[k - 1].logit;
    std::erase_if(kept_, [&](const Weighted& item) { return item.logit < border; });
}

/// Keeps the smallest set of most likely candidates whose probabilities reach p.
void Sampler::keep_top_p(double p) {
    float largest = kMinusInfinity;
    for (const Weighted& item : kept_) largest = std::max(largest, item.logit);
    double total = 0;
    for (const Weighted& item : kept_) total += std::exp(static_cast<double>(item.logit) - largest);
    // What is below this share belongs to the removed tail in any case: all such together weigh less than 1 - p.
    const double least = total * (1.0 - p) / static_cast<double>(kept_.size());
    std::erase_if(kept_,
                  [&](const Weighted& item) { return std::exp(static_cast<double>(item.logit) - largest) < least; });
    std::sort(kept_.begin(), kept_.end(), better<Weighted>);
    double reached = 0;
    size_t count = 0;
    while (count < kept_.size() && (count == 0 || reached < p * total))
        reached += std::exp(static_cast<double>(kept_[count++].logit) - largest);
    kept_.resize(count);
}

int32_t Sampler::draw(double uniform) const {
    float largest = kMinusInfinity;
    for (const Weighted& item : kept_) largest = std::max(largest, item.logit);
    double total = 0;
    for (const Weighted& item : kept_) total += std::exp(static_cast<double>(item.logit) - largest);
    const double target = uniform * total;
    double reached = 0;
    int32_t last = kept_.front().id;
    for (const Weighted& item : kept_) {
        const double weight = std::exp(static_cast<double>(item.logit) - largest);
        if (weight == 0) continue;
        reached += weight;
        last = item.id;
        if (reached > target) break;
    }
    return last;
}

int32_t Sampler::sample(std::span<const float> logits, const SamplingParams& params, const TokenHistory& history,
                        std::span<const int32_t> forbidden, uint64_t step) {
    check_logits(logits);
    adjust(logits, params, history, forbidden);
    const int32_t best = argmax(work_);
    const float largest = work_[static_cast<size_t>(best)];
    if (largest == kMinusInfinity) fail("every token is forbidden by masks and biases, nothing is left to sample");
    if (params.temperature < kGreedyTemperature) return best;

    // log(min_p) is the least distance to the largest logit, in units of temperature; -infinity when off.
    const float least = largest + std::log(params.min_p) * params.temperature;
    kept_.clear();
    for (size_t i = 0; i < work_.size(); ++i) {
        if (work_[i] == kMinusInfinity || work_[i] < least) continue;
        kept_.push_back({static_cast<int32_t>(i), (work_[i] - largest) / params.temperature});
    }
    if (params.top_k > 0) keep_top_k(static_cast<size_t>(params.top_k));
    if (params.top_p < 1.0f) keep_top_p(params.top_p);
    return draw(random_uniform(params.seed, step));
}

Token with_logprobs(std::span<const float> logits, int32_t id, int32_t top) {
    check_logits(logits);
    const float largest = *std::max_element(logits.begin(), logits.end());
    double total = 0;
    for (const float logit : logits) total += std::exp(static_cast<double>(logit) - largest);
    const double log_total = largest + std::log(total);
    const auto logprob = [&](int32_t i) { return static_cast<float>(logits[static_cast<size_t>(i)] - log_total); };

    Token token;
    token.id = id;
    token.logprob = logprob(id);
    struct Item {
        int32_t id;
        float logit;
    };
    // A heap of the best so far, the worst of them on top: one pass, `top` items of memory.
    std::vector<Item> heap;
    const auto count = std::min(static_cast<size_t>(std::max(top, 0)), logits.size());
    for (size_t i = 0; i < logits.size() && count > 0; ++i) {
        const Item item{static_cast<int32_t>(i), logits[i]};
        if (heap.size() == count && !better(item, heap.front())) continue;
        if (heap.size() == count) {
            std::pop_heap(heap.begin(), heap.end(), better<Item>);
            heap.pop_back();
        }
        heap.push_back(item);
        std::push_heap(heap.begin(), heap.end(), better<Item>);
    }
    std::sort_heap(heap.begin(), heap.end(), better<Item>);
    for (const Item& item : heap) token.top.push_back({item.id, logprob(item.id)});
    return token;
}

}  // namespace thermocline::engine
