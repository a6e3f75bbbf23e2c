// Plays a Plan on a card and the CPU: routed experts on the CPU, where their weights lie, all else on the card. The
// card sends the vectors, raises a flag in host memory and goes on with what does not depend on the experts (the shared
// expert); the calling thread sees the flag, computes with the workers and raises the flag that the card waits for. Few
// rows, as in decode, are one recorded graph from the first step to the last (hybrid-engine.md 4.1, 4.2).
#pragma once

#include "cpu/kernels.h"
#include "cpu/run.h"
#include "cpu/workers.h"
#include "cuda/device.h"
#include "cuda/run.h"
#include "scheduler/batch_rows.h"
#include "scheduler/executor.h"
#include "scheduler/gpu_pages.h"
#include "scheduler/gpu_weights.h"

#include <chrono>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace thermocline::scheduler {

/// Why `plan` cannot be played by a GpuExecutor, in a clause that names the step; empty: it can.
std::string why_not_on_gpu(const ops::Plan& plan);

/// Bytes of the card that a GpuExecutor takes besides its sequences.
int64_t gpu_workspace_bytes(const ops::Plan& plan, const ExecutorLimits& limits);
/// Bytes of the card that a sequence of `tokens` tokens takes.
int64_t gpu_sequence_bytes(const ops::Plan& plan, int64_t tokens);

class GpuExecutor : public Executor {
public:
    /// All references must outlive the executor. Takes room on the card for `sequences` sequences of limits.max_tokens.
    /// Throws Error if the card has no room or the plan has a step that no kernel plays (why_not_on_gpu).
    GpuExecutor(const ops::Plan& plan, cuda::Device& device, cpu::Workers& workers, const cpu::KernelTable& kernels,
                ExecutorLimits limits, int64_t sequences);
    ~GpuExecutor() override;

    const ops::Plan& plan() const override { return plan_; }
    const ExecutorLimits& limits() const override { return limits_; }
    std::unique_ptr<memory::SequenceCache> new_sequence() override;
    void forward(std::span<const Part> parts, const float* streams_in = nullptr) override;
    const float* logits(int64_t output) const override;
    const float* streams(int64_t row) const override;
    int64_t workspace_bytes() const override;
    ops::Cost last_cost() const override { return last_cost_; }
    void profile_steps(StepProfile* profile) override { profile_ = profile; }
    void record_routing(RoutingRecord* record) override { routing_ = record; }

    /// How long a pass may take before it is given up: of up to kGraphRows rows, and of more.
    void set_patience(std::chrono::milliseconds few, std::chrono::milliseconds many) {
        patience_few_ = few;
        patience_many_ = many;
    }

    /// Of the block that is sent before a pass.
    static int64_t most_upload_bytes(const ops::Plan& plan, const ExecutorLimits& limits);

    static constexpr int64_t kGraphRows = 32;  // up to so many rows are played as a recorded graph

private:
    /// What is sent to the card before a pass, and where it lies in the block that goes there.
    struct Upload;
    /// Experts of one layer: the CPU's part of a pass.
    struct Handoff {
        const ops::Experts* step;
        cuda::Flag *job, *done;  // raised by the card, by the CPU
    };

    void take_card_memory();
    void take_host_memory();
    cuda::Frame frame(const ops::Batch& batch) const;
    void upload(const ops::Batch& batch, const float* streams_in);
    /// Puts the steps of a pass into the stream.
    void enqueue(const cuda::Frame& frame);
    void enqueue_step(const ops::Step& step, const cuda::Frame& frame, size_t& next_experts, ops::Slot& pending);
    void take_result(const ops::Step& step, const cuda::Frame& frame, const Handoff& handoff, ops::Slot pending);
    void fetch_logits(const cuda::Frame& frame);
    void play(const cuda::Frame& frame);
    void play_timed(const cuda::Frame& frame, const ops::Batch& batch);
    /// Computes all experts of a pass as the card asks for them.
    void serve_experts(const ops::Batch& batch, std::chrono::steady_clock::time_point deadline);
    void compute(const Handoff& handoff, const ops::Batch& batch);
    void lower_flags();
    /// Lets the card run to its end after a failure, so that the next pass finds it idle.
    void abandon() noexcept;

    const ops::Plan& plan_;
    cuda::Device& device_;
    cpu::Workers& workers_;
    const cpu::KernelTable& kernels_;
    ExecutorLimits limits_;
    BatchRows rows_;
    std::chrono::milliseconds patience_few_{2000}, patience_many_{60000};

    std::unique_ptr<cuda::Stream> stream_;
    GpuWeights weights_;
    cuda::DeviceMemory card_;  // slots, rotations, scratch, upload
    GpuPages pages_;
    std::vector<float*> slots_, rotations_;
    std::byte* scratch_ = nullptr;
    std::byte* on_card_ = nullptr;          // the upload
    float* embeddings_ = nullptr;           // [max_rows, embedding width]
    const quant::Matrix* table_ = nullptr;  // of embeddings, on the host

    cuda::PinnedMemory host_;  // upload, embeddings, flags, the experts' slots, logits, streams
    std::byte* upload_ = nullptr;
    float *host_embeddings_ = nullptr, *host_logits_ = nullptr, *host_streams_ = nullptr;
    int64_t upload_bytes_ = 0;  // at most
    cuda::Flag* flags_ = nullptr;
    std::vector<Handoff> handoffs_;
    std::vector<float*> host_slots_;  // of the experts' steps; others null
    std::vector<float> cpu_scratch_;
    std::span<float> shared_, per_worker_;

    std::map<std::pair<int64_t, int64_t>, std::unique_ptr<cuda::Graph>> graphs_;  // by rows and outputs
    bool unfinished_ = false;  // the card may still work on a pass that was given up
    ops::Cost last_cost_;
    StepProfile* profile_ = nullptr;
    RoutingRecord* routing_ = nullptr;
};

}  // namespace thermocline::scheduler
