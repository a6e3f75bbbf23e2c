// How a GpuExecutor lays out what it takes of a card, and how much that is: one stretch of memory with the weights, the
// workspace, the pages of sequences and the experts. Pure.
#pragma once

#include "cuda/run.h"
#include "cuda/run_logits.h"
#include "scheduler/executor.h"
#include "src/ops/plan.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace thermocline::scheduler {

inline constexpr int64_t kGraphRows = 32;  // passes of up to so many rows are played as recorded graphs

/// The block that goes to the card before a pass: small arrays at fixed places, then the views of the caches of every
/// segment, then the pages they point to. At null: only counts.
struct UploadLayout {
    int32_t *tokens, *segment_of, *output_rows;
    float* factors;  // [outputs] of Part
    int64_t* positions;
    cuda::Segment* segments;
    cuda::CacheView* caches;  // [segments, plan.caches]
    std::byte** pages;        // [page_count]
    int64_t bytes;

    UploadLayout(std::byte* at, const ops::Plan& plan, const ExecutorLimits& limits, int64_t page_count);
    /// Of passes within the limits.
    static int64_t most_bytes(const ops::Plan& plan, const ExecutorLimits& limits);
};

/// What lies on the card besides weights, pages and experts. At null: only counts.
struct WorkspaceLayout {
    std::vector<float*> slots, rotations;  // of the plan
    std::byte* upload;
    float* embeddings;  // [max_rows, embedding_width()]
    uint32_t* tickets;  // [cuda::kMostSiteRows]
    std::byte* scratch;
    int64_t scratch_bytes;
    uint16_t* expanded;         // [cuda::expanded_bytes()]
    cuda::PairsMemory pairs;    // only with experts
    cuda::LogitsMemory logits;  // of up to kGraphRows outputs
    int64_t bytes;

    WorkspaceLayout(std::byte* at, const ops::Plan& plan, const ExecutorLimits& limits, bool with_experts);
};

/// Everything, in this order.
struct CardBytes {
    int64_t weights, workspace, pages, experts;
    int64_t all() const { return weights + workspace + pages + experts; }
};
CardBytes card_bytes(const ops::Plan& plan, const ExecutorLimits& limits, int64_t sequences, int64_t expert_slots);

/// Of one sequence of `tokens` tokens.
int64_t gpu_sequence_bytes(const ops::Plan& plan, int64_t tokens);

/// Of the token embeddings, which stay with the host; null: the plan has none.
const quant::Matrix* embedding_table(const ops::Plan& plan);
int64_t embedding_width(const ops::Plan& plan);

}  // namespace thermocline::scheduler
