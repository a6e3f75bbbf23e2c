// Routed experts in the memory of a card: slots of one size, each with w1, w3 and w2 of an expert, and the tables by
// which kernels find them. The experts of all layers share the slots. Between passes slots may get other experts
// (residency.h): an expert is forgotten before its slot is written, and known only when all of it is there, so that
// what a pass computes never depends on a transfer. Some slots form a ring, through which others pass in prompts
// (expert_stream.h); which ones changes as such an expert stays. Used by the engine thread.
#pragma once

#include "cuda/device.h"
#include "cuda/run.h"
#include "cuda/weights.h"
#include "memory/packed_weights.h"
#include "scheduler/executor.h"
#include "scheduler/placement.h"
#include "scheduler/residency.h"
#include "scheduler/residency_trial.h"
#include "src/ops/plan.h"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace thermocline::scheduler {

class GpuExperts {
public:
    /// Copies `experts` to `at` of the card, bytes_of() bytes. With rules other than static they change; the weights
    /// that `plan` shows should be pinned then. Throws Error if the card fails. CHECKs that they may lie there
    /// (why_not()) and that none is named twice.
    /// Unless all of them are there, they can be exchanged by order() whatever the rules, but for the first rules.core,
    /// which always take part. `packed`: as for upload().
    GpuExperts(const ops::Plan& plan, cuda::Device& device, std::span<const ExpertName> experts, std::byte* at,
               const ResidencyRules& rules, memory::PackedWeights* packed = nullptr);

    /// Host array of [plan.experts], the same for life; null: there are none on the card, or those that are there take
    /// no part in this pass.
    const cuda::ExpertSlots* on_card() const { return used_ && !slots_.empty() ? slots_.data() : nullptr; }
    int64_t movable_slots() const { return residency_ ? resident_count_ - core_ : 0; }
    int64_t core() const { return core_; }
    void order(const ExpertOrders& orders);

    /// Before a pass, nothing of an earlier one being under way: experts that have come are known from here on in
    /// `stream`.
    void begin_pass(cuda::Stream& stream, int64_t rows, bool is_prompt);
    /// This pass is played without them, tried or not: it says nothing of what they are worth.
    void leave_out() { used_ = false, left_out_ = true; }
    /// Whether they are tried in this pass.
    bool trying() const { return tries_ && (is_prompt_ ? prompts_ : decode_).under_way(); }
    /// What one set's rows chose: [rows * top_k].
    void note(ops::ExpertsId set, std::span<const int32_t> ids);
    /// After a pass that took so long: brings experts to the card, as many as its link carries in a part of that time.
    void end_pass(std::chrono::duration<double> took);

    int64_t slots() const { return slot_count_; }
    int64_t ring() const { return std::ssize(ring_); }
    /// Where the expert comes that is the `turn`-th of its layer.
    int32_t ring_slot(int64_t turn) const { return ring_[static_cast<size_t>(turn % ring())]; }
    /// Appends the copies that bring an expert into such a slot; `multipliers`: pinned, [cuda::kMultipliers].
    void place(ExpertName name, int32_t slot, float* multipliers, std::vector<cuda::Copy>& copies) const;
    /// One that was placed as the `turn`-th of its layer stays after this pass if it is worth more than one of its
    /// layer, whose slot becomes one of the ring: nobody reads it any more when its turn comes again.
    void adopt(ExpertName name, int64_t turn);
    /// Residency::likely().
    std::vector<double> likely(ops::ExpertsId set, double pairs) const {
        return residency_ ? residency_->likely(set, pairs)
                          : std::vector<double>(plan_.experts[static_cast<size_t>(set)].w1.size());
    }
    /// Of a resident in this pass; -1: it is none.
    int32_t slot_of(ExpertName name) const { return host_slot_of_[static_cast<size_t>(name.set)][name.expert]; }
    /// What an expert takes over the link; 0: not known.
    double link_seconds() const { return seconds_per_expert_; }

    const ResidencyCounters& counters() const { return counters_; }
    /// Known to be on the card.
    std::vector<ExpertName> resident() const;
    /// Whether the memory of the host has it.
    bool on_host(ExpertName name) const { return slots_.empty() || slot_of(name) < 0 || slot_of(name) >= core_; }

    /// Why the experts of `plan` cannot lie on a card, in a clause; empty: they can.
    static std::string why_not(const ops::Plan& plan);
    /// Of one expert of any layer; 0: the plan has none.
    static int64_t slot_bytes(const ops::Plan& plan);
    /// Of `count` slots and the tables; 0 for none.
    static int64_t bytes_of(const ops::Plan& plan, int64_t count);
    /// The most slots that `bytes` have room for, at most as many as there are experts.
    static int64_t slots_in(const ops::Plan& plan, int64_t bytes);

private:
    /// Writes an expert into a slot, but for its entry in the table.
    void put(ExpertName name, int32_t slot, float* multipliers, std::vector<cuda::Copy>& copies) const;
    float* host_multipliers(int32_t slot) const { return host_multipliers_ + int64_t{slot} * cuda::kMultipliers; }
    void measure_link(std::span<const ExpertName> experts);
    void tell(const char* what, const ResidencyTrial& trial) const;
    void settle();
    int32_t& host_slot_of(ExpertName name) { return host_slot_of_[static_cast<size_t>(name.set)][name.expert]; }

    const ops::Plan& plan_;
    std::byte* at_;  // the slots, then the tables
    int64_t resident_count_, core_, slot_count_, slot_bytes_;
    std::vector<cuda::ExpertSlots> slots_;

    // Tables as they are to be on the card, in pinned memory.
    cuda::PinnedMemory tables_;
    float* host_multipliers_ = nullptr;   // [slots, cuda::kMultipliers]
    float* card_multipliers_ = nullptr;   // likewise, on the card
    std::vector<int32_t*> host_slot_of_;  // of each set, [experts]
    bool tables_changed_ = false;

    std::vector<int32_t> at_slot_;        // [residents] where each of those that residency_ counts lies
    std::vector<int32_t> ring_;           // the other slots
    std::optional<Residency> residency_;  // nothing: all are there
    ResidencyTrial decode_, prompts_;
    bool tries_, is_prompt_ = false, used_ = true, left_out_ = false;  // in this pass
    std::unique_ptr<cuda::Stream> fill_;
    std::vector<Residency::Change> coming_, adopted_;  // adopted_: in this pass
    double seconds_per_expert_ = 0;                    // of a transfer
    double credit_ = 0;                                // experts that may be brought
    ResidencyCounters counters_;
};

}  // namespace thermocline::scheduler
