// Experts that pass through a ring of slots of a card while a prompt is computed: for each layer the hottest of those
// that are not resident come over the link, while the CPU computes the coldest (stream_queue.h). Those that are worth
// more than a resident stay (GpuExperts::adopt()). Copies, and the kernels that wait for them, are put into streams
// ahead; flags in pinned memory say what has come and which slot is free again. Used by the engine thread.
#pragma once

#include "cuda/device.h"
#include "cuda/run.h"
#include "scheduler/expert_speed.h"
#include "scheduler/gpu_experts.h"
#include "scheduler/handoff.h"
#include "scheduler/stream_queue.h"
#include "src/ops/plan.h"

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace thermocline::scheduler {

class ExpertStream {
public:
    /// Through the slots of the ring of `experts`; passes have up to `max_rows` rows. `cpu_helps`: what is not worth a
    /// transfer is left to the CPU. Throws Error if the card fails.
    ExpertStream(const ops::Plan& plan, cuda::Device& device, GpuExperts& experts, int64_t max_rows,
                 const ExpertSpeed& speed, bool cpu_helps);

    /// A layer whose job has come: `frame` plays it, its experts that are resident before.
    void begin(const Handoff& job, const cuda::Frame& frame);
    /// Sends as many as are to be on their way.
    void send();
    /// Experts that the CPU shall compute now; may be empty. Before the next call: cpu_took().
    std::span<const StreamQueue::Item> for_cpu();
    /// What they have really taken; later ones are expected to differ likewise.
    void cpu_took(double seconds);
    bool all_taken() const { return queue_.left().empty(); }
    /// The card counts those that came.
    void end();
    /// Whether all of that layer has come; to be called now and then.
    bool all_come();

    /// After a failure: nothing waits for anything any more. Returns whether the link is idle.
    bool release() noexcept;
    /// Until the link is. Throws Error if that takes longer.
    void wait(std::chrono::milliseconds patience) { link_->wait(patience); }
    int64_t sent() const { return sent_all_; }
    /// Seconds from the jobs of layers that sent any to the last arrival of each.
    double phase_seconds() const { return phase_seconds_; }

private:
    void send_next();
    int64_t on_their_way();
    double card_busy();

    const ops::Plan& plan_;
    GpuExperts& experts_;
    ExpertSpeed speed_;
    bool cpu_helps_;
    double cpu_factor_ = 1, expected_ = 0;  // of what the CPU takes; seconds of what it does now

    cuda::PinnedMemory host_;
    std::unique_ptr<cuda::Stream> link_;               // behind the memory of which its work is
    cuda::Flag *arrived_ = nullptr, *used_ = nullptr;  // [experts of a layer], by their turn
    float* multipliers_ = nullptr;                     // [experts of a layer, kMultipliers]
    int32_t *pairs_ = nullptr, *begin_ = nullptr;      // as cuda::ArrivedLists
    int32_t *numbers_ = nullptr, *taken_ = nullptr;    // as cuda::ArrivedLists; [experts of a layer]

    StreamQueue queue_;
    std::vector<StreamQueue::Item> items_;
    std::vector<int32_t> place_;  // of each expert in the queue
    const Handoff* job_ = nullptr;
    const cuda::Frame* frame_ = nullptr;
    int64_t sent_ = 0, come_ = 0, done_ = 0, most_flags_ = 0, sent_all_ = 0;
    std::chrono::steady_clock::time_point began_;
    bool phase_runs_ = false;
    double phase_seconds_ = 0;
    bool lists_there_ = false, numbers_there_ = false;
};

}  // namespace thermocline::scheduler
