#include "scheduler/layer_split.h"

#include "src/base/check.h"
#include "src/base/error.h"

#include <algorithm>
#include <limits>
#include <numeric>

namespace thermocline::scheduler {

namespace {

constexpr double kInfinite = std::numeric_limits<double>::infinity();
constexpr int64_t kAnyBudget = int64_t{1} << 50;

struct Best {
    double seconds = kInfinite;
    size_t unevenness = 0;  // sum of the squares of the counts
    size_t first = 0;       // of the last card's layers

    bool worse_than(const Best& other) const {
        if (other.seconds == kInfinite) return false;
        const double slack = 1e-9 * other.seconds;
        if (seconds > other.seconds + slack) return true;
        return seconds >= other.seconds - slack && unevenness > other.unevenness;
    }
};

/// What the split is decided by: numbers of single layers, that add up.
class Objective {
public:
    Objective(const SplitQuestion& question, int64_t chunk) : question_(question) {
        GpuMemoryWishes wishes = question.wishes;
        wishes.prefill_chunk = chunk;
        wishes.least_prefill_chunk = std::min(chunk, wishes.least_prefill_chunk);
        wishes.least_expert_slots = 0;
        wishes.budget_bytes = kAnyBudget;
        const ops::Plan& plan = question.plan;
        const GpuMemoryPlan whole = plan_gpu_memory(plan, nullptr, wishes, {});
        workspace_ = bytes_of(whole, true);
        slot_bytes_ = whole.slot_bytes;
        const size_t layers = ops::layer_starts(plan).size() - 1;
        const TokenWork work = token_work(plan, wishes.context - 1);
        for (size_t i = 0; i < layers; ++i) {
            const ops::Plan layer = ops::layers_of(plan, i, i + 1).plan;
            fixed_.push_back(bytes_of(plan_gpu_memory(layer, nullptr, wishes, {}), false));
            work_.push_back(token_work(layer, wishes.context - 1));
            experts_.push_back(expert_count(layer));
        }
        if (question.shares.empty()) return;
        const std::vector<RoutedLayer> routed = routed_layers(plan);
        for (const SplitCard& card : question.cards) {
            const std::vector<double> seconds = layer_seconds(work, card.rates, true);
            auto& of_card = by_slots_.emplace_back();
            for (size_t i = 0; i < layers; ++i)
                of_card.push_back(seconds_by_slots(routed[i], question.shares[i], seconds));
        }
    }

    size_t layers() const { return fixed_.size(); }

    double seconds(size_t card, LayerRange range) {
        const auto sum = [&](const std::vector<int64_t>& of) {
            return std::accumulate(of.begin() + static_cast<std::ptrdiff_t>(range.first),
                                   of.begin() + static_cast<std::ptrdiff_t>(range.last), int64_t{0});
        };
        const SplitCard& one = question_.cards[card];
        const int64_t experts = sum(experts_);
        const int64_t left = one.budget_bytes - one.budget_bytes * one.reserve.safety_per_mille / 1000 -
                             one.reserve.runtime_bytes - one.reserve.library_bytes - workspace_ - sum(fixed_);
        if (left < 0) return kInfinite;
        const int64_t slots = std::min({left / slot_bytes_, experts, question_.wishes.most_expert_slots});
        if (question_.wishes.least_expert_slots > 0 && slots < experts) return kInfinite;
        TokenWork work = work_[range.first];
        for (size_t i = range.first + 1; i < range.last; ++i) {
            work.dense_bytes += work_[i].dense_bytes;
            work.shared_bytes += work_[i].shared_bytes;
            work.layers += work_[i].layers;
        }
        if (by_slots_.empty()) {
            const double resident = static_cast<double>(slots) / static_cast<double>(experts);
            return decode_time(work, one.rates, hit_rate(resident, Outlook::kTarget)).seconds;
        }
        return work.dense_bytes / one.rates.gpu_dense + work.layers * one.rates.layer_overhead +
               experts_seconds(by_slots_[card], range, slots);
    }

private:
    static int64_t bytes_of(const GpuMemoryPlan& plan, bool workspace) {
        int64_t bytes = 0;
        for (const GpuMemoryLine& line : plan.lines)
            if (line.of_executor && (line.name.rfind("workspace", 0) == 0) == workspace) bytes += line.bytes;
        return bytes;
    }

    /// The slots of a card go to the largest gains of its layers, as in place_experts().
    double experts_seconds(const std::vector<std::vector<double>>& by_slots, LayerRange range, int64_t slots) {
        double seconds = 0.0;
        gains_.clear();
        for (size_t i = range.first; i < range.last; ++i) {
            seconds += by_slots[i].front();
            for (size_t k = 1; k < by_slots[i].size(); ++k) gains_.push_back(by_slots[i][k - 1] - by_slots[i][k]);
        }
        const auto end = gains_.begin() + std::min<std::ptrdiff_t>(std::ssize(gains_), slots);
        if (end != gains_.end()) std::nth_element(gains_.begin(), end, gains_.end(), std::greater<>());
        for (auto gain = gains_.begin(); gain != end; ++gain) seconds -= std::max(0.0, *gain);
        return seconds;
    }

