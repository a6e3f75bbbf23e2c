// Plays a Plan on the machine, batch after batch. Owns the slots and the worker threads; the one place that calls
// cpu::run. Used by one thread (the engine thread); nothing here locks.
#pragma once

#include "cpu/kernels.h"
#include "cpu/run.h"
#include "cpu/workers.h"
#include "memory/sequence_cache.h"
#include "scheduler/profiler.h"
#include "src/ops/batch.h"
#include "src/ops/plan.h"

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace thermocline::scheduler {

/// The rows of one sequence in a forward pass.
struct Part {
    memory::SequenceCache* sequence;
    std::span<const int32_t> tokens;  // continue the sequence at sequence->position()
    int32_t outputs = 1;              // logits of the last `outputs` tokens are wanted (0 .. tokens.size())
};

struct ExecutorLimits {
    int64_t max_rows = 512;     ///< tokens in one forward pass
    int64_t max_outputs = 16;   ///< rows of logits in one forward pass
    int64_t max_tokens = 4096;  ///< of one sequence
};

/// The experts that one pass chose: of each Route step of the plan, in order, [rows, top_k].
struct RoutingRecord {
    std::vector<std::vector<int32_t>> ids;
};

class Executor {
public:
    /// `plan` must outlive the executor. `workers` is shared with other executors of the same thread (trunk and MTP).
    Executor(const ops::Plan& plan, cpu::Workers& workers, const cpu::KernelTable& kernels, ExecutorLimits limits);

    const ops::Plan& plan() const { return plan_; }
    const ExecutorLimits& limits() const { return limits_; }
    std::unique_ptr<memory::SequenceCache> new_sequence() const;

    /// One forward pass over the parts; every sequence must have reserved room for its tokens (CHECK) and is advanced.
    /// `streams_in` (MTP plans): [rows, n * D] residual streams of the trunk; null for the trunk.
    /// Rows together at most limits().max_rows, outputs at most max_outputs (CHECK).
    void forward(std::span<const Part> parts, const float* streams_in = nullptr);

    /// Logits of output i of the last pass, counted over all parts in order: [vocab]. Valid until the next pass.
    const float* logits(int64_t output) const;
    /// Residual streams of row `row` of the last pass: [n * D].
    const float* streams(int64_t row) const;

    /// Bytes of slots and scratch.
    int64_t workspace_bytes() const;
    /// Bytes of weights and caches the last pass had to read, from the one cost formula (ops/cost.h).
    int64_t last_bytes() const { return last_cost_.bytes; }
    /// Bytes and floating-point operations of the last pass, from the same formula.
    ops::Cost last_cost() const { return last_cost_; }

    /// From now on every step is timed into `profile`, which outlives its use; null: no more.
    void profile_steps(StepProfile* profile) { profile_ = profile; }
    /// From now on every pass leaves its routing in `record`, which outlives its use; null: no more.
    void record_routing(RoutingRecord* record) { routing_ = record; }

private:
    /// Lays tokens, positions and segments of the parts out as one batch.
    ops::Batch gather(std::span<const Part> parts);
    void play_timed(const cpu::Frame& frame);
    void play_recorded(const cpu::Frame& frame);

    const ops::Plan& plan_;
    cpu::Workers& workers_;
    const cpu::KernelTable& kernels_;
    ExecutorLimits limits_;
    std::vector<float> storage_;  // of all slots, rotations and scratch
    std::vector<float*> slots_;
    std::vector<float*> rotations_;
    std::span<float> shared_, per_worker_;
    std::vector<int32_t> tokens_, output_rows_;
    std::vector<int64_t> positions_;
    std::vector<ops::Segment> segments_;
    ops::Cost last_cost_;
    StepProfile* profile_ = nullptr;
    RoutingRecord* routing_ = nullptr;
};

}  // namespace thermocline::scheduler
