// Plays one step on a card: one overload per struct of src/ops/steps.h, which puts kernels into a stream and returns.
// Steps and shapes that no kernel takes are found before, by why_not(). Grids depend on the number of rows alone, never
// on positions: a recorded graph stays valid while a sequence grows.
#pragma once

#include "cuda/device.h"
#include "src/ops/plan.h"

#include <cstdint>
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

    float* slot(ops::Slot id) const { return slots[static_cast<size_t>(id)]; }
    int64_t cols(ops::Slot id) const { return plan.slots[static_cast<size_t>(id)].cols; }
    int64_t rows(ops::Slot id) const {
        return plan.slots[static_cast<size_t>(id)].rows == ops::Rows::kTokens ? batch.rows : batch.outputs;
    }
    const float* vector(ops::VectorId id) const {
        return id == ops::kNone ? nullptr : weights.vectors[static_cast<size_t>(id)];
    }
};

/// Why no kernel plays this step, in a clause; empty: one does. Experts are the business of the scheduler.
std::string why_not(const ops::Plan& plan, const ops::Step& step);

/// Bytes of scratch that the steps of `plan` need for batches of `max_rows` rows.
int64_t scratch_bytes(const ops::Plan& plan, int64_t max_rows, int64_t max_outputs);

/// Rotation tables of the batch, before the first step.
void rotations(const Frame& frame);

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
[[noreturn]] void run(const ops::Experts&, const Frame&);  // CHECKs: why_not() said so
void run(const ops::SwiGlu&, const Frame&);
void run(const ops::Add&, const Frame&);
void run(const ops::TakeRows&, const Frame&);

}  // namespace thermocline::cuda
