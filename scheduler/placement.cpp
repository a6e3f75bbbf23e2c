#include "scheduler/placement.h"

#include "scheduler/cost_model.h"
#include "src/base/check.h"
#include "src/base/error.h"

#include <algorithm>
#include <map>
#include <queue>
#include <set>
#include <utility>

namespace thermocline::scheduler {

namespace {

constexpr double kUnseen = 0.5;  // added to every count

/// One layer as slots are given to it, its likeliest experts first.
class Filling {
public:
    Filling(ops::ExpertsId set, const RoutedLayer& layer, const std::vector<double>& shares,
            const std::vector<double>& seconds, const std::set<ExpertName>& pinned)
        : layer_(layer), seconds_(seconds) {
        for (size_t e = 0; e < shares.size(); ++e) order_.push_back({set, static_cast<int32_t>(e)});
        std::stable_sort(order_.begin(), order_.end(), [&](ExpertName a, ExpertName b) {
            const bool first = pinned.contains(a), second = pinned.contains(b);
            if (first != second) return first;
            return shares[static_cast<size_t>(a.expert)] > shares[static_cast<size_t>(b.expert)];
        });
        for (const ExpertName& name : order_)
            shares_.push_back(shares[static_cast<size_t>(name.expert)] / static_cast<double>(layer.top_k));
    }

    bool full() const { return used_ == order_.size(); }
    ExpertName next() const { return order_[used_]; }
    double gain() const { return expected(hit_) - expected(hit_ + shares_[used_]); }
    void take() { hit_ += shares_[used_++]; }
    Placement::Layer result() const { return {static_cast<int64_t>(used_), std::min(hit_, 1.0), expected(hit_)}; }

private:
    double expected(double hit) const {
        const auto top_k = static_cast<int>(layer_.top_k);
        double sum = 0.0;
        for (int resident = 0; resident <= top_k; ++resident)
            sum += probability_of_hits(top_k, resident, std::min(hit, 1.0)) * seconds_[static_cast<size_t>(resident)];
        return sum;
    }

