#include "scheduler/routing_profile.h"

#include "scheduler/residency_replay.h"
#include "src/base/error.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <utility>

namespace thermocline::scheduler {

namespace {

void keep_most_frequent(std::vector<RoutingPhase::Pair>& pairs) {
    std::stable_sort(pairs.begin(), pairs.end(), [](const auto& x, const auto& y) { return x.rows > y.rows; });
    if (pairs.size() > RoutingPhase::kMostPairs) pairs.resize(RoutingPhase::kMostPairs);
}

/// Counts the rows of passes of one phase, layer by layer: only of one layer all pairs are in memory.
RoutingPhase counts_of(const RoutingTrace& trace) {
    RoutingPhase counts;
    for (const RoutedPass& pass : trace.passes) counts.rows += pass.rows;
    std::vector<uint32_t> together;  // [experts, experts]
    for (size_t i = 0; i < trace.layers.size(); ++i) {
        const auto experts = static_cast<size_t>(trace.layers[i].experts);
        std::vector<int64_t>& chosen = counts.chosen.emplace_back(experts);
        std::vector<double>& recent = counts.recent.emplace_back(experts);
        std::vector<RoutingPhase::Pair>& pairs = counts.pairs.emplace_back();
        if (counts.rows == 0) continue;
        together.assign(experts * experts, 0);
        int64_t rows_left = counts.rows;
        for (const RoutedPass& pass : trace.passes)
            for (auto row = pass.ids[i].begin(); row != pass.ids[i].end(); row += trace.layers[i].top_k) {
                const double weight = std::exp2(-static_cast<double>(--rows_left) / kRecentHalfLife);
                for (const int32_t a : std::span(row, row + trace.layers[i].top_k)) {
                    ++chosen[static_cast<size_t>(a)];
                    recent[static_cast<size_t>(a)] += weight;
                    for (const int32_t b : std::span(row, row + trace.layers[i].top_k))
                        if (a < b) ++together[static_cast<size_t>(a) * experts + static_cast<size_t>(b)];
                }
            }
        for (size_t at = 0; at < together.size(); ++at)
            if (together[at] > 0)
                pairs.push_back({static_cast<int32_t>(at / experts), static_cast<int32_t>(at % experts), together[at]});
        keep_most_frequent(pairs);
        pairs.shrink_to_fit();
    }
    return counts;
}

/// Foretells a layer's experts from those of the layer before, by how often they went together so far.
class Foretelling {
public:
    Foretelling(const RoutedLayer& before, const RoutedLayer& layer)
        : layer_(layer), together_(static_cast<size_t>(before.experts * layer.experts)) {}

