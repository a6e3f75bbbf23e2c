#include "scheduler/split_executor.h"

#include "memory/sequence_cache.h"
#include "src/base/check.h"

#include <utility>

namespace thermocline::scheduler {

SplitExecutor::SplitExecutor(const ops::Plan& plan, ExecutorLimits limits)
    : plan_(plan), limits_(limits), rows_(limits) {
    segments_.reserve(static_cast<size_t>(limits.max_parts));
}

SplitExecutor::~SplitExecutor() {
    // A pass that was given up may still read what the card before has handed over.
    while (!cards_.empty()) cards_.pop_back();
}

void SplitExecutor::add(LayerRange layers,
                        const std::function<std::unique_ptr<GpuExecutor>(const ops::Plan& part)>& make) {
    CHECK(layers.first == (cards_.empty() ? 0 : cards_.back().layers.last));
    auto part = std::make_unique<const ops::PlanPart>(ops::layers_of(plan_, layers.first, layers.last));
    auto executor = make(part->plan);
    cards_.push_back({layers, std::move(part), std::move(executor)});
}

std::unique_ptr<memory::SequenceCache> SplitExecutor::new_sequence() {
    std::vector<memory::PageStore*> pages;
    for (const Card& card : cards_) pages.insert(pages.end(), card.part->plan.caches.size(), &card.executor->pages());
    return std::make_unique<memory::SequenceCache>(plan_.caches, limits_.max_tokens, pages);
}

int64_t SplitExecutor::sequence_bytes(int64_t tokens) const {
    int64_t bytes = 0;
    for (const Card& card : cards_) bytes += card.executor->sequence_bytes(tokens);
    return bytes;
}

void SplitExecutor::forward(std::span<const Part> parts, const float* streams_in) {
    CHECK(streams_in == nullptr);
    const ops::Batch batch = rows_.gather(parts);
    try {
        play(parts, batch);
    } catch (...) {
        for (const Part& part : parts) part.sequence->spoil(static_cast<int64_t>(part.tokens.size()));
        throw;
    }
    for (const Part& part : parts) part.sequence->advance(static_cast<int64_t>(part.tokens.size()));
    if (routing_ == nullptr) return;
    routing_->ids.resize(plan_.experts.size());
    for (Card& card : cards_)
        for (size_t i = 0; i < card.routing.ids.size(); ++i)
            routing_->ids[card.layers.first + i].swap(card.routing.ids[i]);
}

void SplitExecutor::play(std::span<const Part> parts, const ops::Batch& batch) {
    const float* streams = nullptr;
    for (const Card& card : cards_) {
        segments_.assign(batch.segments.begin(), batch.segments.end());
        for (ops::Segment& segment : segments_) segment.caches += card.part->first_cache;
        ops::Batch own = batch;
        own.segments = segments_;
        if (&card != &cards_.back()) own.output_rows = {};
        card.executor->pass(parts, own, streams);
        streams = card.executor->handed_over();
    }
}

int64_t SplitExecutor::workspace_bytes() const {
    int64_t bytes = 0;
    for (const Card& card : cards_) bytes += card.executor->workspace_bytes();
    return bytes;
}

ops::Cost SplitExecutor::last_cost() const {
    ops::Cost cost;
    for (const Card& card : cards_) cost += card.executor->last_cost();
    return cost;
}

void SplitExecutor::profile_steps(StepProfile* profile) {
    for (const Card& card : cards_) card.executor->profile_steps(profile, card.part->first_step);
}

void SplitExecutor::record_routing(RoutingRecord* record) {
    routing_ = record;
    for (Card& card : cards_) card.executor->record_routing(record != nullptr ? &card.routing : nullptr);
}

ResidencyCounters SplitExecutor::residency() const {
    ResidencyCounters counters = cards_.front().executor->residency();
    for (size_t i = 1; i < cards_.size(); ++i) counters += cards_[i].executor->residency();
    return counters;
}

std::vector<ExpertName> SplitExecutor::gathered(std::vector<ExpertName> (GpuExecutor::*names)() const) const {
    std::vector<ExpertName> all;
    for (const Card& card : cards_)
        for (const ExpertName& name : ((*card.executor).*names)()) all.push_back(in_whole(name, card.layers));
    return all;
}

std::vector<ExpertName> SplitExecutor::resident() const { return gathered(&GpuExecutor::resident); }
std::vector<ExpertName> SplitExecutor::core() const { return gathered(&GpuExecutor::core); }

int64_t SplitExecutor::movable_slots() const {
    int64_t slots = 0;
    for (const Card& card : cards_) slots += card.executor->movable_slots();
    return slots;
}

std::vector<SlotRange> SplitExecutor::slot_ranges() const {
    std::vector<SlotRange> ranges;
    for (const Card& card : cards_)
        ranges.push_back({static_cast<ops::ExpertsId>(card.layers.first), static_cast<ops::ExpertsId>(card.layers.last),
                          card.executor->movable_slots()});
    return ranges;
}

void SplitExecutor::order(const ExpertOrders& orders) {
    for (const Card& card : cards_) {
        if (card.executor->movable_slots() == 0) continue;
        ExpertOrders own{.wanted = experts_within(orders.wanted, card.layers),
                         .pinned = experts_within(orders.pinned, card.layers),
                         .released = experts_within(orders.released, card.layers)};
        if (!orders.shares.empty())
            own.shares.assign(orders.shares.begin() + static_cast<std::ptrdiff_t>(card.layers.first),
                              orders.shares.begin() + static_cast<std::ptrdiff_t>(card.layers.last));
        card.executor->order(own);
    }
}

void SplitExecutor::set_patience(std::chrono::milliseconds few, std::chrono::milliseconds many) {
    for (const Card& card : cards_) card.executor->set_patience(few, many);
}

}  // namespace thermocline::scheduler
