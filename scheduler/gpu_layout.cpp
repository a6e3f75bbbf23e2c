#include "scheduler/gpu_layout.h"

#include "cuda/library.h"
#include "memory/sequence_cache.h"
#include "scheduler/gpu_experts.h"
#include "scheduler/gpu_order.h"
#include "scheduler/gpu_weights.h"
#include "scheduler/stretch.h"

#include <algorithm>

namespace thermocline::scheduler {

namespace {

int64_t rows_of(const ops::SlotSpec& slot, const ExecutorLimits& limits) {
    return slot.rows == ops::Rows::kTokens ? limits.max_rows : limits.max_outputs;
}

}  // namespace

UploadLayout::UploadLayout(std::byte* at, const ops::Plan& plan, const ExecutorLimits& limits, int64_t page_count) {
    Stretch stretch(at);
    tokens = stretch.take<int32_t>(limits.max_rows);
    segment_of = stretch.take<int32_t>(limits.max_rows);
    output_rows = stretch.take<int32_t>(limits.max_outputs);
    factors = stretch.take<float>(limits.max_outputs);
    positions = stretch.take<int64_t>(limits.max_rows);
    segments = stretch.take<cuda::Segment>(limits.max_parts);
    caches = stretch.take<cuda::CacheView>(limits.max_parts * std::ssize(plan.caches));
    pages = stretch.take<std::byte*>(page_count);
    bytes = stretch.bytes();
}

int64_t UploadLayout::most_bytes(const ops::Plan& plan, const ExecutorLimits& limits) {
    int64_t pages = 0;
    for (const memory::PageCount& one : memory::page_counts(plan.caches, limits.max_tokens)) pages += one.pages;
    return UploadLayout(nullptr, plan, limits, limits.max_parts * pages).bytes;
}

WorkspaceLayout::WorkspaceLayout(std::byte* at, const ops::Plan& plan, const ExecutorLimits& limits,
                                 bool with_experts) {
    Stretch stretch(at);
    for (const ops::SlotSpec& slot : plan.slots)
        slots.push_back(stretch.take<float>(slot.cols * rows_of(slot, limits)));
    for (const ops::RopeTable& rope : plan.ropes)
        rotations.push_back(stretch.take<float>(rope.dims() * limits.max_rows));
    upload = stretch.take<std::byte>(UploadLayout::most_bytes(plan, limits));
    embeddings = stretch.take<float>(limits.max_rows * embedding_width(plan));
    tickets = stretch.take<uint32_t>(cuda::kMostSiteRows);
    scratch_bytes = std::max(cuda::scratch_bytes(plan, limits.max_rows, limits.max_outputs),
                             order_scratch_bytes(plan, std::min(limits.max_rows, kGraphRows)));
    scratch = stretch.take<std::byte>(scratch_bytes);
    expanded = reinterpret_cast<uint16_t*>(stretch.take<std::byte>(cuda::expanded_bytes(plan, limits.max_rows)));
    pairs = with_experts ? cuda::pairs_memory(plan, limits.max_rows,
                                              [&](int64_t count) { return stretch.take<std::byte>(count); })
                         : cuda::PairsMemory{};
    if (plan.logits != ops::kNone)
        logits = cuda::logits_memory(plan.vocab, std::min(limits.max_outputs, kGraphRows),
                                     [&](int64_t count) { return stretch.take<std::byte>(count); });
    bytes = stretch.bytes();
}

CardBytes card_bytes(const ops::Plan& plan, const ExecutorLimits& limits, int64_t sequences, int64_t expert_slots) {
    return {GpuWeights::bytes_of(plan), WorkspaceLayout(nullptr, plan, limits, expert_slots > 0).bytes,
            sequences * gpu_sequence_bytes(plan, limits.max_tokens), GpuExperts::bytes_of(plan, expert_slots)};
}

int64_t gpu_sequence_bytes(const ops::Plan& plan, int64_t tokens) {
    int64_t bytes = 0;
    for (const memory::PageCount& one : memory::page_counts(plan.caches, tokens))
        bytes += one.pages * cuda::aligned(one.page_bytes);
    return bytes;
}

const quant::Matrix* embedding_table(const ops::Plan& plan) {
    for (const ops::Step& step : plan.steps)
        if (const auto* embed = std::get_if<ops::Embed>(&step))
            return &plan.matrices[static_cast<size_t>(embed->table)].matrix;
    return nullptr;
}

int64_t embedding_width(const ops::Plan& plan) {
    const quant::Matrix* table = embedding_table(plan);
    return table == nullptr ? 0 : table->cols;
}

}  // namespace thermocline::scheduler
