// Plays one step on the CPU: one overload per struct of src/ops/steps.h, so any model runs here and a missing
// overload is a compile error. Results do not depend on the number of workers, on the split of a batch into
// segments, nor on which other rows are in the batch.
#pragma once

#include "cpu/kernels.h"
#include "cpu/workers.h"
#include "src/ops/batch.h"
#include "src/ops/plan.h"

#include <cstdint>
#include <span>

namespace thermocline::cpu {

/// Everything a step may touch. Slots and scratch belong to the executor; nothing is allocated while a step runs.
struct Frame {
    const ops::Plan& plan;
    const ops::Batch& batch;
    float* const* slots;            // [plan.slots], each [rows, cols]
    const float* const* rotations;  // [plan.ropes], each [batch rows, dims]: cos, sin of pair i at 2i, 2i + 1
    std::span<float> shared;        // scratch of the whole step
    std::span<float> per_worker;    // scratch of each worker, workers.count() parts of equal size
    Workers& workers;
    const KernelTable& kernels;
    bool strips_first = false;  // workers share out every expert alike, so that each reads the same strips of any

    float* slot(ops::Slot id) const { return slots[static_cast<size_t>(id)]; }
    int64_t cols(ops::Slot id) const { return plan.slots[static_cast<size_t>(id)].cols; }
    int64_t rows(ops::Slot id) const {
        return plan.slots[static_cast<size_t>(id)].rows == ops::Rows::kTokens ? batch.rows() : batch.outputs();
    }
    /// Row t of a slot.
    float* row(ops::Slot id, int64_t t) const { return slot(id) + t * cols(id); }
    int32_t* int_row(ops::Slot id, int64_t t) const { return reinterpret_cast<int32_t*>(row(id, t)); }
    std::span<float> worker_scratch(int worker) const {
        const size_t each = per_worker.size() / static_cast<size_t>(workers.count());
        return per_worker.subspan(static_cast<size_t>(worker) * each, each);
    }
};

void run(const ops::Embed&, const Frame&) noexcept;
void run(const ops::Linear&, const Frame&) noexcept;
void run(const ops::RmsNorm&, const Frame&) noexcept;
void run(const ops::Rope&, const Frame&) noexcept;
void run(const ops::HyperIn&, const Frame&) noexcept;
void run(const ops::HyperOut&, const Frame&) noexcept;
void run(const ops::HyperHead&, const Frame&) noexcept;
void run(const ops::RoundKv&, const Frame&) noexcept;
void run(const ops::Compress&, const Frame&) noexcept;
void run(const ops::SelectEntries&, const Frame&) noexcept;
void run(const ops::Attention&, const Frame&) noexcept;
void run(const ops::StoreWindow&, const Frame&) noexcept;
void run(const ops::Route&, const Frame&) noexcept;
void run(const ops::Experts&, const Frame&) noexcept;
/// As run(), but adds to what the rows of `out` hold.
void add_experts(const ops::Experts&, const Frame&) noexcept;
void run(const ops::SwiGlu&, const Frame&) noexcept;
void run(const ops::Add&, const Frame&) noexcept;
void run(const ops::TakeRows&, const Frame&) noexcept;

/// Fills `out` [batch rows, dims] with cos and sin of the angles of every row (deepseek-v4.md 2.4: one float32
/// product of position and frequency, then exact trigonometry).
void rotations(const ops::RopeTable& rope, const ops::Batch& batch, float* out) noexcept;

/// Floats of scratch that the steps of `plan` need for batches of `max_rows` rows and sequences of `max_tokens`.
struct ScratchSize {
    int64_t shared = 0;
    int64_t per_worker = 0;
};
ScratchSize scratch_size(const ops::Plan& plan, int64_t max_rows, int64_t max_tokens);

}  // namespace thermocline::cpu
