#include "scheduler/placement.h"

#include "scheduler/cost_model.h"
#include "src/base/check.h"
#include "src/base/error.h"

#include <algorithm>
#include <queue>
#include <set>
#include <utility>

namespace thermocline::scheduler {

namespace {

constexpr double kUnseen = 0.5;  // added to every count

/// One layer as slots are given to it, its likeliest experts first.
class Filling {
public:
    Filling(ops::ExpertsId set, const RoutedLayer& layer, const std::vector<int64_t>& counts,
            const std::vector<double>& seconds, const std::set<ExpertName>& pinned)
        : layer_(layer), seconds_(seconds) {
        double sum = 0.0;
        for (size_t e = 0; e < counts.size(); ++e) {
            sum += static_cast<double>(counts[e]) + kUnseen;
            order_.push_back({set, static_cast<int32_t>(e)});
        }
        std::stable_sort(order_.begin(), order_.end(), [&](ExpertName a, ExpertName b) {
            const bool first = pinned.contains(a), second = pinned.contains(b);
            if (first != second) return first;
            return counts[static_cast<size_t>(a.expert)] > counts[static_cast<size_t>(b.expert)];
        });
        for (const ExpertName& name : order_)
            shares_.push_back((static_cast<double>(counts[static_cast<size_t>(name.expert)]) + kUnseen) / sum);
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

std::set<ExpertName> pins_of(const PlacementQuestion& question) {
    const std::set<ExpertName> pinned(question.pinned.begin(), question.pinned.end());
    for (const ExpertName& pin : pinned)
        if (pin.set < 0 || pin.set >= std::ssize(question.layers) || pin.expert < 0 ||
            pin.expert >= question.layers[static_cast<size_t>(pin.set)].experts)
            fail("expert ", pin.set, ":", pin.expert, " cannot be pinned: the model has ", shape_text(question.layers));
    if (std::ssize(pinned) > question.slots)
        fail(pinned.size(), " experts are pinned, but there is room for ", question.slots,
             ": pin fewer, or raise --gpu-memory");
    return pinned;
}

}  // namespace

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
    const std::set<ExpertName> pinned = pins_of(question);
    std::vector<Filling> layers;
    for (size_t i = 0; i < question.layers.size(); ++i) {
        CHECK(std::ssize(question.layer_seconds) == question.layers[i].top_k + 1);
        layers.emplace_back(static_cast<ops::ExpertsId>(i), question.layers[i], question.counts[i],
                            question.layer_seconds, pinned);
    }
    Placement placement;
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
