// What a caller asks of the engine and what it gets back: token ids in, tokens out. No text here: prompts arrive
// tokenized, and whoever listens turns tokens into text (output.h). Plain structs, no behaviour.
#pragma once

#include "src/engine/constraint.h"

#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace thermocline::engine {

/// How the next token is drawn (serving-api.md section 8). The defaults change nothing: softmax at temperature 1.
struct SamplingParams {
    float temperature = 1.0f;         ///< below kGreedyTemperature: the most likely token
    float top_p = 1.0f;               ///< (0, 1]
    int32_t top_k = 0;                ///< 0 or -1: off
    float min_p = 0.0f;               ///< [0, 1]
    float presence_penalty = 0.0f;    ///< once for every id in the output
    float frequency_penalty = 0.0f;   ///< for every time an id is in the output
    float repetition_penalty = 1.0f;  ///< factor for every id in prompt or output
    std::vector<std::pair<int32_t, float>> logit_bias = {};
    uint64_t seed = 0;  ///< key of the random stream; draw number = index of the output token
};

inline constexpr float kGreedyTemperature = 1e-5f;

struct Request {
    std::string id;  ///< what the log calls it
    std::vector<int32_t> prompt;
    SamplingParams sampling;
    int64_t max_tokens = -1;           ///< -1: until the context is full; 0: only the prompt is computed
    int64_t min_tokens = 0;            ///< EOS and stop tokens cannot be drawn before that many
    std::vector<int32_t> stop_tokens;  ///< end the sequence as EOS does
    bool ignore_eos = false;           ///< EOS cannot be drawn
    int32_t logprobs = -1;             ///< N >= 0: log-probability of each token, and of the N best
    bool processed_logprobs = false;   ///< these in the distribution that was drawn from, not in the model's own
    int32_t prompt_logprobs = -1;      ///< the same for the tokens of the prompt; all of it is computed then
    int32_t priority = 0;              ///< lower ones go first
    bool reuse_prefix = true;  ///< continue from what earlier ones left in the prefix cache, and leave something
    std::string cache_salt;    ///< prefixes are shared only between requests with the same salt

    /// Restricts the output; null: anything may come. Requests do not share one.
    std::shared_ptr<TokenConstraint> constraint;
};

struct Candidate {
    int32_t id;
    float logprob;
};

struct Token {
    int32_t id = -1;
    /// Natural log of its probability; NaN when not asked for, and for a prompt's first.
    float logprob = std::numeric_limits<float>::quiet_NaN();
    std::vector<Candidate> top;  // best first
    int32_t rank = 0;            // 1: the likeliest; of prompt tokens only
    bool ends = false;           // EOS or a stop token: counted, but no part of the text
    bool is_last = false;        // on_finish follows at once
};

enum class FinishReason : uint8_t {
    kStop,       ///< EOS, a stop token, or the listener had enough
    kLength,     ///< max_tokens, or the context is full
    kCancelled,  ///< Ticket::cancel()
    kRefused,    ///< never started: the engine is shutting down
    kError,      ///< Result::error says why
};

struct Statistics {
    int64_t prompt_tokens = 0;
    int64_t cached_tokens = 0;  // of the prompt: taken from the caches, not computed
    int64_t output_tokens = 0;
    int64_t decode_steps = 0;  // forward passes after the prompt that drew
    double queue_seconds = 0, prefill_seconds = 0, decode_seconds = 0;
    /// Weights and caches that its passes read, by the cost formula: also for those who shared these passes.
    int64_t prefill_bytes = 0, decode_bytes = 0;

    double prefill_tokens_per_second() const { return rate(prompt_tokens - cached_tokens, prefill_seconds); }
    double decode_tokens_per_second() const { return rate(decode_steps, decode_seconds); }
    double prefill_gb_per_second() const { return rate(prefill_bytes, prefill_seconds) * 1e-9; }
    double decode_gb_per_second() const { return rate(decode_bytes, decode_seconds) * 1e-9; }

private:
    static double rate(int64_t amount, double seconds) {
        return seconds > 0 ? static_cast<double>(amount) / seconds : 0.0;
    }
};

struct Result {
    FinishReason reason = FinishReason::kStop;
    int32_t stop_token = -1;  // the one of Request::stop_tokens that ended it, if one did
    std::string error;        // kError only
    bool by_request = false;  // kError because of what the request asks for
    Statistics statistics;
};

/// Hears about one request. All functions run on the engine thread, on_finish of a pass that hangs on another: they
/// must be quick, must not wait for a client, and must not throw. on_finish is called exactly once, last.
class Listener {
public:
    virtual ~Listener() = default;
    /// `processed` of `total` prompt tokens are in the caches; the first call says how many were there already.
    virtual void on_prefill(int64_t processed, int64_t total) { (void)processed, (void)total; }
    /// Request::prompt_logprobs: the next tokens of the prompt, in order.
    virtual void on_prompt(std::span<const Token> tokens) { (void)tokens; }
    /// One more token; false ends the sequence with kStop.
    virtual bool on_token(const Token& token) = 0;
    virtual void on_finish(const Result& result) = 0;
};

}  // namespace thermocline::engine
