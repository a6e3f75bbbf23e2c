#include "scheduler/residency.h"

#include "src/base/check.h"
#include "src/base/error.h"

#include <algorithm>
#include <cmath>

namespace thermocline::scheduler {

namespace {

constexpr double kTooLarge = 1e100;  // of the inflation: then all scores are divided
/// Of an even share of the slots: what a layer keeps is at most this. Else few slots would all be kept by the layers
/// that had them first.
constexpr double kMostKept = 0.75;

}  // namespace

ResidencyRules::Policy residency_policy(const std::string& name) {
    using Policy = ResidencyRules::Policy;
    if (name == "adaptive") return Policy::kAdaptive;
    if (name == "static") return Policy::kStatic;
    if (name == "lru") return Policy::kLru;
    fail("--residency is ", printable(name), ", expected adaptive, static or lru");
}

Prefetched& Prefetched::operator+=(const Prefetched& other) {
    on |= other.on;
    gain = std::max(gain, other.gain);
    for (int64_t Prefetched::*count : {&Prefetched::foretold, &Prefetched::right, &Prefetched::warmed_bytes})
        this->*count += other.*count;
    return *this;
}

ResidencyCounters& ResidencyCounters::operator+=(const ResidencyCounters& other) {
    using Counters = ResidencyCounters;
    for (int64_t Counters::*count :
         {&Counters::choices, &Counters::hits, &Counters::changes, &Counters::bytes, &Counters::core,
          &Counters::streamed, &Counters::adopted, &Counters::ahead, &Counters::in_vain, &Counters::card_reads,
          &Counters::cpu_reads, &Counters::layers_played, &Counters::asked_bytes})
        this->*count += other.*count;
    for (double Counters::*seconds : {&Counters::link_seconds, &Counters::phase_seconds, &Counters::fill_seconds,
                                      &Counters::cpu_seconds, &Counters::exposed_seconds})
        this->*seconds += other.*seconds;
    expert_bytes = std::max(expert_bytes, other.expert_bytes);
    for (Tried Counters::*tried : {&Counters::decode, &Counters::prompts}) {
        (this->*tried).on |= (other.*tried).on;
        (this->*tried).gain = std::max((this->*tried).gain, (other.*tried).gain);
    }
    prefetched += other.prefetched;
    return *this;
}

Residency::Residency(std::span<const int64_t> sizes, std::span<const ExpertName> resident, const ResidencyRules& rules)
    : rules_(rules), slots_of_set_(sizes.size(), 0), victims_(sizes.size()) {
    int64_t largest = 0;
    for (const int64_t size : sizes) {
        sets_.emplace_back(static_cast<size_t>(size));
        largest = std::max(largest, size);
    }
    counted_.resize(static_cast<size_t>(largest));
    const double even = static_cast<double>(resident.size()) / static_cast<double>(std::max<size_t>(sizes.size(), 1));
    rules_.least_per_set = std::min(rules_.least_per_set, static_cast<int64_t>(kMostKept * even));
    for (const ExpertName& name : resident) {
        at(name).slot = static_cast<int32_t>(slots_.size());
        at(name).arrived = true;
        ++slots_of_set_[static_cast<size_t>(name.set)];
        slots_.push_back({name});
    }
}

void Residency::begin_pass(int64_t rows, bool is_prompt) {
    ++pass_;
    missed_.clear();
    chosen_stay_ = !is_prompt || rules_.ring > 0;
    weight_ = is_prompt ? rules_.prompt_weight : 1.0;
    inflation_ *= std::exp2(static_cast<double>(rows) * weight_ / rules_.half_life);
    if (inflation_ < kTooLarge) return;
    for (std::vector<Expert>& set : sets_)
        for (Expert& expert : set) expert.score /= inflation_;
    inflation_ = 1;
}

void Residency::expect(const std::vector<std::vector<double>>& shares) {
    // Of tokens 0, 1, 2, ... ago together, were each worth half of what it was a half-life ago.
    const double tokens = 1.0 / (1.0 - std::exp2(-1.0 / rules_.half_life));
    const bool lru = rules_.policy == ResidencyRules::Policy::kLru;  // its scores are passes: an order among the old
    for (size_t set = 0; set < sets_.size(); ++set)
        for (size_t e = 0; e < sets_[set].size(); ++e)
            sets_[set][e].score = shares[set][e] * (lru ? 0.5 : tokens * inflation_);
}

void Residency::want(const std::vector<ExpertName>& names) {
    for (std::vector<Expert>& set : sets_)
        for (Expert& expert : set) expert.wanted = false;
    for (const ExpertName& name : names) at(name).wanted = true;
    std::erase_if(wanted_, [&](ExpertName name) { return !at(name).pinned; });
    wanted_.insert(wanted_.begin(), names.rbegin(), names.rend());
}

void Residency::pin(ExpertName name, bool pinned) {
    pins_ += pinned - at(name).pinned;
    CHECK(pins_ <= std::ssize(slots_));
    at(name).pinned = pinned;
    if (pinned) wanted_.push_back(name);
}

void Residency::note(ops::ExpertsId set, std::span<const int32_t> ids) {
    std::vector<Expert>& experts = sets_[static_cast<size_t>(set)];
    const bool lru = rules_.policy == ResidencyRules::Policy::kLru;
    std::fill(counted_.begin(), counted_.end(), 0);
    for (const int32_t id : ids) ++counted_[static_cast<size_t>(id)];
    const auto most = static_cast<double>(*std::max_element(counted_.begin(), counted_.end()));
    const double weight = std::min(weight_, rules_.most_per_prompt / std::max(most, 1.0));
    for (const int32_t id : ids) {
        Expert& expert = experts[static_cast<size_t>(id)];
        ++choices_;
        hits_ += expert.arrived;
        expert.score = lru ? static_cast<double>(pass_) : expert.score + inflation_ * weight;
        if (expert.last_pass == pass_) continue;
        expert.twice = expert.last_pass >= 0;
        expert.last_pass = pass_;
        if (expert.slot < 0) missed_.push_back({set, id});
    }
}

/// Puts the slots that may be taken in order, set by set, the least score (of equals the lowest slot) last. Experts of
/// the last two passes stay, but for prompts: these choose nearly all. (Those of a ring are adopted already.)
void Residency::collect_victims() {
    for (std::vector<int32_t>& victims : victims_) victims.clear();
    for (auto slot = static_cast<size_t>(rules_.core); slot < slots_.size(); ++slot) {
        const ExpertName name = slots_[slot].name;
        if (slots_[slot].busy || at(name).pinned || (chosen_stay_ && at(name).last_pass > pass_ - 2)) continue;
        victims_[static_cast<size_t>(name.set)].push_back(static_cast<int32_t>(slot));
    }
    for (std::vector<int32_t>& victims : victims_)
        std::sort(victims.begin(), victims.end(),
                  [&](int32_t a, int32_t b) { return score_in(a) != score_in(b) ? score_in(a) > score_in(b) : a > b; });
}

/// Scores below this are clearly less than the newcomer's.
double Residency::beaten_by(ExpertName newcomer) {
    return at(newcomer).score / (rules_.policy == ResidencyRules::Policy::kAdaptive ? 1 + rules_.margin : 1.0);
}

/// The slot whose expert is worth least, if that is clearly less than the newcomer; -1: none.
int32_t Residency::take_victim(ExpertName newcomer) {
    double least = beaten_by(newcomer);
    size_t from = victims_.size();
    for (size_t set = 0; set < victims_.size(); ++set) {
        if (victims_[set].empty() || score_in(victims_[set].back()) >= least) continue;
        if (set != static_cast<size_t>(newcomer.set) && slots_of_set_[set] <= rules_.least_per_set) continue;
        least = score_in(victims_[set].back());
        from = set;
    }
    if (from == victims_.size()) return -1;
    const int32_t slot = victims_[from].back();
    victims_[from].pop_back();
    return slot;
}

/// The slot of the least score that neither a pinned nor a wanted expert has; -1: none.
int32_t Residency::victim_of_wanted() {
    int32_t found = -1;
    for (auto slot = static_cast<int32_t>(rules_.core); slot < std::ssize(slots_); ++slot) {
        const Expert& expert = at(slots_[static_cast<size_t>(slot)].name);
        if (slots_[static_cast<size_t>(slot)].busy || expert.pinned || expert.wanted) continue;
        if (found < 0 || expert.score < score_in(found)) found = slot;
    }
    return found;
}

Residency::Change Residency::replace(int32_t slot, ExpertName in) {
    Slot& taken = slots_[static_cast<size_t>(slot)];
    const Change change{slot, in, taken.name};
    Expert& out = at(taken.name);
    out.slot = -1;
    out.arrived = out.twice = false;
    --slots_of_set_[static_cast<size_t>(taken.name.set)];
    ++slots_of_set_[static_cast<size_t>(in.set)];
    at(in).slot = slot;
    taken = {in, true};
    return change;
}

std::vector<Residency::Change> Residency::choose(int64_t most) {
    std::vector<Change> changes;
    while (!wanted_.empty() && std::ssize(changes) < most) {
        const ExpertName in = wanted_.back();
        const int32_t slot = at(in).slot >= 0 ? -1 : victim_of_wanted();
        if (at(in).slot < 0 && slot < 0) break;  // all are on the way, pinned or wanted
        wanted_.pop_back();
        if (slot >= 0) changes.push_back(replace(slot, in));
    }
    if (rules_.policy == ResidencyRules::Policy::kStatic) return changes;
    if (rules_.policy == ResidencyRules::Policy::kAdaptive)
        std::erase_if(missed_, [&](ExpertName name) { return !at(name).twice; });
    std::stable_sort(missed_.begin(), missed_.end(),
                     [&](ExpertName a, ExpertName b) { return at(a).score > at(b).score; });
    if (!missed_.empty()) collect_victims();
    for (const ExpertName& in : missed_) {
        if (std::ssize(changes) >= most) break;
        if (at(in).slot >= 0) continue;  // it was wanted
        const int32_t slot = take_victim(in);
        if (slot >= 0) changes.push_back(replace(slot, in));
    }
    missed_.clear();
    return changes;
}

std::optional<Residency::Change> Residency::adopt(ExpertName in) {
    if (rules_.policy == ResidencyRules::Policy::kStatic || at(in).slot >= 0) return std::nullopt;
    int32_t found = -1;
    double least = beaten_by(in);
    for (const Expert& expert : sets_[static_cast<size_t>(in.set)]) {
        const bool kept = expert.pinned || (expert.wanted && !wanted_.empty());
        if (expert.slot < rules_.core || !expert.arrived || kept || expert.score >= least) continue;
        found = expert.slot;
        least = expert.score;
    }
    if (found < 0) return std::nullopt;
    return replace(found, in);
}

std::vector<double> Residency::likely(ops::ExpertsId set, double pairs) const {
    const std::vector<Expert>& experts = sets_[static_cast<size_t>(set)];
    double sum = 0;
    for (const Expert& expert : experts) sum += expert.score;
    std::vector<double> likely;
    for (const Expert& expert : experts)
        likely.push_back(pairs * (sum > 0 ? expert.score / sum : 1.0 / static_cast<double>(experts.size())));
    return likely;
}

void Residency::arrived(int32_t slot) {
    Slot& taken = slots_[static_cast<size_t>(slot)];
    CHECK(taken.busy);
    taken.busy = false;
    at(taken.name).arrived = true;
}

}  // namespace thermocline::scheduler
