#include "scheduler/expert_prefetch.h"

#include "src/base/log.h"

#include <algorithm>
#include <atomic>
#include <cmath>

namespace thermocline::scheduler {

namespace {

int32_t seen(const int32_t* number) {
    return std::atomic_ref<int32_t>(*const_cast<int32_t*>(number)).load(std::memory_order_relaxed);
}

}  // namespace

int64_t half_of_caches(const Machine& machine) {
    int64_t bytes = 0;
    for (const Cache& cache : machine.caches)
        if (cache.level >= 2) bytes += cache.bytes / std::max(1, cache.cores);
    return bytes / 2;
}

ExpertPrefetch::ExpertPrefetch(const ops::Plan& plan, const PrefetchRules& rules)
    : rules_(rules), plan_(plan), trial_(rules.trial) {
    const ops::Route* route = nullptr;
    const ops::Foretelling* foretelling = nullptr;
    size_t next = 0, most = 0;
    for (size_t i = 0; i < plan.steps.size(); ++i) {
        if (const auto* one = std::get_if<ops::Route>(&plan.steps[i])) {
            route = one;
            foretelling = nullptr;
            if (next < plan.foretold.size() && static_cast<size_t>(plan.foretold[next].router) + 1 == i)
                foretelling = &plan.foretold[next++];
        }
        const auto* step = std::get_if<ops::Experts>(&plan.steps[i]);
        if (step == nullptr) continue;
        Layer& layer = layers_.emplace_back(Layer{step});
        heard_.emplace_back().reserve(static_cast<size_t>(step->top_k * kPrefetchRows));
        if (route == nullptr || route->ids != step->ids) continue;
        if (route->table != ops::kNone) layer.table = &plan.tables[static_cast<size_t>(route->table)];
        if (layer.table == nullptr) layer.foretelling = foretelling;
        most = std::max(most, plan.experts[static_cast<size_t>(step->experts)].w1.size());
    }
    is_in_.resize(most);
    experts_.reserve(most);
    counters_.on = true;
}

bool ExpertPrefetch::begin_pass(std::span<const int32_t> tokens, bool undisturbed) {
    tokens_ = tokens;
    for (std::vector<int32_t>& ids : heard_) ids.clear();
    tried_ = undisturbed;
    used_ = undisturbed ? trial_.use(std::ssize(tokens)) : trial_.on();
    return used_;
}

void ExpertPrefetch::end_pass(std::chrono::duration<double> took) {
    used_ = false;
    if (!tried_) return;
    tried_ = false;
    if (trial_.took(took.count()))
        log::info("experts are {} ahead of being chosen: without that a pass takes {:.1f} % {}",
                  trial_.on() ? "brought near again" : "no more brought near", 100.0 * std::abs(trial_.gain()),
                  trial_.gain() > 0 ? "longer" : "less");
    counters_.on = trial_.on();
    counters_.gain = trial_.gain();
}

bool ExpertPrefetch::known(size_t layer, const int32_t* early) {
    const Layer& one = layers_[layer];
    std::vector<int32_t>& ids = heard_[layer];
    if (!ids.empty()) return true;
    if (one.table != nullptr) {
        for (const int32_t token : tokens_) {
            const int32_t* row = one.table->values.data() + int64_t{token} * one.step->top_k;
            ids.insert(ids.end(), row, row + one.step->top_k);
        }
        return true;
    }
    if (early == nullptr) return false;
    const int64_t count = std::ssize(tokens_) * one.step->top_k;
    for (int64_t i = 0; i < count; ++i)
        if (seen(early + i) < 0) return false;
    const auto all = static_cast<int32_t>(plan_.experts[static_cast<size_t>(one.step->experts)].w1.size());
    for (int64_t i = 0; i < count; ++i) ids.push_back((seen(early + i) + rules_.wrong_by) % all);
    return true;
}

std::span<const int32_t> ExpertPrefetch::expected(size_t layer) {
    const std::vector<int32_t>& ids = heard_[layer];
    const auto top_k = static_cast<size_t>(layers_[layer].step->top_k);
    // The first choice of every row before the second: a router names its choices by their scores.
    experts_.clear();
    std::fill(is_in_.begin(), is_in_.end(), 0);
    for (size_t k = 0; k < top_k; ++k)
        for (size_t at = k; at < ids.size(); at += top_k)
            if (char& is_in = is_in_[static_cast<size_t>(ids[at])]; !is_in) {
                is_in = 1;
                experts_.push_back(ids[at]);
            }
    return experts_;
}

void ExpertPrefetch::note(size_t layer, std::span<const int32_t> chosen) {
    const std::vector<int32_t>& ids = heard_[layer];
    if (layers_[layer].table != nullptr || ids.size() != chosen.size()) return;
    const auto top_k = static_cast<size_t>(layers_[layer].step->top_k);
    for (size_t at = 0; at < ids.size(); ++at) {
        const auto row = chosen.begin() + static_cast<int64_t>(at / top_k * top_k);
        counters_.right +=
            std::find(row, row + static_cast<int64_t>(top_k), ids[at]) != row + static_cast<int64_t>(top_k);
    }
    counters_.foretold += std::ssize(ids);
}

}  // namespace thermocline::scheduler
