// One request, waiting or running: where it stands between two forward passes. Owned by the engine thread from the
// moment it runs for the first time.
#pragma once

#include "memory/sequence_cache.h"
#include "src/engine/batcher.h"
#include "src/engine/request.h"
#include "src/engine/sampler.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

namespace thermocline::engine {

/// The caller's hold on a submitted request. Any thread.
class Ticket {
public:
    /// The sequence ends with kCancelled before its next forward pass. Also after the end, then without effect.
    void cancel() { cancelled_.store(true, std::memory_order_relaxed); }
    bool cancelled() const { return cancelled_.load(std::memory_order_relaxed); }

private:
    std::atomic<bool> cancelled_ = false;
};

using Clock = std::chrono::steady_clock;

struct Sequence {
    SequenceId id = 0;
    Request request;  // but its prompt: that is in `tokens`
    std::shared_ptr<Listener> listener;
    std::shared_ptr<Ticket> ticket;
    Clock::time_point submitted;

    std::vector<int32_t> tokens;                   // prompt and what was drawn
    std::unique_ptr<memory::SequenceCache> cache;  // of the first of them; null unless it runs
    std::optional<TokenHistory> history;           // there once it has begun
    int64_t max_output = 0;                        // tokens that may be drawn
    std::vector<int32_t> stop_tokens;              // EOS (unless ignored) and Request::stop_tokens
    std::vector<int32_t> forbidden;                // for the next draw
    int32_t stop_token = -1;                       // the one of Request::stop_tokens that was drawn
    int64_t reported = 0;                          // prompt tokens of which on_prefill has told
    int64_t scored = 0;                            // prompt tokens reported to on_prompt
    int64_t remembered = 0;                        // position of its last state in the prefix cache
    bool loading = false;                          // it rests until its prefix has come from the disk
    size_t slot = 0;                               // while it runs: its place in Engine::slots()
    Clock::time_point started, first_token;
    Statistics statistics;
};

}  // namespace thermocline::engine
