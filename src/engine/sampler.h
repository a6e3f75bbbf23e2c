// From logits to a token (serving-api.md section 8, vLLM's order): mask -> logit bias -> repetition -> frequency ->
// presence -> greedy, or: temperature -> min_p -> top_k -> top_p -> softmax -> draw. Log-probabilities are taken from
// the logits before all of that, or after it (drawn_from). Pure but for the scratch memory of a Sampler; one thread.
#pragma once

#include "cpu/kernels.h"
#include "src/engine/request.h"

#include <cstdint>
#include <span>
#include <vector>

namespace thermocline::engine {

/// Which ids a sequence has seen, for the penalties.
class TokenHistory {
public:
    explicit TokenHistory(int64_t vocab) : counts_(static_cast<size_t>(vocab), kUnseen) {}

    void clear();
    void add_prompt(std::span<const int32_t> ids);
    void add_output(int32_t id);

    /// Ids of prompt and output, each once.
    std::span<const int32_t> seen() const { return seen_; }
    /// How often a seen id is in the output.
    int32_t output_count(int32_t id) const { return counts_[static_cast<size_t>(id)]; }

private:
    static constexpr int32_t kUnseen = -1;
    std::vector<int32_t> counts_;  // [vocab] times in the output, kUnseen for an id that is in neither
    std::vector<int32_t> seen_;
};

/// Ids that may come out.
struct Choosable {
    std::span<const uint64_t> allowed;   // a bit per id, as of TokenConstraint::mask; empty: all
    std::span<const int32_t> forbidden;  // never these
};

class Sampler {
public:
    Sampler(int64_t vocab, const cpu::KernelTable& kernels);

    /// Draws output token number `step` from what is choosable. Throws Error if a logit is NaN or +infinity, or nothing
    /// is left to draw.
    int32_t sample(std::span<const float> logits, const SamplingParams& params, const TokenHistory& history,
                   const Choosable& choosable, uint64_t step);

    /// The logits behind the last sample(): divided by the temperature unless greedy, -infinity what could not come
    /// out. Valid until the next sample(); once.
    std::span<const float> drawn_from();

    /// `id` with its log-probability and the `top` best, best first (equal ones: lower id first), over the whole
    /// vocabulary. Throws Error if a logit is NaN or +infinity.
    Token with_logprobs(std::span<const float> logits, int32_t id, int32_t top);

private:
    float checked_largest(std::span<const float> logits) const;
    void adjust(std::span<const float> logits, const SamplingParams& params, const TokenHistory& history,
                const Choosable& choosable);
    double weigh(std::span<const float> logits, float largest, float factor, float least);
    std::span<const int32_t> best_first(std::span<const float> numbers, float least, std::span<const float> logits,
                                        int64_t most);
    int32_t draw_any(double target) const;
    int32_t draw_top_p(double p, double total, double uniform);

    const cpu::KernelTable& kernels_;
    std::vector<float> work_;        // [vocab] adjusted logits
    std::vector<float> weights_;     // [vocab] their softmax numerators, 0: cannot come out
    std::vector<float> chunk_sums_;  // of kChunk weights each
    std::vector<int32_t> ids_;       // [vocab] candidates
    // Of the last draw from work_: logits below `least_` were left out, and with top_p all less likely than `last_`.
    float factor_ = 1, least_ = 0;
    int32_t last_ = -1;
};

}  // namespace thermocline::engine
