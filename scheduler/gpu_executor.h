// Plays a Plan on a card and the CPU: routed experts on the CPU, where their weights lie, unless they lie on the card
// too; all else on the card. The card sends the vectors, raises a flag in host memory and goes on with its own experts
// and the shared one; the calling thread sees the flag, computes with the workers and raises the flag that the card
// waits for. Few rows, as in decode, are one recorded graph from the first step to the last
// (hybrid-engine.md 4.1, 4.2).
#pragma once

#include "cpu/kernels.h"
#include "cpu/run.h"
#include "cpu/workers.h"
#include "cuda/device.h"
#include "cuda/hung.h"
#include "cuda/library.h"
#include "cuda/run.h"
#include "memory/packed_weights.h"
#include "scheduler/batch_rows.h"
#include "scheduler/executor.h"
#include "scheduler/expert_prefetch.h"
#include "scheduler/expert_reader.h"
#include "scheduler/expert_speed.h"
#include "scheduler/expert_stream.h"
#include "scheduler/gpu_experts.h"
#include "scheduler/gpu_layout.h"
#include "scheduler/gpu_order.h"
#include "scheduler/gpu_pages.h"
#include "scheduler/gpu_report.h"
#include "scheduler/gpu_weights.h"
#include "scheduler/handoff.h"
#include "scheduler/placement.h"
#include "scheduler/recorded_passes.h"
#include "src/base/pages.h"

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace thermocline::scheduler {

/// Why `plan` cannot be played by a GpuExecutor, in a clause that names the step; empty: it can.
std::string why_not_on_gpu(const ops::Plan& plan);

class GpuExecutor : public Executor {
public:
    /// All references must outlive the executor. Takes card_bytes() of the card, with room for `sequences` sequences of
    /// limits.max_tokens: `memory` if it is large enough. The experts `resident` are computed by the card, all others
    /// by the CPU. Throws Error if the card has no room, or if no kernel plays a step of the plan (why_not_on_gpu) or
    /// takes its experts (GpuExperts::why_not). With other `rules` than static, other experts take
    /// their places as they are chosen. `packed`: whose card-only weights are made to be brought to the card; null: all
    /// that `plan` shows is there. `prefetch`: of what the CPU will compute; it is left out if it does not pay.
    GpuExecutor(const ops::Plan& plan, cuda::Device& device, cpu::Workers& workers, const cpu::KernelTable& kernels,
                ExecutorLimits limits, int64_t sequences, std::span<const ExpertName> resident = {},
                const ResidencyRules& rules = {.policy = ResidencyRules::Policy::kStatic},
                cuda::DeviceMemory memory = {}, memory::PackedWeights* packed = nullptr,
                const PrefetchRules& prefetch = {});
    ~GpuExecutor() override;

    const ops::Plan& plan() const override { return plan_; }
    const ExecutorLimits& limits() const override { return limits_; }
    std::unique_ptr<memory::SequenceCache> new_sequence() override;
    int64_t sequence_bytes(int64_t tokens) const override { return gpu_sequence_bytes(plan_, tokens); }
    void forward(std::span<const Part> parts, const float* streams_in = nullptr) override;
    /// The pass of forward(), of sequences that the caller advances, or spoils if it throws. `batch`: of the parts,
    /// with outputs only for a plan with logits. `streams_in`: pinned.
    void pass(std::span<const Part> parts, const ops::Batch& batch, const float* streams_in);
    /// Of a plan without logits: residual streams after the last pass, [rows, n * D], pinned. Valid until the next.
    const float* handed_over() const { return host_streams_; }
    memory::PageStore& pages() { return pages_; }
    const float* logits(int64_t output) const override;
    std::optional<ops::TopLogits> top_logits(int64_t output) const override;
    const float* streams(int64_t row) const override;
    int64_t workspace_bytes() const override;
    ops::Cost last_cost() const override { return last_cost_; }
    void profile_steps(StepProfile* profile) override { profile_ = profile; }
    /// Steps of the plan are those from `first` on of the plan that is profiled.
    void profile_steps(StepProfile* profile, size_t first) { profile_ = profile, first_step_ = first; }
    void record_routing(RoutingRecord* record) override { routing_ = record; }
    ResidencyCounters residency() const override;
    /// As measured at the start; of the card nothing if the rules have no use for it.
    const ExpertSpeed& speed() const { return speed_; }
    std::vector<ExpertName> resident() const override { return experts_.resident(); }
    int64_t movable_slots() const override { return experts_.movable_slots(); }
    std::vector<ExpertName> core() const override;
    void order(const ExpertOrders& orders) override { experts_.order(orders); }

    /// Has products of prompts done by the library of the card where that is faster, and says which. Before the first
    /// pass.
    const std::vector<std::string>& use_library();

    /// What runs where; with how fast it reads if `measured`, which takes some passes' time. Between passes.
    std::vector<OperatorReport> operators(bool measured);

    /// How long the card may keep this executor waiting, each time, before a pass is given up: one of up to kGraphRows
    /// rows, and one of more. What the CPU itself takes does not count (cpu/worker_watch.h). `last`: how long the
    /// next pass waits for one that was given up before the process ends (cuda/hung.h); by itself a minute.
    void set_patience(std::chrono::milliseconds few, std::chrono::milliseconds many,
                      std::chrono::milliseconds last = std::chrono::minutes(10)) {
        patience_few_ = few;
        patience_many_ = many;
        last_patience_ = last;
    }

private:
    /// Of putting a pass into the stream.
    struct Progress {
        size_t asked = 0;      // jobs sent
        bool pending = false;  // the result of the last one has not been taken
    };

    void take_host_memory();
    void begin(const ResidencyRules& rules, bool any_resident);
    cuda::Frame frame(const ops::Batch& batch) const;
    std::optional<cuda::Balance> balance(int64_t rows) const;
    void upload(const ops::Batch& batch, const float* streams_in);
    /// Puts the steps of a pass into the stream.
    void enqueue(const cuda::Frame& frame);
    void enqueue_group(const Group& group, GpuOrder& order, Progress& progress);
    /// Adds up what CPU and card made, for a step that may want it.
    void take_result(const Group& group, GpuOrder& order, const Handoff& handoff);
    /// Has the card tell what the router of a later layer will choose, if it can be foretold after this group.
    void foretell(const Group& group, GpuOrder& order);
    /// What most draws need of the logits, or the streams of a plan without.
    void fetch_results(const cuda::Frame& frame);
    bool knows_top_logits(int64_t outputs) const;
    void fetch_logits() const;
    void play(const cuda::Frame& frame, const ops::Batch& batch);
    void play_timed(const cuda::Frame& frame, const ops::Batch& batch);
    /// Has a file read what is known before the pass.
    void ask_for_known();
    /// Computes the experts of the next layer when the card asks for them.
    void serve_next(const ops::Batch& batch);
    void compute(const Handoff& handoff, const ops::Batch& batch);
    void await_job(const Handoff& handoff);
    /// Until the card is idle; `what` it still does. Error if that takes longer.
    void await_card(const char* what, std::chrono::milliseconds patience) const;
    [[noreturn]] void give_up(const std::string& what, std::chrono::steady_clock::time_point since) const;
    /// The foretold experts of a layer that the CPU will have to compute; empty: nothing is known yet, or none.
    std::span<const int32_t> expected_absent(size_t layer);
    /// Brings them near until the job comes; false: not known yet.
    bool prefetch(size_t layer);
    cpu::Frame host_frame(const ops::Batch& batch) const;
    /// Experts that are not on the card.
    int64_t on_cpu() const;
    /// What experts take on the CPU, and on the card if that is wanted.
    void measure(bool on_card);
    /// Of a pass over a prompt: what is not on the card comes there or is computed by the CPU, layer by layer.
    void share_experts(const Handoff& handoff);
    /// Different experts among `ids`, -1 left out.
    int64_t distinct(const Handoff& handoff, std::span<const int32_t> ids);
    void compute_some(const Handoff& handoff, std::span<const StreamQueue::Item> items);
    void lower_flags();
    void wait_for_earlier();
    std::span<const int32_t> chosen(const Handoff& handoff) const;
    /// Lets the card run to its end after a failure, so that the next pass finds it idle.
    void abandon() noexcept;

    const ops::Plan& plan_;
    const std::vector<Group> groups_;
    cuda::Device& device_;
    cpu::Workers& workers_;
    const cpu::KernelTable& kernels_;
    ExecutorLimits limits_;
    BatchRows rows_;
    std::chrono::milliseconds patience_few_{2000}, patience_many_{60000}, patience_{};  // patience_: of this pass
    std::chrono::milliseconds last_patience_ = cuda::kEndPatience;

    const cuda::Variants variants_;
    cuda::LibraryProducts library_;
    CardBytes bytes_;
    cuda::DeviceMemory memory_;             // weights, workspace, pages, experts
    std::unique_ptr<cuda::Stream> stream_;  // behind the memory: if what comes next fails, its work ends before
    GpuWeights weights_;
    WorkspaceLayout workspace_;
    GpuPages pages_;
    GpuExperts experts_;
    const quant::Matrix* table_ = nullptr;  // of embeddings, on the host

    cuda::PinnedMemory host_;  // upload, embeddings, flags, the experts' slots and ids, logits, streams
    std::byte* upload_ = nullptr;
    float *host_embeddings_ = nullptr, *host_logits_ = nullptr, *host_streams_ = nullptr;
    cuda::TopRow* host_top_ = nullptr;  // [up to kGraphRows]
    std::vector<float> factors_;        // of the outputs of the pass
    mutable bool fetched_ = false;      // its logits have been sent for
    std::vector<Handoff> handoffs_;
    std::vector<float*> host_slots_;  // of the experts' steps; others null
    std::optional<Pages> cpu_scratch_;
    std::span<float> shared_, per_worker_;

    std::optional<ExpertPrefetch> prefetch_;   // nothing: there is none
    std::vector<int32_t*> early_;              // of the host, of each layer: what its gate foretold
    bool prefetches_ = false;                  // in this pass
    const ops::Batch* to_prefetch_ = nullptr;  // set: the layer that is waited for has still to be brought near
    size_t awaited_ = 0;
    std::vector<int32_t> absent_;
    std::optional<ExpertReader> reader_;  // nothing: all experts are in memory

    RecordedPasses graphs_;
    // Set while a pass that is not recorded is put into the stream: each job is served before the stream is told to
    // wait for its end, since behind a wait a stream takes about a thousand launches and then holds up whoever adds
    // more.
    const ops::Batch* at_once_ = nullptr;
    ExpertSpeed speed_;
    const bool balances_, streams_all_;
    std::unique_ptr<ExpertStream> stream_of_experts_;  // null: nothing is streamed
    struct Pass {                                      // the one at hand, for share_experts()
        const ops::Batch* batch;
        const cuda::Frame* frame;
    };
    std::optional<Pass> streaming_;  // nothing: this pass streams nothing
    std::vector<int32_t> job_ids_;   // as they came
    std::vector<char> is_now_;       // [experts of a layer] whether the CPU computes it now
    int64_t reads_ = 0, cpu_reads_ = 0, layers_played_ = 0;
    double cpu_seconds_ = 0, exposed_seconds_ = 0;
    bool unfinished_ = false;  // the card may still work on a pass that was given up
    ops::Cost last_cost_;
    int64_t rows_played_ = 0, outputs_played_ = 0;  // in the last pass
    StepProfile* profile_ = nullptr;
    size_t first_step_ = 0;
    RoutingRecord* routing_ = nullptr;
};

}  // namespace thermocline::scheduler
