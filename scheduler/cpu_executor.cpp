#include "scheduler/cpu_executor.h"

#include "src/base/check.h"
#include "src/base/thread.h"
#include "src/ops/cost.h"

#include <chrono>
#include <cstring>
#include <utility>

namespace thermocline::scheduler {

namespace {

constexpr int64_t kAlignFloats = 16;  // slots start on cache lines of their own

int64_t padded(int64_t floats) { return (floats + kAlignFloats - 1) / kAlignFloats * kAlignFloats; }

void play(const ops::Step& step, const cpu::Frame& frame) {
    std::visit([&](const auto& one) { cpu::run(one, frame); }, step);
}

void record_ranks(const ops::Route& route, const cpu::Frame& frame, std::vector<float>& ranks) {
    const float* scores = frame.row(route.logits, 0);  // the step has made them of the logits
    ranks.assign(scores, scores + frame.batch.rows() * route.experts);
    if (route.bias == ops::kNone) return;
    const std::vector<float>& bias = frame.plan.vectors[static_cast<size_t>(route.bias)].values;
    for (size_t i = 0; i < ranks.size(); ++i) ranks[i] += bias[i % bias.size()];
}

/// Until the next step is played.
std::span<const int32_t> foretell(const ops::Plan& plan, const ops::Foretelling& early, const cpu::Frame& frame) {
    const ops::Step *gate = &plan.steps[static_cast<size_t>(early.router)], *route = gate + 1;
    play(*gate, frame);
    play(*route, frame);
    const auto& chosen = std::get<ops::Route>(*route);
    return {frame.int_row(chosen.ids, 0), static_cast<size_t>(frame.batch.rows() * chosen.top_k)};
}

using Clock = std::chrono::steady_clock;

double seconds_between(Clock::time_point begin, Clock::time_point end) {
    return std::chrono::duration<double>(end - begin).count();
}

}  // namespace

CpuExecutor::CpuExecutor(const ops::Plan& plan, cpu::Workers& workers, const cpu::KernelTable& kernels,
                         ExecutorLimits limits, const PrefetchRules& prefetch)
    : plan_(plan), workers_(workers), kernels_(kernels), limits_(limits), rows_(limits) {
    if (prefetch.reads_file) reader_.emplace(plan_);
    if (prefetch.reads_file && prefetch.foretells) prefetch_.emplace(plan_, prefetch);
    const auto slot_floats = [&](const ops::SlotSpec& slot) {
        return padded(slot.cols * (slot.rows == ops::Rows::kTokens ? limits.max_rows : limits.max_outputs));
    };
    const cpu::ScratchSize scratch = cpu::scratch_size(plan, limits.max_rows, limits.max_tokens);
    const int64_t each = padded(scratch.per_worker);
    int64_t total = padded(scratch.shared) + each * workers.count();
    for (const ops::SlotSpec& slot : plan.slots) total += slot_floats(slot);
    for (const ops::RopeTable& rope : plan.ropes) total += padded(rope.dims() * limits.max_rows);

    storage_.emplace(static_cast<size_t>(total) * sizeof(float));
    auto* at = reinterpret_cast<float*>(storage_->bytes().data());
    const auto take = [&](int64_t floats) { return std::exchange(at, at + floats); };
    for (const ops::SlotSpec& slot : plan.slots) slots_.push_back(take(slot_floats(slot)));
    for (const ops::RopeTable& rope : plan.ropes) rotations_.push_back(take(padded(rope.dims() * limits.max_rows)));
    shared_ = {take(padded(scratch.shared)), static_cast<size_t>(padded(scratch.shared))};
    per_worker_ = {take(each * workers.count()), static_cast<size_t>(each * workers.count())};
}

std::unique_ptr<memory::SequenceCache> CpuExecutor::new_sequence() {
    return std::make_unique<memory::SequenceCache>(plan_.caches, limits_.max_tokens);
}

void CpuExecutor::play_timed(const cpu::Frame& frame) {
    const auto start = Clock::now();
    for (size_t i = 0; i < plan_.steps.size(); ++i) {
        const auto begin = Clock::now();
        play(plan_.steps[i], frame);
        profile_->add(i, seconds_between(begin, Clock::now()), ops::step_cost(plan_, plan_.steps[i], frame.batch));
    }
    profile_->add_pass(seconds_between(start, Clock::now()));
}

void CpuExecutor::play_steps(const cpu::Frame& frame) {
    size_t layer = 0;
    auto foretelling = plan_.foretold.begin();
    const bool foretells = prefetches_ || (routing_ != nullptr && routing_->wants_foretold);
    std::vector<int32_t> foretold;  // if it is to be recorded
    for (size_t i = 0; i < plan_.steps.size(); ++i) {
        play(plan_.steps[i], frame);
        if (foretells && foretelling != plan_.foretold.end() && static_cast<size_t>(foretelling->after) == i) {
            const std::span<const int32_t> ids = foretell(plan_, *foretelling++, frame);
            if (prefetches_ && prefetch_->known(layer, ids.data())) reader_->ask(layer, prefetch_->expected(layer));
            if (routing_ != nullptr && routing_->wants_foretold) foretold.assign(ids.begin(), ids.end());
        }
        const auto* route = std::get_if<ops::Route>(&plan_.steps[i]);
        if (route == nullptr) continue;
        const int32_t* ids = frame.int_row(route->ids, 0);  // layers share the slot: the next one writes over it
        const auto count = static_cast<size_t>(frame.batch.rows() * route->top_k);
        if (prefetches_) prefetch_->note(layer, {ids, count});
        if (reader_) reader_->ask(layer, {ids, count});
        if (routing_ != nullptr) record(*route, frame, layer, foretold);
        ++layer;
    }
}

void CpuExecutor::record(const ops::Route& route, const cpu::Frame& frame, size_t layer,
                         std::vector<int32_t>& foretold) {
    const int32_t* ids = frame.int_row(route.ids, 0);
    if (routing_->ids.size() == layer) routing_->ids.emplace_back();
    routing_->ids[layer].assign(ids, ids + frame.batch.rows() * route.top_k);
    if (routing_->wants_foretold) {
        routing_->foretold.resize(layer + 1);
        foretold.resize(routing_->ids[layer].size(), -1);  // nothing foretells it
        routing_->foretold[layer] = route.table != ops::kNone ? routing_->ids[layer] : foretold;
        foretold.clear();
    }
    if (!routing_->wants_ranks) return;
    if (routing_->ranks.size() == layer) routing_->ranks.emplace_back();
    record_ranks(route, frame, routing_->ranks[layer]);
}

void CpuExecutor::forward(std::span<const Part> parts, const float* streams_in) {
    const Pinned pinned(workers_.first_cpu());  // worker 0 is this thread
    const ops::Batch batch = rows_.gather(parts);
    if (streams_in != nullptr) {
        const int64_t width = plan_.slots[static_cast<size_t>(plan_.streams)].cols;
        std::memcpy(slots_[static_cast<size_t>(plan_.streams)], streams_in,
                    sizeof(float) * static_cast<size_t>(batch.rows() * width));
    }
    for (size_t i = 0; i < plan_.ropes.size(); ++i) cpu::rotations(plan_.ropes[i], batch, rotations_[i]);
    const cpu::Frame frame{plan_, batch, slots_.data(), rotations_.data(), shared_, per_worker_, workers_, kernels_};
    const auto began = Clock::now();
    const bool may_prefetch = prefetch_ && batch.rows() <= kPrefetchRows && profile_ == nullptr;
    if (reader_) reader_->begin_pass();
    prefetches_ = may_prefetch && prefetch_->begin_pass(batch.tokens, true);
    for (size_t i = 0; prefetches_ && i < prefetch_->layers().size(); ++i)  // what goes by token is known at once
        if (prefetch_->known(i, nullptr)) reader_->ask(i, prefetch_->expected(i));
    if (profile_ != nullptr)
        play_timed(frame);
    else
        play_steps(frame);
    if (may_prefetch) prefetch_->end_pass(Clock::now() - began);
    for (const Part& part : parts) part.sequence->advance(static_cast<int64_t>(part.tokens.size()));
    last_cost_ = ops::plan_cost(plan_, batch);
}

ResidencyCounters CpuExecutor::residency() const {
    ResidencyCounters counters;
    if (prefetch_) counters.prefetched = prefetch_->counters();
    if (reader_) counters.asked_bytes = reader_->bytes();
    return counters;
}

const float* CpuExecutor::logits(int64_t output) const {
    CHECK(output >= 0 && output < rows_.outputs());
    return slots_[static_cast<size_t>(plan_.logits)] + output * plan_.vocab;
}

const float* CpuExecutor::streams(int64_t row) const {
    CHECK(row >= 0 && row < rows_.rows());
    return slots_[static_cast<size_t>(plan_.streams)] + row * plan_.slots[static_cast<size_t>(plan_.streams)].cols;
}

int64_t CpuExecutor::workspace_bytes() const { return std::ssize(storage_->bytes()); }

}  // namespace thermocline::scheduler
