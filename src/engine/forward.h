// What the engine asks of a model: the face of scheduler::Executor, so that a test can play the model with a table.
// One implementation runs models, in assemble.cpp. Used by the engine thread alone.
#pragma once

#include "memory/sequence_cache.h"
#include "scheduler/executor.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <span>

namespace thermocline::engine {

class Forward {
public:
    virtual ~Forward() = default;
    virtual int64_t vocab() const = 0;
    virtual scheduler::ExecutorLimits limits() const = 0;
    virtual std::unique_ptr<memory::SequenceCache> new_sequence() = 0;
    /// Bytes that the caches of a sequence of `tokens` tokens take; 0 for a model that keeps none.
    virtual int64_t sequence_bytes(int64_t) const { return 0; }
    /// One pass; the sequences are advanced. Same rules as Executor::forward.
    virtual void forward(std::span<const scheduler::Part> parts) = 0;
    /// Logits of output i of the last pass: [vocab].
    virtual const float* logits(int64_t output) const = 0;
    /// Its largest logits, where they are known without all of them being fetched.
    virtual std::optional<ops::TopLogits> top_logits(int64_t) const { return std::nullopt; }
    /// Bytes of weights and caches that the last pass read.
    virtual int64_t last_bytes() const = 0;
};

}  // namespace thermocline::engine
