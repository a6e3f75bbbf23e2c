// From logits to a token (serving-api.md section 8, vLLM's order): mask -> logit bias -> repetition -> frequency ->
// presence -> greedy, or: temperature -> min_p -> top_k -> top_p -> softmax -> draw. Log-probabilities are taken from
// the logits before all of that, or after it (drawn_from). Pure but for the scratch memory of a Sampler; one thread.
#pragma once

#include "cpu/kernels.h"
#include "src/engine/request.h"
#include "src/ops/top_logits.h"

#include <cstdint>
#include <optional>
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
    bool has_seen(int32_t id) const { return counts_[static_cast<size_t>(id)] != kUnseen; }
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

/// What the penalties make of the logit of a seen id that is in the output `count` times.
float penalised(float logit, const SamplingParams& params, int32_t count);

class Sampler {
public:
    Sampler(int64_t vocab, const cpu::KernelTable& kernels);

    /// Draws output token number `step` from what is choosable. Throws Error if a logit is NaN or +infinity, or nothing
    /// is left to draw.
    int32_t sample(std::span<const float> logits, const SamplingParams& params, const TokenHistory& history,
                   const Choosable& choosable, uint64_t step);

    /// The same from the largest logits alone, to the last bit; nothing if it takes all of them to say. The weights of
    /// `top` are for the factor 1 / temperature. drawn_from() has nothing of it.
    std::optional<int32_t> sample(const ops::TopLogits& top, const SamplingParams& params, const TokenHistory& history,
                                  const Choosable& choosable, uint64_t step);
    /// Whether that is to be expected of such requests: `restricted`: some tokens are not choosable.
    static bool may_need_all(const SamplingParams& params, bool restricted);

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
    double weigh_top(float largest, float factor, float least);
    std::optional<int32_t> draw_top_p(double p, double total, double doubt, double uniform) const;

    static constexpr size_t kChunk = 1024;  // weights that are summed in float; the sums in double

    const cpu::KernelTable& kernels_;
    std::vector<float> work_;                 // [vocab] adjusted logits
    std::vector<float> weights_;              // [vocab] their softmax numerators, 0: cannot come out
    std::vector<float> chunk_sums_;           // of kChunk weights each
    std::vector<int32_t> ids_;                // [vocab] candidates
    std::vector<ops::TopLogit> top_, by_id_;  // adjusted, best first; by id
    std::vector<float> chunk_;                // logits of one chunk
    // Of the last draw from work_: logits below `least_` were left out, and with top_p all less likely than `last_`.
    float factor_ = 1, least_ = 0;
    int32_t last_ = -1;
};

}  // namespace thermocline::engine
