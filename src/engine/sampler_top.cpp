// Draws from the largest logits alone, as a card sends them (src/ops/top_logits.h), where that provably gives what all
// of them would have given: the same token of the same seed. Every logit that is not here is known to be at most the
// least of these.
#include "src/base/random.h"
#include "src/engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace thermocline::engine {

namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
/// How far the card's sum of weights and the host's may be apart, relative: both add up to 10^5 exponentials in float.
constexpr double kDoubt = 2e-5;

bool is_better(const ops::TopLogit& a, const ops::TopLogit& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

/// Whether a logit may become larger than it was.
bool raises(const SamplingParams& params) {
    return params.repetition_penalty < 1 || params.frequency_penalty < 0 || params.presence_penalty < 0 ||
           std::any_of(params.logit_bias.begin(), params.logit_bias.end(),
                       [](const auto& one) { return one.second > 0; });
}

/// Whether no logit changes.
bool is_plain(const SamplingParams& params, const Choosable& choosable) {
    return choosable.allowed.empty() && choosable.forbidden.empty() && params.logit_bias.empty() &&
           params.repetition_penalty == 1 && params.frequency_penalty == 0 && params.presence_penalty == 0;
}

/// What Sampler::adjust() makes of one logit.
float adjusted(const ops::TopLogit& one, const SamplingParams& params, const TokenHistory& history,
               const Choosable& choosable) {
    const auto id = static_cast<size_t>(one.id);
    float logit = one.logit;
    const bool masked = !choosable.allowed.empty() &&
                        (id / 64 >= choosable.allowed.size() || (choosable.allowed[id / 64] >> id % 64 & 1) == 0);
    if (masked ||
        std::find(choosable.forbidden.begin(), choosable.forbidden.end(), one.id) != choosable.forbidden.end())
        return -kInfinity;
    for (const auto& [biased, bias] : params.logit_bias)
        if (biased == one.id) logit += bias;
    return history.has_seen(one.id) ? penalised(logit, params, history.output_count(one.id)) : logit;
}

}  // namespace

bool Sampler::may_need_all(const SamplingParams& params, bool restricted) {
    if (raises(params)) return true;
    if (params.temperature < kGreedyTemperature || params.top_k > 0 || params.min_p > 0) return false;
    return params.top_p >= 1 || restricted || !is_plain(params, {});
}

std::optional<int32_t> Sampler::sample(const ops::TopLogits& top, const SamplingParams& params,
                                       const TokenHistory& history, const Choosable& choosable, uint64_t step) {
    if (raises(params)) return std::nullopt;
    const bool plain = is_plain(params, choosable);
    float others = -kInfinity;  // none of them is above
    if (!top.is_all) others = std::max_element(top.best.begin(), top.best.end(), is_better)->logit;
    top_.clear();
    for (const ops::TopLogit& one : top.best) {
        const float logit = plain ? one.logit : adjusted(one, params, history, choosable);
        if (logit > -kInfinity) top_.push_back({one.id, logit});
    }
    if (top_.empty()) return std::nullopt;
    if (params.temperature < kGreedyTemperature) {
        const ops::TopLogit& best = *std::min_element(top_.begin(), top_.end(), is_better);
        return plain || best.logit > others ? std::optional(best.id) : std::nullopt;
    }
    std::sort(top_.begin(), top_.end(), is_better);
    const float largest = top_.front().logit;
    if (!plain && largest <= others) return std::nullopt;
    float least = largest + std::log(params.min_p) * params.temperature;
    if (params.top_k > 0 && params.top_k < std::ssize(weights_)) {
        const auto k = static_cast<size_t>(params.top_k);
        if (k <= top_.size())
            least = std::max(least, top_[k - 1].logit);
        else if (!top.is_all)
            return std::nullopt;
    }
    const bool closed = top.is_all || least > others;  // the others are out
    // The sum of all weights is that of those not below `least` only if nothing is.
    if (!closed && (!plain || params.top_p >= 1 || least > -kInfinity)) return std::nullopt;
    const double kept = weigh_top(largest, 1.0f / params.temperature, least);
    const double uniform = random_uniform(params.seed, step);
    if (params.top_p < 1) return draw_top_p(params.top_p, closed ? kept : top.weights, closed ? 0.0 : kDoubt, uniform);
    return draw_any(uniform * kept);
}

/// weigh() of top_, as if all others were -infinity: the same chunks, so that the same numbers are added in the same
/// order.
double Sampler::weigh_top(float largest, float factor, float least) {
    by_id_ = top_;
    std::sort(by_id_.begin(), by_id_.end(), [](const auto& a, const auto& b) { return a.id < b.id; });
    std::fill(chunk_sums_.begin(), chunk_sums_.end(), 0.0f);
    for (size_t i = 0; i < by_id_.size();) {
        const size_t chunk = static_cast<size_t>(by_id_[i].id) / kChunk, first = chunk * kChunk;
        chunk_.assign(std::min(kChunk, weights_.size() - first), -kInfinity);
        bool any = false;
        for (; i < by_id_.size() && static_cast<size_t>(by_id_[i].id) / kChunk == chunk; ++i) {
            chunk_[static_cast<size_t>(by_id_[i].id) - first] = by_id_[i].logit;
            any |= by_id_[i].logit >= least;
        }
        if (any)
            chunk_sums_[chunk] =
                kernels_.exp_sum(chunk_.data(), std::ssize(chunk_), largest, factor, least, weights_.data() + first);
        else
            for (size_t j = 0; j < chunk_.size(); ++j) weights_[first + j] = 0;
    }
    double total = 0;
    for (const float sum : chunk_sums_) total += sum;
    return total;
}

/// As the other one, over top_. Nothing if the total, which may be off by a part of `doubt`, leaves it open where the
/// set ends.
std::optional<int32_t> Sampler::draw_top_p(double p, double total, double doubt, double uniform) const {
    const auto least = static_cast<float>(total * (1.0 - p) / static_cast<double>(weights_.size()));
    const auto weight = [&](size_t i) { return weights_[static_cast<size_t>(top_[i].id)]; };
    double kept = 0;
    size_t count = 0;
    while (count < top_.size() && weight(count) >= least && (count == 0 || kept < p * total * (1.0 - doubt)))
        kept += double{weight(count++)};
    if (doubt > 0 && kept < p * total * (1.0 + doubt)) return std::nullopt;
    double reached = 0;
    for (size_t i = 0; i < count; ++i) {
        reached += double{weight(i)};
        if (reached > uniform * kept) return top_[i].id;
    }
    return top_[count - 1].id;
}

}  // namespace thermocline::engine