    const SplitQuestion& question_;
    int64_t workspace_ = 0, slot_bytes_ = 0;
    std::vector<int64_t> fixed_, experts_;  // of each layer
    std::vector<TokenWork> work_;
    std::vector<std::vector<std::vector<double>>> by_slots_;  // [cards][layers]: seconds_by_slots()
    std::vector<double> gains_;                               // scratch
};

std::vector<LayerRange> even_split(size_t layers, size_t cards) {
    std::vector<LayerRange> ranges;
    for (size_t card = 0; card < cards; ++card) ranges.push_back({card * layers / cards, (card + 1) * layers / cards});
    return ranges;
}

}  // namespace

std::vector<LayerRange> split_layers(size_t layers, size_t cards,
                                     const std::function<double(size_t card, LayerRange range)>& seconds) {
    CHECK(cards > 0 && cards <= layers);
    // [card][last]: of the cards up to this one with the layers up to that.
    std::vector<std::vector<Best>> best(cards, std::vector<Best>(layers + 1));
    for (size_t card = 0; card < cards; ++card) {
        const size_t left = cards - card - 1;
        for (size_t last = left == 0 ? layers : card + 1; last + left <= layers; ++last)
            for (size_t first = card == 0 ? 0 : card; first < (card == 0 ? 1 : last); ++first) {
                const Best before = card == 0 ? Best{0.0, 0, 0} : best[card - 1][first];
                if (before.seconds == kInfinite) continue;
                const Best with = {before.seconds + seconds(card, {first, last}),
                                   before.unevenness + (last - first) * (last - first), first};
                if (with.seconds < kInfinite && !with.worse_than(best[card][last])) best[card][last] = with;
            }
    }
    if (best[cards - 1][layers].seconds == kInfinite) return {};
    std::vector<LayerRange> ranges(cards);
    size_t last = layers;
    for (size_t card = cards; card-- > 0;) {
        ranges[card] = {best[card][last].first, last};
        last = ranges[card].first;
    }
    return ranges;
}

std::vector<LayerRange> split_over_cards(const SplitQuestion& question) {
    const size_t cards = question.cards.size(), layers = layers_to_split(question.plan);
    if (cards > layers) fail("--gpus is ", cards, ", but the model has ", layers, " layers with routed experts");
    const int64_t chunk = question.wishes.prefill_chunk;
    for (const int64_t rows : {chunk, std::min(chunk, question.wishes.least_prefill_chunk)}) {
        Objective objective(question, rows);
        auto ranges =
            split_layers(layers, cards, [&](size_t card, LayerRange range) { return objective.seconds(card, range); });
        if (!ranges.empty()) return ranges;
    }
    return {};
}

Rates assumed_rates() {
    Rates rates;
    rates.gpu_dense = 1470e9;
    rates.gpu_expert = 1290e9;
    rates.dram = 460e9;
    rates.link = 56e9;
    rates.layer_overhead = 30e-6;
    rates.handoff = 8e-6;
    return rates;
}

std::vector<CardPart> parts_of(const SplitQuestion& question, std::span<const LayerRange> ranges) {
    const size_t cards = question.cards.size();
    const std::vector<LayerRange> even =
        ranges.empty() ? even_split(ops::layer_starts(question.plan).size() - 1, cards) : std::vector<LayerRange>();
    if (ranges.empty()) ranges = even;
    std::vector<CardPart> parts;
    for (const LayerRange& range : ranges)
        parts.push_back({range, ops::layers_of(question.plan, range.first, range.last), {}});
    GpuMemoryWishes wishes = question.wishes;
    for (bool again = true; again;) {
        again = false;
        for (size_t i = 0; i < cards && !again; ++i) {
            wishes.budget_bytes = question.cards[i].budget_bytes;
            wishes.least_expert_slots = question.wishes.least_expert_slots > 0 ? expert_count(parts[i].part.plan) : 0;
            parts[i].memory = plan_gpu_memory(parts[i].part.plan, nullptr, wishes, question.cards[i].reserve);
            again = parts[i].memory.refusal.empty() && parts[i].memory.prefill_chunk < wishes.prefill_chunk;
            wishes.prefill_chunk = std::min(wishes.prefill_chunk, parts[i].memory.prefill_chunk);
        }
    }
    return parts;
}

size_t layers_to_split(const ops::Plan& plan) {
    const std::string why_not = ops::why_not_cut(plan);
    if (!why_not.empty())
        fail("the layers of this model cannot be split over cards: ", printable(why_not, 400), ". Use --gpus 1");
    return ops::layer_starts(plan).size() - 1;
}

std::vector<LayerRange> ranges_of(std::span<const int64_t> counts, size_t layers, size_t cards) {
    std::vector<LayerRange> ranges;
    size_t at = 0;
    for (const int64_t count : counts) {
        if (count < 1 || count > static_cast<int64_t>(layers - at)) break;
        ranges.push_back({at, at + static_cast<size_t>(count)});
        at = ranges.back().last;
    }
    if (ranges.size() != counts.size() || counts.size() != cards || at != layers) {
        std::string text;
        for (const int64_t count : counts) text += (text.empty() ? "" : ",") + std::to_string(count);
        fail("the layers are split ", text, " over ", cards, " cards, expected one number for each, none 0, ", layers,
             " together");
    }
    return ranges;
}

std::vector<ExpertName> experts_within(std::span<const ExpertName> names, LayerRange layers) {
    std::vector<ExpertName> within;
    for (const ExpertName& name : names)
        if (static_cast<size_t>(name.set) >= layers.first && static_cast<size_t>(name.set) < layers.last)
            within.push_back({name.set - static_cast<ops::ExpertsId>(layers.first), name.expert});
    return within;
}

ExpertName in_whole(ExpertName name, LayerRange layers) {
    return {name.set + static_cast<ops::ExpertsId>(layers.first), name.expert};
}

}  // namespace thermocline::scheduler
