// Plays a Plan on the CPU alone. Owns the slots; borrows the worker threads.
#pragma once

#include "cpu/kernels.h"
#include "cpu/run.h"
#include "cpu/workers.h"
#include "scheduler/batch_rows.h"
#include "scheduler/executor.h"
#include "scheduler/expert_prefetch.h"
#include "scheduler/expert_reader.h"
#include "src/base/pages.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace thermocline::scheduler {

class CpuExecutor : public Executor {
public:
    /// `plan` must outlive the executor. `workers` is shared with other executors of the same thread (trunk and MTP).
    /// `prefetch`: only experts in files can be brought near here, since the workers never wait.
    CpuExecutor(const ops::Plan& plan, cpu::Workers& workers, const cpu::KernelTable& kernels, ExecutorLimits limits,
                const PrefetchRules& prefetch = {});

    const ops::Plan& plan() const override { return plan_; }
    const ExecutorLimits& limits() const override { return limits_; }
    std::unique_ptr<memory::SequenceCache> new_sequence() override;
    int64_t sequence_bytes(int64_t tokens) const override { return memory::sequence_bytes(plan_.caches, tokens); }
    void forward(std::span<const Part> parts, const float* streams_in = nullptr) override;
    const float* logits(int64_t output) const override;
    const float* streams(int64_t row) const override;
    int64_t workspace_bytes() const override;
    ops::Cost last_cost() const override { return last_cost_; }
    void profile_steps(StepProfile* profile) override { profile_ = profile; }
    void record_routing(RoutingRecord* record) override { routing_ = record; }
    ResidencyCounters residency() const override;

private:
    void play_timed(const cpu::Frame& frame);
    void play_steps(const cpu::Frame& frame);
    void record(const ops::Route& route, const cpu::Frame& frame, size_t layer, std::vector<int32_t>& foretold);

    const ops::Plan& plan_;
    cpu::Workers& workers_;
    const cpu::KernelTable& kernels_;
    ExecutorLimits limits_;
    BatchRows rows_;
    std::optional<Pages> storage_;  // of all slots, rotations and scratch
    std::vector<float*> slots_;
    std::vector<float*> rotations_;
    std::span<float> shared_, per_worker_;
    ops::Cost last_cost_;
    StepProfile* profile_ = nullptr;
    RoutingRecord* routing_ = nullptr;
    std::optional<ExpertPrefetch> prefetch_;  // nothing: there is none
    bool prefetches_ = false;                 // in this pass
    std::optional<ExpertReader> reader_;      // nothing: all experts are in memory
};

}  // namespace thermocline::scheduler
