#include "scheduler/gpu_order.h"

#include "src/base/check.h"

#include <algorithm>

namespace thermocline::scheduler {

namespace {

constexpr int64_t kScratchUnit = 256;

int64_t whole_units(int64_t bytes) { return (bytes + kScratchUnit - 1) / kScratchUnit * kScratchUnit; }

cuda::Frame frame_with(const cuda::Frame& f, std::byte* scratch, cuda::Stream& stream) {
    return {f.plan,         f.weights, f.batch,   f.slots,    f.rotations, f.embeddings, scratch,          stream,
            f.expert_slots, f.pairs,   f.tickets, f.variants, f.balance,   f.library,    f.batch_invariant};
}

}  // namespace

int64_t order_scratch_bytes(const ops::Plan& plan, int64_t rows) {
    int64_t most = 0, bytes = 0;
    for (const Group& group : group_steps(plan)) {
        for (int32_t i = group.first; i < group.first + group.count; ++i) {
            const ops::Step& step = plan.steps[static_cast<size_t>(i)];
            if (std::holds_alternative<ops::Experts>(step)) bytes = 0;
            bytes += cuda::step_scratch_bytes(plan, step, rows, rows);
        }
        if (const auto* site = std::get_if<cuda::SiteSteps>(&group.fused))
            bytes += whole_units(cuda::site_scratch_bytes(plan, *site, std::min(rows, cuda::kMostSiteRows)));
        most = std::max(most, bytes);
    }
    return 2 * most;  // what is played between two waits is of two such stretches at most
}

GpuOrder::GpuOrder(const cuda::Frame& frame, int64_t scratch_bytes)
    : scratch_(frame.scratch),
      scratch_bytes_(scratch_bytes),
      waves_(frame.stream),
      frame_(frame_with(frame, frame.scratch, waves_)),
      slots_(frame.plan.slots.size()),
      caches_(frame.plan.caches.size()) {}

void GpuOrder::flush() {
    waves_.flush();
    std::fill(slots_.begin(), slots_.end(), LastUse());
    std::fill(caches_.begin(), caches_.end(), LastUse());
    prepared_.clear();
    scratch_used_ = 0;
}

cuda::Frame GpuOrder::with_scratch(std::byte* scratch) const { return frame_with(frame_, scratch, frame_.stream); }

int64_t GpuOrder::scratch_of(const ops::Step& step) const {
    return cuda::step_scratch_bytes(frame_.plan, step, frame_.batch.rows, frame_.batch.outputs);
}

/// Scratch that nobody else uses until the next flush(), aligned to kScratchUnit.
std::byte* GpuOrder::take_scratch(int64_t bytes) {
    bytes = whole_units(bytes);
    if (scratch_used_ + bytes > scratch_bytes_) flush();
    CHECK(bytes <= scratch_bytes_);
    std::byte* taken = scratch_ == nullptr ? nullptr : scratch_ + scratch_used_;  // null: launches are only counted
    scratch_used_ += bytes;
    return taken;
}

/// The first level at which all that `uses` needs is there and all that it overwrites has been read.
int GpuOrder::first_level(const ops::Uses& uses) const {
    int level = 0;
    const auto after_writes = [&](const std::vector<LastUse>& of, int32_t id) {
        if (id != ops::kNone) level = std::max(level, of[static_cast<size_t>(id)].written + 1);
    };
    const auto after_all = [&](const std::vector<LastUse>& of, int32_t id) {
        after_writes(of, id);
        if (id != ops::kNone) level = std::max(level, of[static_cast<size_t>(id)].read + 1);
    };
    for (const ops::Slot id : uses.reads) after_writes(slots_, id);
    for (const ops::CacheId id : uses.cache_reads) after_writes(caches_, id);
    for (const ops::Slot id : uses.writes) after_all(slots_, id);
    for (const ops::CacheId id : uses.cache_writes) after_all(caches_, id);
    return level;
}

/// Levels [first, last] are busy with `uses`.
void GpuOrder::note(const ops::Uses& uses, int first, int last) {
    if (last < first) return;
    const auto later = [&](std::vector<LastUse>& of, int32_t id, int LastUse::*use) {
        if (id == ops::kNone) return;
        int& level = of[static_cast<size_t>(id)].*use;
        level = std::max(level, last);
    };
    for (const ops::Slot id : uses.reads) later(slots_, id, &LastUse::read);
    for (const ops::CacheId id : uses.cache_reads) later(caches_, id, &LastUse::read);
    for (const ops::CacheId id : uses.cache_writes) later(caches_, id, &LastUse::written);
    for (const ops::Slot id : uses.writes) {
        later(slots_, id, &LastUse::written);
        std::erase_if(prepared_, [&](const Prepared& one) { return id != ops::kNone && one.slot == id; });
    }
}

void GpuOrder::play_as(const ops::Uses& uses, const std::function<void(const cuda::Frame&)>& launch) {
    const int first = first_level(uses);
    waves_.begin(first);
    launch(frame_);
    note(uses, first, waves_.level() - 1);
}

const GpuOrder::Prepared& GpuOrder::prepared(const ops::Linear& step) {
    const cuda::InputForm form = cuda::input_form(step, frame_);
    for (const Prepared& one : prepared_)
        if (one.slot == step.in && one.form == form) return one;
    std::byte* scratch = form.any ? take_scratch(scratch_of(step)) : nullptr;
    const ops::Uses uses = {.reads = {step.in, ops::kNone, ops::kNone, ops::kNone}};
    const int first = first_level(uses);
    waves_.begin(first);
    cuda::prepare(step, with_scratch(scratch));
    note(uses, first, waves_.level() - 1);
    prepared_.push_back({step.in, form, scratch, waves_.level()});
    return prepared_.back();
}

void GpuOrder::play_linear(const ops::Linear& step) {
    const Prepared input = prepared(step);
    const ops::Uses uses = ops::uses_of(step);
    const int first = std::max(first_level(uses), input.level);
    waves_.begin(first);
    cuda::multiply(step, with_scratch(input.at));
    note(uses, first, waves_.level() - 1);
}

void GpuOrder::play(const ops::Step& step) {
    if (const auto* linear = std::get_if<ops::Linear>(&step)) return play_linear(*linear);
    std::byte* scratch = take_scratch(scratch_of(step));
    const ops::Uses uses = ops::uses_of(step);
    play_as(uses, [&](const cuda::Frame&) {
        const cuda::Frame own = with_scratch(scratch);
        std::visit([&](const auto& one) { cuda::run(one, own); }, step);
    });
}

void GpuOrder::play(const Group& group) {
    const std::vector<ops::Step>& steps = frame_.plan.steps;
    const auto first = steps.begin() + group.first;
    if (const auto* vectors = std::get_if<cuda::VectorSteps>(&group.fused)) {
        play_as(uses_of(*vectors), [&](const cuda::Frame& f) { cuda::run(*vectors, f); });
        return;
    }
    const auto* site = std::get_if<cuda::SiteSteps>(&group.fused);
    if (site != nullptr && frame_.batch.rows <= cuda::kMostSiteRows && !frame_.batch_invariant) {
        std::byte* scratch = take_scratch(cuda::site_scratch_bytes(frame_.plan, *site, frame_.batch.rows));
        play_as(uses_of(*site), [&](const cuda::Frame&) { cuda::run(*site, with_scratch(scratch)); });
        return;
    }
    std::for_each(first, first + group.count, [&](const ops::Step& step) { play(step); });
}

}  // namespace thermocline::scheduler
