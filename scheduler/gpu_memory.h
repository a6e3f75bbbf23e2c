// Where every byte of a card goes, computed before anything is loaded (hybrid-engine.md 5.2): what a plan needs for a
// context, a number of sequences and a prompt chunk, line by line, and what is left for routed experts. A budget
// either holds all of it, so that no request can run out of memory later, or is refused with what to change. Pure
// functions of plans and numbers; weights, workspace and caches are counted by those who take them (gpu_weights.h,
// gpu_executor.h).
#pragma once

#include "src/ops/plan.h"

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

namespace thermocline::scheduler {

struct GpuMemoryWishes {
    int64_t budget_bytes = 0;  // of the card
    int64_t context = 0;       // tokens of one sequence
    int64_t sequences = 1;     // at once
    int64_t prefill_chunk = 512;
    int64_t least_prefill_chunk = 256;  // it may be shortened to this
    int64_t outputs = 32;               // rows of logits in a pass
    int64_t least_expert_slots = 0, most_expert_slots = std::numeric_limits<int64_t>::max();
    bool packed = true;  // weights will be, if they are not yet
};

/// What no plan tells: planning values of hybrid-engine.md 5.2 [A], until a card has been asked.
struct GpuMemoryReserve {
    int64_t runtime_bytes = 900'000'000;  // context of CUDA, code, graphs
    int64_t library_bytes = 100'000'000;  // workspaces of cuBLASLt and NCCL
    int64_t safety_per_mille = 15;        // of the budget
};

struct GpuMemoryLine {
    std::string name;
    int64_t bytes = 0;
    std::string detail;       // "8 sequences x 12.3 MB"; may be empty
    bool of_executor = true;  // else taken by the runtime, by libraries or by nobody
};

struct GpuMemoryPlan {
    int64_t budget_bytes = 0;
    std::vector<GpuMemoryLine> lines;  // all but the slots of experts
    int64_t slot_bytes = 0;            // of the largest expert as it is packed; 0: no routed experts
    int64_t experts = 0;               // of the model
    int64_t expert_slots = 0;          // that fit, at most `experts`
    int64_t unused_bytes = 0;
    int64_t prefill_chunk = 0;  // perhaps less than was wished
    bool draft_heads = false;
    std::vector<std::string> given_up;  // in a clause each, in the order of surrender
    std::string no_experts;             // empty: experts may lie on the card. Else why not, in a clause
    std::string refusal;                // empty: it fits. Else what does not, by how much, and the flag to change

    /// Of all lines.
    int64_t fixed_bytes() const;
    /// What a GpuExecutor takes: lines of weights, workspaces and caches, and the slots.
    int64_t executor_bytes() const;
};

/// `draft`: the plan of the draft head, or null. When the budget is short the draft head goes first, then the chunk is
/// halved; the context is never shortened silently. Throws Error if a wish is out of range.
GpuMemoryPlan plan_gpu_memory(const ops::Plan& trunk, const ops::Plan* draft, const GpuMemoryWishes& wishes,
                              const GpuMemoryReserve& reserve = {});

/// The least budget with room for wishes.least_expert_slots and all else that is wished, nothing given up.
int64_t least_gpu_budget(const ops::Plan& trunk, const ops::Plan* draft, const GpuMemoryWishes& wishes,
                         const GpuMemoryReserve& reserve = {});

/// Dense weights of a draft head that are not the trunk's.
int64_t draft_dense_bytes(const ops::Plan& trunk, const ops::Plan& draft);

/// For people; GB = 10^9 bytes.
std::string gpu_memory_text(const GpuMemoryPlan& plan);

/// Routed experts of all layers.
int64_t expert_count(const ops::Plan& plan);

/// Of `slots` that `experts` have on a card, those through which others pass in prompts (expert_stream.h); 0: there is
/// no room for any, or no need.
int64_t ring_slots(int64_t slots, int64_t experts);
inline constexpr int64_t kLeastStreamed = 8;  ///< slots with which there is a ring

/// Of the largest routed expert: w1, w2 and w3 packed, in one piece. 0: there are none.
int64_t expert_slot_bytes(const ops::Plan& plan);

/// What one sequence keeps on a card, in whole pages (memory/sequence_cache.h); together gpu_sequence_bytes().
struct KvUse {
    int64_t bytes = 0, pages = 0;
};
struct SequenceKv {
    KvUse windows, entries, keys, states;
    int64_t bytes() const { return windows.bytes + entries.bytes + keys.bytes + states.bytes; }
};
SequenceKv sequence_kv(const ops::Plan& plan, int64_t tokens);

}  // namespace thermocline::scheduler
