// Where the bytes of host memory go, as gpu_memory.h says it of a card: lines for all but the routed experts, and what
// they leave for those. Pure; plan, place and the loader ask here.
#pragma once

#include "scheduler/expert_tiers.h"
#include "scheduler/gpu_memory.h"
#include "src/ops/plan.h"

#include <cstdint>
#include <string>
#include <vector>

namespace thermocline::scheduler {

struct HostMemoryWishes {
    int64_t budget_bytes = 0;
    bool is_asked =
        false;  // by --host-memory: all of it is for this program. Else it is what a machine has, or has free
    bool on_card = false;                            // dense weights, activations and caches are
    bool draft_on_card = false;                      // its dense weights are
    int64_t context = 0, sequences = 1, rows = 512;  // of a pass
    int64_t kv_bytes = 0;                            // of all caches; 0: what the sequences may need
    int64_t prefix_bytes = 0;                        // of the prefix cache, where it was asked for
};

struct HostMemoryPlan {
    int64_t budget_bytes = 0;
    std::vector<GpuMemoryLine> lines;  // all but the routed experts of the trunk; first what depends on the budget
    int64_t experts = 0, expert_bytes = 0, all_expert_bytes = 0;
    int64_t other_weight_bytes = 0;  // of these lines, those of weights

    int64_t fixed_bytes() const;
    /// Experts that there is room for.
    int64_t room() const;
    /// Of so many of them.
    int64_t bytes_of(int64_t count) const { return count == experts ? all_expert_bytes : count * expert_bytes; }
    /// The least budget to ask for with room for so many.
    int64_t budget_for(int64_t count) const;
    /// The first line that does not fit, and what to change; empty: all do.
    std::string refusal() const;
};

/// `draft`: the plan of the draft head, or null: it is held whole.
HostMemoryPlan plan_host_memory(const ops::Plan& trunk, const ops::Plan* draft, const HostMemoryWishes& wishes);

/// Throws Error if the weights in host memory, of so many of the trunk's experts and all else, take more or less than
/// the plan says by over 2 %: a defect of this program, whose tables nobody could trust.
void check_weights(const HostMemoryPlan& plan, int64_t experts, int64_t loaded_bytes);

/// Of a budget that was asked for: what of it is for buffers, and for the prefix cache if its size was not said.
int64_t buffer_bytes(int64_t budget_bytes);

}  // namespace thermocline::scheduler