    RoutedLayer layer_;
    const std::vector<double>& seconds_;
    std::vector<ExpertName> order_;
    std::vector<double> shares_;  // of the layer's choices, in that order
    size_t used_ = 0;
    double hit_ = 0;
};

void check_concave(const std::vector<double>& seconds) {
    for (size_t i = 2; i < seconds.size(); ++i)
        CHECK(seconds[i - 1] - seconds[i] <= seconds[i - 2] - seconds[i - 1] + 1e-9 * seconds[0]);
}

}  // namespace

void check_pins(std::span<const ExpertName> pins, const std::vector<RoutedLayer>& layers, int64_t slots) {
    std::set<ExpertName> seen;
    for (const ExpertName& pin : pins) {
        if (pin.set < 0 || pin.set >= std::ssize(layers) || pin.expert < 0 ||
            pin.expert >= layers[static_cast<size_t>(pin.set)].experts)
            fail("expert ", pin.set, ":", pin.expert, " cannot be pinned: the model has ", shape_text(layers));
        if (!seen.insert(pin).second)
            fail("expert ", pin.set, ":", pin.expert, " is named twice among those to pin: name it once");
    }
    if (std::ssize(pins) > slots)
        fail(pins.size(), " experts are pinned, but there is room for ", slots, ": pin fewer, or raise --gpu-memory");
}

std::vector<std::vector<double>> shares_of(const std::vector<RoutedLayer>& layers,
                                           const std::vector<std::vector<int64_t>>& counts) {
    std::vector<std::vector<double>> shares;
    for (size_t i = 0; i < layers.size(); ++i) {
        double sum = 0.0;
        for (const int64_t count : counts[i]) sum += static_cast<double>(count) + kUnseen;
        std::vector<double>& layer = shares.emplace_back();
        for (const int64_t count : counts[i])
            layer.push_back((static_cast<double>(count) + kUnseen) / sum * static_cast<double>(layers[i].top_k));
    }
    return shares;
}

std::vector<double> seconds_by_slots(const RoutedLayer& layer, const std::vector<double>& shares,
                                     const std::vector<double>& layer_seconds) {
    check_concave(layer_seconds);
    Filling filling(0, layer, shares, layer_seconds, {});
    std::vector<double> seconds = {filling.result().seconds};
    while (!filling.full()) {
        filling.take();
        seconds.push_back(filling.result().seconds);
    }
    return seconds;
}

std::vector<ExpertName> likeliest_experts(const std::vector<std::vector<double>>& shares, int64_t count) {
    std::vector<ExpertName> names;
    for (size_t set = 0; set < shares.size(); ++set)
        for (size_t e = 0; e < shares[set].size(); ++e)
            names.push_back({static_cast<ops::ExpertsId>(set), static_cast<int32_t>(e)});
    const auto share = [&](ExpertName name) {
        return shares[static_cast<size_t>(name.set)][static_cast<size_t>(name.expert)];
    };
    std::stable_sort(names.begin(), names.end(), [&](ExpertName a, ExpertName b) { return share(a) > share(b); });
    names.resize(std::min(names.size(), static_cast<size_t>(count)));
    return names;
}

std::vector<ExpertName> likeliest_first(std::vector<ExpertName> names, const std::vector<std::vector<double>>& shares) {
    std::map<ExpertName, double> rank;
    std::map<ops::ExpertsId, double> seen;
    for (const ExpertName& name : names)
        rank[name] = shares.empty() ? seen[name.set]++
                                    : -shares[static_cast<size_t>(name.set)][static_cast<size_t>(name.expert)];
    std::ranges::stable_sort(names, {}, [&](ExpertName name) { return rank[name]; });
    return names;
}

std::vector<int64_t> expert_counts(const std::vector<RoutedLayer>& layers) {
    std::vector<int64_t> counts;
    for (const RoutedLayer& layer : layers) counts.push_back(layer.experts);
    return counts;
}

std::vector<int64_t> expert_counts(const ops::Plan& plan) {
    std::vector<int64_t> counts;
    for (const ops::ExpertSet& set : plan.experts) counts.push_back(std::ssize(set.w1));
    return counts;
}

std::vector<ExpertName> spread_experts(std::span<const int64_t> sizes, int64_t count, std::vector<ExpertName> names) {
    const std::set<ExpertName> there(names.begin(), names.end());
    const int64_t most = sizes.empty() ? 0 : *std::max_element(sizes.begin(), sizes.end());
    for (int32_t expert = 0; expert < most; ++expert)
        for (size_t set = 0; set < sizes.size() && std::ssize(names) < count; ++set) {
            const ExpertName name{static_cast<ops::ExpertsId>(set), expert};
            if (expert < sizes[set] && !there.contains(name)) names.push_back(name);
        }
    return names;
}

Placement place_experts(const PlacementQuestion& question) {
    check_concave(question.layer_seconds);
    const std::set<ExpertName> pinned(question.pinned.begin(), question.pinned.end());
    const std::vector<ExpertName> pins(pinned.begin(), pinned.end());
    check_pins(pins, question.layers, question.slots);
    const std::vector<std::vector<double>> shares = shares_of(question.layers, question.counts);
    std::vector<Filling> layers;
    for (size_t i = 0; i < question.layers.size(); ++i) {
        CHECK(std::ssize(question.layer_seconds) == question.layers[i].top_k + 1);
        layers.emplace_back(static_cast<ops::ExpertsId>(i), question.layers[i], shares[i], question.layer_seconds,
                            pinned);
    }
    Placement placement{.shares = shares};
    const auto take = [&](Filling& layer) {
        placement.resident.push_back(layer.next());
        layer.take();
    };
    std::priority_queue<std::pair<double, size_t>> gains;  // of each layer's next slot; of equals the last layer
    for (size_t i = 0; i < layers.size(); ++i) {
        while (!layers[i].full() && pinned.contains(layers[i].next())) take(layers[i]);
        if (!layers[i].full()) gains.push({layers[i].gain(), i});
    }
    while (!gains.empty() && gains.top().first > 0.0 && std::ssize(placement.resident) < question.slots) {
        const size_t i = gains.top().second;
        gains.pop();
        take(layers[i]);
        if (!layers[i].full()) gains.push({layers[i].gain(), i});
    }
    for (const Filling& layer : layers) {
        placement.layers.push_back(layer.result());
        placement.hit += placement.layers.back().hit / static_cast<double>(layers.size());
        placement.seconds += placement.layers.back().seconds;
    }
    return placement;
}

}  // namespace thermocline::scheduler
