#include "scheduler/residency_replay.h"

#include <algorithm>
#include <set>
#include <utility>

namespace thermocline::scheduler {

namespace {

/// Experts of all layers in one row of numbers.
class Numbers {
public:
    explicit Numbers(const std::vector<RoutedLayer>& layers) {
        for (const RoutedLayer& layer : layers) {
            first_.push_back(count_);
            count_ += static_cast<size_t>(layer.experts);
        }
    }
    size_t of(size_t layer, int32_t expert) const { return first_[layer] + static_cast<size_t>(expert); }
    size_t count() const { return count_; }
    ExpertName name(size_t number) const {
        const auto layer = std::upper_bound(first_.begin(), first_.end(), number) - first_.begin() - 1;
        return {static_cast<ops::ExpertsId>(layer), static_cast<int32_t>(number - first_[static_cast<size_t>(layer)])};
    }

private:
    std::vector<size_t> first_;
    size_t count_ = 0;
};

struct Use {
    size_t pass;
    int64_t rows;
    /// The sooner, of equals that of more rows.
    friend bool operator<(const Use& a, const Use& b) { return a.pass != b.pass ? a.pass < b.pass : a.rows > b.rows; }
};

/// The passes that choose each expert, in order.
std::vector<std::vector<Use>> uses_of(const RoutingTrace& trace, const Numbers& numbers) {
    std::vector<std::vector<Use>> uses(numbers.count());
    for (size_t p = 0; p < trace.passes.size(); ++p)
        for (size_t layer = 0; layer < trace.layers.size(); ++layer)
            for (const int32_t expert : trace.passes[p].ids[layer]) {
                std::vector<Use>& of = uses[numbers.of(layer, expert)];
                if (of.empty() || of.back().pass != p) of.push_back({p, 0});
                ++of.back().rows;
            }
    return uses;
}

}  // namespace

Replayed replay(const RoutingTrace& trace, std::span<const ExpertName> resident, const ResidencyRules& rules,
                size_t count_from, int64_t most_changes) {
    Residency residency(expert_counts(trace.layers), resident, rules);
    Replayed result;
    int64_t choices_before = 0, hits_before = 0;
    for (size_t p = 0; p < trace.passes.size(); ++p) {
        if (p == count_from) {
            choices_before = residency.choices();
            hits_before = residency.hits();
        }
        const RoutedPass& pass = trace.passes[p];
        residency.begin_pass(pass.rows, !pass.decode);
        for (size_t layer = 0; layer < pass.ids.size(); ++layer)
            residency.note(static_cast<ops::ExpertsId>(layer), pass.ids[layer]);
        for (const Residency::Change& change : residency.choose(most_changes)) {
            residency.arrived(change.slot);
            result.changes += p >= count_from;
        }
    }
    result.choices = residency.choices() - choices_before;
    result.hits = residency.hits() - hits_before;
    return result;
}

Replayed replay_optimum(const RoutingTrace& trace, std::span<const ExpertName> resident, size_t count_from) {
    const Use never{trace.passes.size(), 0};
    const Numbers numbers(trace.layers);
    const std::vector<std::vector<Use>> uses = uses_of(trace, numbers);
    std::vector<size_t> turn(numbers.count(), 0);  // uses so far
    const auto next_use = [&](size_t number) {
        return turn[number] < uses[number].size() ? uses[number][turn[number]] : never;
    };
    std::set<std::pair<Use, size_t>> there;  // next use, expert
    std::vector<char> is_there(numbers.count());
    for (const ExpertName& name : resident) {
        const size_t number = numbers.of(static_cast<size_t>(name.set), name.expert);
        there.insert({next_use(number), number});
        is_there[number] = 1;
    }
    Replayed result;
    for (size_t p = 0; p < trace.passes.size(); ++p) {
        std::set<size_t> chosen;
        for (size_t layer = 0; layer < trace.layers.size(); ++layer)
            for (const int32_t expert : trace.passes[p].ids[layer]) {
                const size_t number = numbers.of(layer, expert);
                chosen.insert(number);
                if (p < count_from) continue;
                ++result.choices;
                result.hits += is_there[number];
            }
        for (const size_t number : chosen)
            if (is_there[number]) there.erase({next_use(number), number});
        for (const size_t number : chosen) {
            ++turn[number];
            if (is_there[number]) there.insert({next_use(number), number});
        }
        for (const size_t number : chosen) {
            if (is_there[number] || there.empty() || !(next_use(number) < there.rbegin()->first)) continue;
            is_there[there.rbegin()->second] = 0;
            there.erase(std::prev(there.end()));
            there.insert({next_use(number), number});
            is_there[number] = 1;
            result.changes += p >= count_from;
        }
    }
    return result;
}

std::vector<ExpertName> most_chosen(const RoutingTrace& trace, size_t until, int64_t slots) {
    const Numbers numbers(trace.layers);
    std::vector<std::pair<int64_t, size_t>> counts;  // minus the count, expert
    for (size_t number = 0; number < numbers.count(); ++number) counts.push_back({0, number});
    for (size_t p = 0; p < std::min(until, trace.passes.size()); ++p)
        for (size_t layer = 0; layer < trace.layers.size(); ++layer)
            for (const int32_t expert : trace.passes[p].ids[layer]) --counts[numbers.of(layer, expert)].first;
    std::sort(counts.begin(), counts.end());
    std::vector<ExpertName> names;
    for (size_t i = 0; i < counts.size() && std::ssize(names) < slots; ++i)
        names.push_back(numbers.name(counts[i].second));
    return names;
}

}  // namespace thermocline::scheduler
