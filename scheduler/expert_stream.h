// Experts that pass through a ring of slots of a card while a prompt is computed: for each layer the hottest of those
// that are not resident come over the link, while the CPU computes the coldest (stream_queue.h). Those that are worth
// more than a resident stay (GpuExperts::adopt()). Before a layer's job is known, while the card is still busy with
// what comes before it, experts come that it is all but sure to choose. Copies, and the kernels that wait for them, are
// put into streams ahead; flags in pinned memory say what has come and which slot is free again. Used by the engine
// thread.
#pragma once

#include "cuda/device.h"
#include "cuda/hung.h"
#include "cuda/run.h"
#include "scheduler/expert_speed.h"
#include "scheduler/gpu_experts.h"
#include "scheduler/handoff.h"
#include "scheduler/stream_queue.h"
#include "src/ops/batch.h"
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

    /// A pass that `frame` plays; both must outlive it.
    void begin_pass(const cuda::Frame& frame, const ops::Batch& batch);
    /// While the next job, that of `step`, has not come: sends what it is all but sure to want.
    void run_ahead(const ops::Experts& step);
    /// A layer whose job has come: the frame plays it, its experts that are resident before.
    void begin(const Handoff& job);
    /// Sends as many as are to be on their way.
    void send();
    /// Experts that the CPU shall compute now; may be empty. Before the next call: cpu_took().
    std::span<const StreamQueue::Item> for_cpu();
    /// What they have really taken; later ones are expected to differ likewise.
    void cpu_took(double seconds);
    bool all_taken() const { return queue_.left().empty(); }
    /// Grows with every expert that comes or is done with, as far as send() and for_cpu() have seen.
    int64_t progress() const { return come_ + done_; }
    /// The card counts those that came.
    void end();
    /// Whether all that was sent has come; to be called now and then.
    bool all_come() { return on_their_way() == 0; }
    /// After a pass.
    void end_pass();

    /// After a failure: nothing waits for anything any more. Returns whether the link is idle.
    bool release() noexcept;
    /// Whether it is in so long. Throws Error if the card is lost.
    bool ends_within(std::chrono::milliseconds limit) { return cuda::ends_within(*link_, limit); }
    int64_t sent() const { return sent_all_; }
    /// Of these before their layer's job was known, and those of them that nobody had chosen then.
    int64_t sent_ahead() const { return ahead_all_; }
    int64_t sent_in_vain() const { return vain_all_; }
    /// Seconds of passes from the first of these to the last arrival.
    double phase_seconds() const { return phase_seconds_; }

private:
    StreamCosts costs() const;
    void expect(const ops::Experts& step);
    int64_t send(ExpertName name);
    void use(int64_t transfer, const StreamQueue::Item& item, int64_t list);
    int64_t on_their_way();
    double card_busy();

    const ops::Plan& plan_;
    GpuExperts& experts_;
    ExpertSpeed speed_;
    bool cpu_helps_;
    double cpu_factor_ = 1, expected_ = 0;  // of what the CPU takes; seconds of what it does now
    std::vector<ops::TableId> tables_;      // [sets] of a router that chooses by token; else kNone

    cuda::PinnedMemory host_;
    std::unique_ptr<cuda::Stream> link_;               // behind the memory of which its work is
    cuda::Flag *arrived_ = nullptr, *used_ = nullptr;  // [transfers of a pass]
    cuda::Flag* begun_ = nullptr;                      // what the pass puts into the tables of experts is there
    float* multipliers_ = nullptr;                     // [transfers of a pass, kMultipliers]
    int32_t *pairs_ = nullptr, *begin_ = nullptr;      // as cuda::ArrivedLists
    int32_t *numbers_ = nullptr, *taken_ = nullptr;    // as cuda::ArrivedLists; [experts of a layer]

    StreamQueue queue_, ahead_;             // of the layer at hand; of the next one, as far as that can be known
    const ops::Experts* next_ = nullptr;    // whose experts ahead_ has
    std::vector<StreamQueue::Item> items_;  // [lists]
    std::vector<int32_t> place_;            // of each expert of a layer: pairs, then where the next one goes
    std::vector<double> likely_;            // scratch: pairs of each expert of a layer
    struct Transfer {
        ExpertName name;
        int32_t slot;
        int64_t pairs;  // 0: nobody waits for it, or it is not known who does
    };
    std::vector<Transfer> transfers_;  // of this pass
    const Handoff* job_ = nullptr;
    const cuda::Frame* frame_ = nullptr;
    const ops::Batch* batch_ = nullptr;
    size_t lists_ahead_ = 0;  // lists of the layer at hand whose experts were sent before
    int64_t most_transfers_ = 0, sent_ = 0, come_ = 0, done_ = 0, ahead_begin_ = 0;
    int64_t sent_all_ = 0, ahead_all_ = 0, vain_all_ = 0;
    std::chrono::steady_clock::time_point first_sent_, last_come_;
    double phase_seconds_ = 0;
    bool any_used_ = false, numbers_there_ = false;
};

}  // namespace thermocline::scheduler
