#include "src/ops/layers.h"

#include "src/base/check.h"
#include "src/ops/uses.h"

#include <algorithm>
#include <set>
#include <type_traits>

namespace thermocline::ops {

namespace {

/// What a step changes and so reads as well, though it is among what it writes.
Slot changed_in_place(const Step& step) {
    if (const auto* rope = std::get_if<Rope>(&step)) return rope->x;
    if (const auto* round = std::get_if<RoundKv>(&step)) return round->x;
    if (const auto* out = std::get_if<HyperOut>(&step)) return out->streams;
    if (const auto* add = std::get_if<Add>(&step)) return add->x;
    return kNone;
}

/// What the steps from each one on need of those before it.
std::vector<std::set<Slot>> needed_from(const Plan& plan) {
    std::vector<std::set<Slot>> all(plan.steps.size() + 1);
    std::set<Slot> needed;
    for (size_t at = plan.steps.size(); at-- > 0;) {
        const Step& step = plan.steps[at];
        const Uses uses = uses_of(step);
        for (const Slot slot : uses.writes) needed.erase(slot);
        for (const Slot slot : uses.reads) needed.insert(slot);
        needed.insert(changed_in_place(step));
        needed.erase(kNone);
        all[at] = needed;
    }
    return all;
}

bool routes(const Step& step) { return std::holds_alternative<Experts>(step); }

/// Calls body(id) with every id of a step's caches and vectors.
template <typename Caches, typename Vectors>
void for_ids(Step& step, Caches cache, Vectors vector) {
    std::visit(
        [&](auto& s) {
            using Kind = std::decay_t<decltype(s)>;
            if constexpr (std::is_same_v<Kind, RmsNorm>) vector(s.weight);
            if constexpr (std::is_same_v<Kind, HyperIn> || std::is_same_v<Kind, HyperHead>) {
                vector(s.base);
                vector(s.scale);
            }
            if constexpr (std::is_same_v<Kind, Compress>) {
                vector(s.ape);
                vector(s.norm);
                cache(s.state);
                cache(s.entries);
            }
            if constexpr (std::is_same_v<Kind, SelectEntries>) cache(s.keys);
            if constexpr (std::is_same_v<Kind, Attention>) {
                vector(s.sinks);
                cache(s.window_cache);
                cache(s.entries);
            }
            if constexpr (std::is_same_v<Kind, StoreWindow>) cache(s.window_cache);
            if constexpr (std::is_same_v<Kind, Route>) vector(s.bias);
        },
        step);
}

/// Of ids that the steps of a part use: the first, and how many; all between are its own.
template <typename Id>
struct Range {
    Id first = 0;
    size_t count = 0;
    explicit Range(const std::set<Id>& ids) {
        if (ids.empty()) return;
        first = *ids.begin();
        count = ids.size();
        CHECK(*ids.rbegin() - first + 1 == static_cast<Id>(count));
    }
    template <typename T>
    std::vector<T> of(const std::vector<T>& all) const {
        const auto begin = all.begin() + first;
        return {begin, begin + static_cast<std::ptrdiff_t>(count)};
    }
};

}  // namespace

std::vector<size_t> layer_starts(const Plan& plan) {
    const std::vector<std::set<Slot>> needed = needed_from(plan);
    std::vector<size_t> starts = {0};
    bool routed = false;
    for (size_t at = 0; at < plan.steps.size(); ++at) {
        if (routed && needed[at] == std::set<Slot>{plan.streams}) {
            const auto rest = plan.steps.begin() + static_cast<std::ptrdiff_t>(at);
            if (std::none_of(rest, plan.steps.end(), routes)) break;
            starts.push_back(at);
            routed = false;
        }
        routed = routed || routes(plan.steps[at]);
    }
    starts.push_back(plan.steps.size());
    return starts;
}

std::string why_not_cut(const Plan& plan) {
    if (plan.experts.empty()) return "it has no routed experts";
    const std::vector<std::set<Slot>> needed = needed_from(plan);
    const Experts* before = nullptr;
    const std::set<Slot>* least = nullptr;  // between two layers, where the fewest slots pass
    for (size_t at = 0; at < plan.steps.size(); ++at) {
        if (before != nullptr && (least == nullptr || needed[at].size() < least->size())) least = &needed[at];
        const auto* experts = std::get_if<Experts>(&plan.steps[at]);
        if (experts == nullptr) continue;
        if (before != nullptr && *least != std::set<Slot>{plan.streams}) {
            std::string names;
            for (const Slot slot : *least)
                if (slot != plan.streams)
                    names += (names.empty() ? "" : ", ") + plan.slots[static_cast<size_t>(slot)].name;
            return "from " + plan.experts[static_cast<size_t>(before->experts)].name + " to " +
                   plan.experts[static_cast<size_t>(experts->experts)].name +
                   " more passes than the residual streams: " + names;
        }
        before = experts;
        least = nullptr;
    }
    return "";
}

PlanPart layers_of(const Plan& plan, size_t first, size_t last) {
    const std::vector<size_t> starts = layer_starts(plan);
    CHECK(first < last && last < starts.size());
    if (first == 0 && last + 1 == starts.size()) return {plan, 0, 0, 0};
    PlanPart part{{}, starts[first], 0, 0};
    Plan& own = part.plan;
    own.name = plan.name;
    own.slots = plan.slots;
    own.matrices = plan.matrices;
    own.ropes = plan.ropes;
    own.vocab = plan.vocab;
    own.streams = plan.streams;
    own.steps.assign(plan.steps.begin() + static_cast<std::ptrdiff_t>(starts[first]),
                     plan.steps.begin() + static_cast<std::ptrdiff_t>(starts[last]));
    if (last + 1 == starts.size()) own.logits = plan.logits;
    std::set<Slot> slots = {own.streams, own.logits};
    std::set<VectorId> vectors;
    std::set<TableId> tables;
    std::set<CacheId> caches;
    std::set<ExpertsId> experts;
    for (Step& step : own.steps) {
        const Uses uses = uses_of(step);
        slots.insert(uses.reads.begin(), uses.reads.end());
        slots.insert(uses.writes.begin(), uses.writes.end());
        for_ids(
            step,
            [&](CacheId id) {
                if (id != kNone) caches.insert(id);
            },
            [&](VectorId id) { vectors.insert(id); });
        if (const auto* one = std::get_if<Experts>(&step)) experts.insert(one->experts);
        if (const auto* route = std::get_if<Route>(&step)) tables.insert(route->table);
    }
    for (size_t i = 0; i < own.slots.size(); ++i)
        if (!slots.contains(static_cast<Slot>(i))) own.slots[i].cols = 0;
    for (size_t i = 0; i < plan.vectors.size(); ++i)
        own.vectors.push_back(vectors.contains(static_cast<VectorId>(i)) ? plan.vectors[i]
                                                                         : NamedVector{plan.vectors[i].name, {}});
    for (size_t i = 0; i < plan.tables.size(); ++i)
        own.tables.push_back(tables.contains(static_cast<TableId>(i)) ? plan.tables[i]
                                                                      : NamedTable{plan.tables[i].name, {}});
    const auto begin = static_cast<int32_t>(starts[first]), end = static_cast<int32_t>(starts[last]);
    for (const Foretelling& one : plan.foretold)
        if (one.after >= begin && one.router < end) own.foretold.push_back({one.after - begin, one.router - begin});
    const Range<CacheId> own_caches(caches);
    const Range<ExpertsId> own_experts(experts);
    own.caches = own_caches.of(plan.caches);
    own.experts = own_experts.of(plan.experts);
    part.first_cache = own_caches.first;
    part.first_experts = own_experts.first;
    for (Step& step : own.steps) {
        for_ids(
            step,
            [&](CacheId& id) {
                if (id != kNone) id -= part.first_cache;
            },
            [](VectorId) {});
        if (auto* one = std::get_if<Experts>(&step)) one->experts -= part.first_experts;
    }
    return part;
}

}  // namespace thermocline::ops