    void add(std::span<const int32_t> before, std::span<const int32_t> chosen) {
        std::vector<double> score(static_cast<size_t>(layer_.experts));
        for (const int32_t from : before) {
            const uint32_t* row = together_.data() + from * layer_.experts;
            const double all = std::accumulate(row, row + layer_.experts, 1.0);
            for (size_t e = 0; e < score.size(); ++e) score[e] += row[e] / all;
        }
        std::vector<int32_t> order(score.size());
        std::iota(order.begin(), order.end(), 0);
        std::partial_sort(order.begin(), order.begin() + layer_.top_k, order.end(), [&](int32_t a, int32_t b) {
            const double x = score[static_cast<size_t>(a)], y = score[static_cast<size_t>(b)];
            return x != y ? x > y : a < b;
        });
        for (const int32_t expert : chosen) {
            foretold_ += std::find(order.begin(), order.begin() + layer_.top_k, expert) != order.begin() + layer_.top_k;
            ++choices_;
            for (const int32_t from : before) ++together_[static_cast<size_t>(from * layer_.experts + expert)];
        }
    }
    double precision() const {
        return choices_ > 0 ? static_cast<double>(foretold_) / static_cast<double>(choices_) : 0;
    }

private:
    RoutedLayer layer_;
    std::vector<uint32_t> together_;  // [experts before][experts]
    int64_t foretold_ = 0, choices_ = 0;
};

std::vector<double> next_layer_precision(const RoutingTrace& trace) {
    std::vector<double> precision(trace.layers.size(), 0.0);
    for (size_t i = 1; i < trace.layers.size(); ++i) {
        Foretelling foretelling(trace.layers[i - 1], trace.layers[i]);
        const auto before_k = static_cast<size_t>(trace.layers[i - 1].top_k),
                   k = static_cast<size_t>(trace.layers[i].top_k);
        for (const RoutedPass& pass : trace.passes)
            for (size_t row = 0; row < static_cast<size_t>(pass.rows); ++row)
                foretelling.add(std::span(pass.ids[i - 1]).subspan(row * before_k, before_k),
                                std::span(pass.ids[i]).subspan(row * k, k));
        precision[i] = foretelling.precision();
    }
    return precision;
}

WorkingSet working_set_of(const RoutingTrace& trace) {
    WorkingSet set;
    const size_t half = trace.passes.size() / 2;
    if (half == 0) return set;
    const std::vector<int64_t> sizes = expert_counts(trace.layers);
    const auto experts = static_cast<double>(std::accumulate(sizes.begin(), sizes.end(), int64_t{0}));
    using Policy = ResidencyRules::Policy;
    for (size_t i = 0; i < kCurveFractions.size(); ++i) {
        const auto slots = static_cast<int64_t>(std::lround(kCurveFractions[i] * experts));
        const std::vector<ExpertName> start = spread_experts(sizes, slots);
        const Replayed adaptive = replay(trace, start, {.policy = Policy::kAdaptive}, half);
        set.choices = adaptive.choices;
        set.at[i] = {adaptive.hit_rate(), replay(trace, start, {.policy = Policy::kLru}, half).hit_rate(),
                     replay(trace, most_chosen(trace, half, slots), {.policy = Policy::kStatic}, half).hit_rate(),
                     replay_optimum(trace, start, half).hit_rate()};
    }
    return set;
}

void add_foretold(const RoutingTrace& trace, RoutingClass& one) {
    for (const RoutedPass& pass : trace.passes) one.foretold_rows += pass.foretold.empty() ? 0 : pass.rows;
    if (one.foretold_rows == 0) return;
    for (size_t i = 0; i < trace.layers.size(); ++i) {
        const int64_t k = trace.layers[i].top_k;
        int64_t right = 0;
        for (const RoutedPass& pass : trace.passes)
            for (auto at = pass.foretold.empty() ? 0 : int64_t{pass.rows * k}; at > 0; at -= k) {
                const auto row = pass.foretold[i].begin() + at - k;
                const auto chosen = std::span(pass.ids[i]).subspan(static_cast<size_t>(at - k), static_cast<size_t>(k));
                right += std::count_if(chosen.begin(), chosen.end(),
                                       [&](int32_t id) { return std::find(row, row + k, id) != row + k; });
            }
        one.foretold.push_back(static_cast<double>(right) / static_cast<double>(one.foretold_rows * k));
    }
}

RoutingPhase phase_of(const RoutingTrace& trace, bool decode) {
    RoutingTrace passes{trace.model, trace.layers, {}};
    std::ranges::copy_if(trace.passes, std::back_inserter(passes.passes),
                         [&](const RoutedPass& pass) { return pass.decode == decode; });
    RoutingPhase phase = counts_of(passes);
    phase.working_set = working_set_of(passes);
    return phase;
}

RoutingClass class_of(const RoutingTrace& trace, std::string name) {
    RoutingClass one{std::move(name), phase_of(trace, false), phase_of(trace, true), next_layer_precision(trace)};
    add_foretold(trace, one);
    return one;
}

/// Into the mean of what `of_a` and `of_b` counted.
void average(double& a, double b, int64_t of_a, int64_t of_b) {
    if (of_b > 0)
        a = (a * static_cast<double>(of_a) + b * static_cast<double>(of_b)) / static_cast<double>(of_a + of_b);
}

void merge(WorkingSet& into, const WorkingSet& other) {
    for (size_t i = 0; i < into.at.size(); ++i)
        for (double WorkingSet::Rates::*rate : {&WorkingSet::Rates::adaptive, &WorkingSet::Rates::lru,
                                                &WorkingSet::Rates::fixed, &WorkingSet::Rates::optimum})
            average(into.at[i].*rate, other.at[i].*rate, into.choices, other.choices);
    into.choices += other.choices;
}

void merge(RoutingPhase& into, const RoutingPhase& other) {
    const double left = std::exp2(-static_cast<double>(other.rows) / kRecentHalfLife);
    into.rows += other.rows;
    merge(into.working_set, other.working_set);
    for (size_t layer = 0; layer < into.chosen.size(); ++layer) {
        for (size_t e = 0; e < into.chosen[layer].size(); ++e) {
            into.chosen[layer][e] += other.chosen[layer][e];
            into.recent[layer][e] = into.recent[layer][e] * left + other.recent[layer][e];
        }
        std::map<std::pair<int32_t, int32_t>, int64_t> rows;
        for (const RoutingPhase* counts : {&std::as_const(into), &other})
            for (const RoutingPhase::Pair& pair : counts->pairs[layer]) rows[{pair.a, pair.b}] += pair.rows;
        std::vector<RoutingPhase::Pair>& pairs = into.pairs[layer];
        pairs.clear();
        for (const auto& [names, count] : rows) pairs.push_back({names.first, names.second, count});
        keep_most_frequent(pairs);
    }
}

void merge(RoutingClass& into, const RoutingClass& other) {
    const int64_t rows = into.prefill.rows + into.decode.rows, other_rows = other.prefill.rows + other.decode.rows;
    for (size_t i = 0; i < into.next_layer.size(); ++i)
        average(into.next_layer[i], other.next_layer[i], rows, other_rows);
    into.foretold.resize(std::max(into.foretold.size(), other.foretold.size()));
    for (size_t i = 0; i < other.foretold.size(); ++i)
        average(into.foretold[i], other.foretold[i], into.foretold_rows, other.foretold_rows);
    into.foretold_rows += other.foretold_rows;
    merge(into.prefill, other.prefill);
    merge(into.decode, other.decode);
}

}  // namespace

std::vector<std::vector<int64_t>> RoutingProfile::chosen() const {
    std::vector<std::vector<int64_t>> sum;
    for (const RoutedLayer& layer : layers) sum.emplace_back(static_cast<size_t>(layer.experts));
    for (const RoutingClass& one : classes)
        for (const RoutingPhase* counts : {&one.prefill, &one.decode})
            for (size_t i = 0; i < sum.size(); ++i)
                for (size_t e = 0; e < sum[i].size(); ++e) sum[i][e] += counts->chosen[i][e];
    return sum;
}

int64_t RoutingProfile::rows() const {
    int64_t rows = 0;
    for (const RoutingClass& one : classes) rows += one.prefill.rows + one.decode.rows;
    return rows;
}

RoutingProfile profile_of(const RoutingTrace& trace) {
    RoutingProfile profile{trace.model, trace.layers, {}};
    std::map<std::string, RoutingTrace> kinds;
    for (const RoutedPass& pass : trace.passes) {
        RoutingTrace& kind = kinds.try_emplace(pass.kind, RoutingTrace{trace.model, trace.layers, {}}).first->second;
        kind.passes.push_back(pass);
    }
    for (const auto& [name, kind] : kinds) profile.classes.push_back(class_of(kind, name));
    return profile;
}

void merge(RoutingProfile& into, const RoutingProfile& other) {
    check_model("the profile to be merged", other.model, other.layers, into.model, into.layers);
    for (const RoutingClass& one : other.classes) {
        const auto same = std::find_if(into.classes.begin(), into.classes.end(),
                                       [&](const RoutingClass& there) { return there.name == one.name; });
        if (same == into.classes.end())
            into.classes.push_back(one);
        else
            merge(*same, one);
    }
}

void check_model(const std::string& path, const std::string& found_model, const std::vector<RoutedLayer>& found,
                 const std::string& model, const std::vector<RoutedLayer>& layers) {
    if (found_model == model && found == layers) return;
    fail(printable(path), ": is of ", found_model.empty() ? "a model without name" : printable(found_model), " (",
         shape_text(found), "), but this is ", printable(model), " (", shape_text(layers), ")");
}

}  // namespace thermocline::scheduler
