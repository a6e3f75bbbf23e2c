// What plays a Plan, batch after batch: the face of CpuExecutor (all on the CPU) and GpuExecutor (dense steps on a
// card), and of SplitExecutor (on several). Used by one thread (the engine thread); nothing here locks.
#pragma once

#include "memory/sequence_cache.h"
#include "scheduler/profiler.h"
#include "scheduler/residency.h"
#include "scheduler/routing.h"
#include "src/base/check.h"
#include "src/ops/cost.h"
#include "src/ops/plan.h"
#include "src/ops/top_logits.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace thermocline::scheduler {

/// The rows of one sequence in a forward pass.
struct Part {
    memory::SequenceCache* sequence;
    std::span<const int32_t> tokens;  // continue the sequence at sequence->position()
    int32_t outputs = 1;              // logits of the last `outputs` tokens are wanted (0 .. tokens.size())
    bool all_logits = true;           // of all tokens; false: top_logits() will mostly do
    float factor = 1.0f;              // of top_logits(): 1 / temperature
};

struct ExecutorLimits {
    int64_t max_rows = 512;     ///< tokens in one forward pass
    int64_t max_outputs = 16;   ///< rows of logits in one forward pass
    int64_t max_tokens = 4096;  ///< of one sequence
    int64_t max_parts = 16;     ///< sequences in one forward pass
    /// Of cards: what a row gives does not depend on the rows beside it, in any bit. On the CPU it never does.
    bool batch_invariant = false;
};

/// Tokens in one pass, if nobody says otherwise. With a card experts that stream take the link as long for 4096 tokens
/// as for 512 (hybrid-engine.md 1.6, R6); the CPU alone computes 512 as fast as 2048 (bench/results). What `plan`
/// reckons with and what an engine takes; a card without room shortens it (GpuMemoryPlan::prefill_chunk).
constexpr int64_t default_prefill_chunk(bool on_card) { return on_card ? 4096 : 512; }

/// Of an engine that serves `sequences` of up to `context` tokens at once, with so many tokens in a pass.
constexpr ExecutorLimits serving_limits(int64_t context, int64_t sequences, int64_t prefill_chunk) {
    constexpr int64_t kOutputs = 32;  // what scoring a prompt takes at a time
    ExecutorLimits limits;
    limits.max_rows = std::max(std::min(prefill_chunk, context), sequences);
    limits.max_outputs = std::max(std::min(limits.max_rows, kOutputs), sequences);
    limits.max_tokens = context;
    limits.max_parts = sequences;
    return limits;
}

/// What somebody wants of the experts on cards, between two passes. Names are of this plan, of each card as many as
/// there is room for (slot_ranges(), check_pins()).
struct ExpertOrders {
    std::vector<std::vector<double>> shares = {};  // Residency::expect(); empty: scores stay
    std::vector<ExpertName> wanted = {};           // Residency::want(); empty: nothing
    std::vector<ExpertName> pinned = {}, released = {};
};

/// Sets of experts [first, last) and the slots of the card that has them.
struct SlotRange {
    ops::ExpertsId first, last;
    int64_t slots;
};

class Executor {
public:
    virtual ~Executor() = default;

    virtual const ops::Plan& plan() const = 0;
    virtual const ExecutorLimits& limits() const = 0;
    /// An empty sequence; its caches lie where this executor's steps want them.
    virtual std::unique_ptr<memory::SequenceCache> new_sequence() = 0;

    /// Bytes that the caches of a sequence of `tokens` tokens take.
    virtual int64_t sequence_bytes(int64_t tokens) const = 0;

    /// One forward pass over the parts; every sequence must have reserved room for its tokens and be able to go on
    /// (SequenceCache::can_go_on(); CHECK), and is advanced.
    /// `streams_in` (MTP plans): [rows, n * D] residual streams of the trunk; null for the trunk.
    /// Rows together at most limits().max_rows, outputs at most max_outputs, parts at most max_parts (CHECK).
    /// Throws Error when a card fails: no sequence is advanced then, but those that a pass has begun are spoiled.
    virtual void forward(std::span<const Part> parts, const float* streams_in = nullptr) = 0;

    /// Logits of output i of the last pass, counted over all parts in order: [vocab]. Valid until the next pass.
    virtual const float* logits(int64_t output) const = 0;
    /// The largest of them, and the sum of all with Part::factor; nothing where logits() is no dearer, or a logit is
    /// NaN or +infinity. Valid until the next pass.
    virtual std::optional<ops::TopLogits> top_logits(int64_t) const { return std::nullopt; }
    /// Residual streams of row `row` of the last pass: [n * D]. Valid until the next call.
    virtual const float* streams(int64_t row) const = 0;

    /// Bytes of slots and scratch.
    virtual int64_t workspace_bytes() const = 0;
    /// Bytes of weights and caches that the last pass had to read, and its floating-point operations, from the one
    /// cost formula (ops/cost.h).
    virtual ops::Cost last_cost() const = 0;
    int64_t last_bytes() const { return last_cost().bytes; }

    /// From now on every step is timed into `profile`, which outlives its use; null: no more.
    virtual void profile_steps(StepProfile* profile) = 0;
    /// From now on every pass leaves its routing in `record`, which outlives its use; null: no more.
    virtual void record_routing(RoutingRecord* record) = 0;

    /// Of routed experts on a card, since the start; and which lie there now. Without a card nothing.
    virtual ResidencyCounters residency() const { return {}; }
    virtual std::vector<ExpertName> resident() const { return {}; }
    /// Room for experts on a card whose experts can be exchanged; 0: there is none.
    virtual int64_t movable_slots() const { return 0; }
    /// The same card by card.
    virtual std::vector<SlotRange> slot_ranges() const {
        return {{0, static_cast<ops::ExpertsId>(plan().experts.size()), movable_slots()}};
    }
    /// Those on a card that are in no other memory: they stay.
    virtual std::vector<ExpertName> core() const { return {}; }
    /// CHECKs that movable_slots() is not 0.
    virtual void order(const ExpertOrders&) { CHECK(false); }
};

}  // namespace thermocline::scheduler
