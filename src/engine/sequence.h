// One running request: where it stands between two forward passes. Owned by the engine thread.
#pragma once

#include "src/engine/request.h"
#include "src/engine/sampler.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <memory>
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
    Request request;
    std::shared_ptr<Listener> listener;
    std::shared_ptr<Ticket> ticket;
    Clock::time_point submitted;

    int64_t max_output = 0;            // tokens that may be drawn
    std::vector<int32_t> stop_tokens;  // EOS (unless ignored) and Request::stop_tokens
    std::vector<int32_t> forbidden;    // for the next draw
    int64_t scored = 0;                // prompt tokens reported to on_prompt
    int32_t last_token = -1;           // drawn, not yet in the caches
    Clock::time_point started, first_token;
    Statistics statistics;
};

}  // namespace thermocline::engine
