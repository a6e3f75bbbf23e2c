#include "scheduler/stream_queue.h"

#include <algorithm>

namespace thermocline::scheduler {

namespace {

constexpr int64_t kDepth = 3;  // experts on their way

}  // namespace

double StreamCosts::cpu(int64_t pairs) const { return std::max(cpu_expert, static_cast<double>(pairs) * cpu_pair); }
double StreamCosts::card(int64_t pairs) const { return std::max(card_expert, static_cast<double>(pairs) * card_pair); }

void StreamQueue::fill(std::span<const Item> items, const StreamCosts& costs) {
    items_.assign(items.begin(), items.end());
    std::sort(items_.begin(), items_.end(), [](const Item& a, const Item& b) {
        return a.pairs != b.pairs ? a.pairs > b.pairs : a.expert < b.expert;
    });
    costs_ = costs;
    front_ = 0;
    back_ = items_.size();
    cpu_before_.assign(1, 0.0);
    card_before_.assign(1, 0.0);
    for (const Item& item : items_) {
        cpu_before_.push_back(cpu_before_.back() + costs.cpu(item.pairs));
        card_before_.push_back(card_before_.back() + costs.card(item.pairs));
    }
}

bool StreamQueue::link_wants(int64_t on_their_way, double card_busy) const {
    if (front_ == back_) return false;
    const double until_there = static_cast<double>(on_their_way + 1) * costs_.link;
    // Enough to keep the link busy while the CPU does its next.
    if (on_their_way >= kDepth && until_there > costs_.link + next_on_cpu()) return false;
    const double until_done = std::max(until_there, card_busy + costs_.link) + costs_.card(items_[front_].pairs);
    return !costs_.cpu_helps || until_done < cpu_before_[back_] - cpu_before_[front_];
}

std::span<const StreamQueue::Item> StreamQueue::take_for_cpu(int64_t on_their_way, double card_busy) {
    if (front_ == back_ || !costs_.cpu_helps) return {};
    const auto left = static_cast<double>(on_their_way + static_cast<int64_t>(back_ - front_));
    const double until_done =
        std::max(left * costs_.link, card_busy + costs_.link) + card_before_[back_] - card_before_[front_];
    if (until_done < next_on_cpu()) return {};
    const size_t end = back_--;
    while (front_ < back_ && cpu_before_[end] - cpu_before_[back_ - 1] <= costs_.link) --back_;
    return std::span(items_).subspan(back_, end - back_);
}

}  // namespace thermocline::scheduler
