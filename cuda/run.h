// Plays one step on a card: one overload per struct of src/ops/steps.h, which puts kernels into a stream and returns.
// Steps and shapes that no kernel takes are found before, by why_not(). Grids depend on the number of rows alone, never
// on positions: a recorded graph stays valid while a sequence grows.
#pragma once

#include "cuda/device.h"
#include "cuda/variants.h"
#include "src/ops/plan.h"

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace thermocline::cuda {

/// The weights of a plan in the memory of a card, by the ids of the plan.
struct Weights {
    std::vector<quant::Matrix> matrices;  // one slice each; data null: not here
    std::vector<const float*> vectors;
    std::vector<const int32_t*> tables;
    std::vector<const float*> rope_frequencies;  // [dims / 2]
};

/// ops::CacheView in the memory of a card.
struct CacheView {
    std::byte* const* pages;
    int64_t page_rows, row_bytes, ring_rows;

    GPU_CODE std::byte* row(int64_t index) const {
        if (ring_rows > 0) index %= ring_rows;
        return pages[index / page_rows] + index % page_rows * row_bytes;
    }
};

struct Segment {
    int32_t first_row, rows;
    int64_t position;  // of first_row
};

/// ops::Batch in the memory of a card.
struct Batch {
    const int32_t* tokens;       // [rows]
    const int64_t* positions;    // [rows]
    const int32_t* segment_of;   // [rows]
    const Segment* segments;     // [segments]
    const CacheView* caches;     // [segments, plan.caches]
    const int32_t* output_rows;  // [outputs]
    int64_t rows, outputs, segment_count, cache_count;
};

/// Pairs of rows and experts, sorted by expert: those whose experts lie on the card. Memory of the card.
struct PairLists {
    int32_t* slots;  // [experts or pairs] where each expert lies that has pairs, in ascending order of experts
    int32_t* begin;  // [the same + 1] first of its pairs
    int32_t* pairs;  // [pairs] ascending within an expert
    int32_t* count;  // [2] experts that have pairs here; pairs whose experts are elsewhere
    int32_t* taken;  // [experts] where each expert is computed in this pass; -1: elsewhere
};

/// What experts take on either side, in any unit of time: those that are on the card and would make it the longer side
/// are left to the CPU, the ones with the fewest rows first (R2 of hybrid-engine.md 1.5).
struct Balance {
    float card_expert = 0;               // 0: all that are here are computed here
    float card_rest = 0;                 // what else the card does meanwhile
    float cpu_expert = 0, cpu_pair = 0;  // of an expert the larger one: its weights, its rows
    float cpu_rest = 0;                  // of a job, whatever is in it
    int32_t core = 0;                    // experts in slots before this one are not left: the CPU has them not
};

/// Pairs of experts that come in the course of a pass, through a ring of slots; memory of the card.
inline constexpr int kMostRing = 96;
struct ArrivedLists {
    int32_t* numbers;  // [kSlotNumbers + slots] count of every list, 1 and 0; then 0, 1, 2, ...
    int32_t* begin;    // [experts + 1] first pair of each, in the order of their coming
    int32_t* pairs;    // [pairs]

    static constexpr int kSlotNumbers = 2;  // where the numbers of slots begin: of all experts and kMostRing more
};

inline constexpr int kMultipliers = 4;  // of a slot: of w1, w3, w2; one is not used

/// The experts of one set that lie on a card: each in a slot, w1, w3 and w2 at the same places in all.
struct ExpertSlots {
    quant::Matrix w1, w3, w2;            // in slot 0; their multipliers do not count
    int64_t slot_bytes = 0;              // from one slot to the next
    const int32_t* slot_of = nullptr;    // [experts] -1: not here; null: none of the set is
    const float* multipliers = nullptr;  // [slots, kMultipliers] of w1, w3, w2
};

/// What the experts that lie on a card need besides scratch memory, from a job to the sum.
struct PairsMemory {
    PairLists lists;
    uint16_t *x, *h;  // vectors for w1 and w3, for w2
    float* sums;      // of pairs: gate and up, then what w2 makes
    float* arrived;   // of rows: gate and up of one expert (run_arrived())
    ArrivedLists arrived_lists;
};

struct LibraryProducts;  // library.h

/// Everything a step may touch, in the memory of the card unless said otherwise.
struct Frame {
    const ops::Plan& plan;   // of the host
    const Weights& weights;  // the vectors of the host
    Batch batch;
    float* const* slots;      // host array of [plan.slots], each [rows, cols]
    float* const* rotations;  // host array of [plan.ropes], each [rows, dims]
    const float* embeddings;  // [rows, embedding width], copied in before
    std::byte* scratch;       // [scratch_bytes()]
    Stream& stream;
    const ExpertSlots* expert_slots = nullptr;  // host array of [plan.experts]; null: no expert lies here
    PairsMemory pairs = {};
    uint32_t* tickets = nullptr;  // [kMostSiteRows of fused.h], 0 between kernels; null: no fused sites
    Variants variants = {};
    Balance balance = {};
    const LibraryProducts* library = nullptr;  // of the host; null: all by kernels
    bool batch_invariant = false;  // what a row gives does not depend on the rows beside it, in any bit: one kernel and
                                   // one order of adding for any number of rows, without `library`

    float* slot(ops::Slot id) const { return slots[static_cast<size_t>(id)]; }
    int64_t cols(ops::Slot id) const { return plan.slots[static_cast<size_t>(id)].cols; }
    int64_t rows(ops::Slot id) const {
        return plan.slots[static_cast<size_t>(id)].rows == ops::Rows::kTokens ? batch.rows : batch.outputs;
    }
    const float* vector(ops::VectorId id) const {
        return id == ops::kNone ? nullptr : weights.vectors[static_cast<size_t>(id)];
    }
};

/// Why no kernel plays this step, in a clause; empty: one does. Of experts: those that lie here.
std::string why_not(const ops::Plan& plan, const ops::Step& step);

/// Bytes of scratch that one step needs for so many rows, rounded up so that others may lie behind.
int64_t step_scratch_bytes(const ops::Plan& plan, const ops::Step& step, int64_t max_rows, int64_t max_outputs);
/// Bytes of scratch that the steps of `plan` need, one after the other, for batches of `max_rows` rows.
int64_t scratch_bytes(const ops::Plan& plan, int64_t max_rows, int64_t max_outputs);

/// Rotation tables of the batch, before the first step.
void rotations(const Frame& frame);

/// How a Linear wants its input, which prepare() writes to scratch; steps that want the same of the same slot may share
/// it.
struct InputForm {
    int pieces = 0;        // of bf16 per number; 0: float32
    bool rounded = false;  // to e4m3
    int64_t width = 0;     // of a vector
    bool any = false;      // false: the slot as it is
    bool codes = false;    // bytes of e4m3 and their scales

    bool operator==(const InputForm&) const = default;
};
InputForm input_form(const ops::Linear&, const Frame&);
/// The two halves of a Linear: its input to frame.scratch, and the product of what lies there.
void prepare(const ops::Linear&, const Frame&);
void multiply(const ops::Linear&, const Frame&);

void run(const ops::Embed&, const Frame&);
void run(const ops::Linear&, const Frame&);
void run(const ops::RmsNorm&, const Frame&);
void run(const ops::Rope&, const Frame&);
void run(const ops::HyperIn&, const Frame&);
void run(const ops::HyperOut&, const Frame&);
void run(const ops::HyperHead&, const Frame&);
void run(const ops::RoundKv&, const Frame&);
void run(const ops::Compress&, const Frame&);
void run(const ops::SelectEntries&, const Frame&);
void run(const ops::Attention&, const Frame&);
void run(const ops::StoreWindow&, const Frame&);
void run(const ops::Route&, const Frame&);
/// The experts that lie here; sum_experts() fetches what they made.
void run(const ops::Experts&, const Frame&);
void run(const ops::SwiGlu&, const Frame&);
void run(const ops::Add&, const Frame&);
void run(const ops::TakeRows&, const Frame&);

/// Where the job of one Experts step goes, in pinned memory of the host.
struct HostJob {
    float* x;          // [rows, hidden]
    int32_t* ids;      // [rows, top_k] -1: of the card
    float* weights;    // [rows, top_k]
    int32_t* chosen;   // [rows, top_k] all
    Flag *job, *done;  // raised by the card (kJob or kNothingToDo), by the CPU
};

/// Raises a flag after all that came before in the stream.
void raise_flag(Stream& stream, Flag* flag);

/// Tells the host what a Route has chosen; `host` in pinned memory, [rows * top_k], read number by number.
void send_early(const ops::Route&, const Frame&, int32_t* host);

/// Divides the pairs of rows and experts between card and CPU, sends the CPU its job and raises the flag.
void send_job(const ops::Experts&, const Frame&, const HostJob&);

/// One more expert, in `slot`, with the `pairs` pairs of list `number`. Comes after run() and before
/// sum_experts(), which counts it if pairs.lists.taken says so.
void run_arrived(const ops::Experts&, const Frame&, int64_t number, int32_t slot, int64_t pairs);

/// out = `host`, what the CPU made of its pairs, [rows, cols of out] + what the card made of the others + shared
/// (kNone: nothing). Comes after run() and, in the stream, after the CPU's flag.
void sum_experts(const ops::Experts&, const Frame&, const float* host, ops::Slot shared, ops::Slot out);

/// For batches of up to `max_rows` rows; take(bytes) gives memory of the card.
PairsMemory pairs_memory(const ops::Plan& plan, int64_t max_rows, const std::function<std::byte*(int64_t)>& take);

}  // namespace thermocline::cuda
