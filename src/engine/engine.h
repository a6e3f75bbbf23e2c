// Runs requests on a model: one at a time, the others wait in order of arrival. One thread, the engine thread, owns the
// model, the caches and the running sequence; everything else talks to it through submit() and Ticket::cancel(), which
// any thread may call and which never wait for a forward pass.
//
// The caches of the last sequence stay: a prompt that begins with the same tokens continues from there, as far back as
// the caches can be rolled back.
#pragma once

#include "src/base/error.h"
#include "src/engine/forward.h"
#include "src/engine/request.h"
#include "src/engine/sampler.h"
#include "src/engine/sequence.h"

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

namespace thermocline::engine {

struct EngineLimits {
    int64_t max_queue = 256;       ///< waiting requests; 0: no limit
    std::vector<int32_t> eos_ids;  ///< end every sequence
};

/// The prompt leaves no room for a token of output.
class ContextOverflow : public Error {
public:
    ContextOverflow(int64_t prompt_tokens, int64_t max_model_len);
    int64_t prompt_tokens() const { return prompt_tokens_; }
    int64_t max_model_len() const { return max_model_len_; }

private:
    int64_t prompt_tokens_, max_model_len_;
};

class Engine {
public:
    /// The model is used by the engine thread from here on; `kernels` sample.
    Engine(std::unique_ptr<Forward> model, EngineLimits limits, const cpu::KernelTable& kernels);
    /// Cancels the running request, refuses the waiting ones, waits for the thread.
    ~Engine();
    Engine(const Engine&) = delete;
    Engine& operator=(const Engine&) = delete;

    int64_t vocab() const { return vocab_; }
    /// Tokens of prompt and output together.
    int64_t max_model_len() const { return max_model_len_; }

    /// Throws Error naming what is wrong with the request. submit() does it too.
    void check(const Request& request) const;
    /// Queues the request; nothing when the queue is full or the engine is shutting down.
    std::shared_ptr<Ticket> submit(Request request, std::shared_ptr<Listener> listener);

    struct Load {
        int64_t running = 0;
        int64_t waiting = 0;
    };
    Load load() const;
    /// Refuses what waits and what comes; what runs goes on.
    void drain();
    bool draining() const;

private:
    void run();
    std::unique_ptr<Sequence> next();
    void play(Sequence& sequence);
    void begin(Sequence& sequence);
    int64_t reuse_prefix(const Request& request);
    std::optional<FinishReason> prefill(Sequence& sequence);
    std::optional<FinishReason> decode(Sequence& sequence);
    void pass(std::span<const int32_t> tokens, int32_t outputs);
    void report_prompt(Sequence& sequence, int64_t first, int64_t count);
    std::optional<FinishReason> draw(Sequence& sequence, std::span<const float> logits);
    std::span<const float> logits(int64_t output) const;
    void finish(Sequence& sequence, Result result);
    void forget_caches();

    const std::unique_ptr<Forward> model_;
    const EngineLimits limits_;
    const int64_t vocab_;
    const int64_t max_model_len_;

    // Owned by the engine thread.
    Sampler sampler_;
    TokenHistory history_;
    std::unique_ptr<memory::SequenceCache> cache_;
    std::vector<int32_t> cached_tokens_;  // [cache_->position()] what the caches hold
    std::string cached_salt_;
    int32_t stop_token_ = -1;  // of the running sequence

    mutable std::mutex mutex_;  // guards what follows
    std::condition_variable wake_;
    std::deque<std::unique_ptr<Sequence>> waiting_;
    std::shared_ptr<Ticket> running_;
    bool draining_ = false;
    bool stopping_ = false;

    std::thread thread_;  // last: starts when all else is there
};

}  // namespace thermocline::engine
