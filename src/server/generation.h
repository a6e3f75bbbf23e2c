// Carries the choices of one HTTP request through the engine: submits their sequences, as many as can run at once;
// those that share a prompt wait until it has been computed once, and then find it in the prefix cache. Turns their
// tokens into text on the engine thread, and hands the pieces to the HTTP thread through a bounded queue that never
// makes the engine wait. Destroying a Generation cancels what still runs. Used by one HTTP thread.
#pragma once

#include "src/base/queue.h"
#include "src/engine/engine.h"
#include "src/engine/output.h"

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace thermocline::server {

/// What is said when no forward pass succeeds any more.
inline constexpr const char* kBroken = "the engine has failed, the server ends";

/// How a choice ended.
struct Ending {
    engine::Result result;
    text::FinishReason reason = text::FinishReason::kStop;  // result.reason kStop and kLength only
    std::optional<std::string> stop_string;
    int64_t reasoning_tokens = 0;
};

/// What one engine step did for one choice.
struct Delta {
    int32_t choice = 0;
    engine::TextEvents events;                 // without kFinish
    std::vector<engine::Token> tokens;         // drawn
    bool in_reasoning = false;                 // they belong to the reasoning
    std::vector<engine::Token> prompt_tokens;  // scored
    int64_t prefilled = -1, prompt_size = 0;   // progress of the prompt, when asked for; -1: none
    int64_t prefill_start = 0;                 // tokens that the caches had
    double prefill_ms = 0;
    std::optional<Ending> ending;  // the choice's last delta
};

using DeltaQueue = BoundedQueue<Delta>;

struct ChoicePlan {
    engine::Request request;
    std::function<std::unique_ptr<engine::Output>()> make_output;
};

class Generation {
public:
    /// Submits the first sequence. RequestError: 400 for what the engine refuses, 429 when its queue is full.
    Generation(engine::Engine& engine, std::vector<ChoicePlan> choices, bool wants_progress);
    ~Generation();
    Generation(const Generation&) = delete;
    Generation& operator=(const Generation&) = delete;

    /// The next piece of any choice; nothing after `timeout`. RequestError when a choice failed: 500, or 503 when the
    /// engine is shutting down.
    std::optional<Delta> next(std::chrono::milliseconds timeout);
    /// All choices have ended.
    bool done() const { return ended_ == choices_.size(); }

private:
    bool submit_next();
    void submit_ready();

    engine::Engine& engine_;
    std::vector<ChoicePlan> choices_;
    bool wants_progress_;
    std::shared_ptr<DeltaQueue> queue_;
    std::vector<std::shared_ptr<engine::Ticket>> tickets_;  // of the choices submitted so far, in order
    std::vector<size_t> same_prompt_;                       // of each choice: the first one with its prompt
    std::vector<bool> begun_;                               // its prompt has been computed
    size_t ended_ = 0;
};

}  // namespace thermocline::server
