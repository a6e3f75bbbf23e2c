// The experts of one layer of a prompt that are not on the card: the link takes the hottest, the CPU the coldest, until
// they meet (hybrid-engine.md 4.5). Where that is follows from what each takes. Pure. One thread.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace thermocline::scheduler {

struct StreamCosts {
    double link = 0;                        // of an expert over the link
    double cpu_expert = 0;                  // of an expert on the CPU the larger one: as such,
    double cpu_pair = 0;                    // by its rows
    bool cpu_helps = true;                  // false: the link takes all
    double card_expert = 0, card_pair = 0;  // likewise of one that has come

    double cpu(int64_t pairs) const;
    double card(int64_t pairs) const;
};

class StreamQueue {
public:
    struct Item {
        int32_t expert;
        int32_t pairs;
    };
    /// Starts anew. Any order.
    void fill(std::span<const Item> items, const StreamCosts& costs);

    /// Those that have not been taken, the hottest first.
    std::span<const Item> left() const { return std::span(items_).subspan(front_, back_ - front_); }
    /// All, as they were at the start, the hottest first.
    std::span<const Item> all() const { return items_; }

    /// Whether the link shall take the next one, while so many are still on their way, and with those that have come
    /// the card is busy for so long: not if these keep the link busy, nor if the CPU can do all that is left before it
    /// would be done.
    bool link_wants(int64_t on_their_way, double card_busy = 0) const;
    /// Place of the taken one in all().
    size_t take_for_link() { return front_++; }
    /// What the CPU shall do now, about as long as the link takes for one; empty: nothing, all that is left will have
    /// come and be done before the CPU could do the next.
    std::span<const Item> take_for_cpu(int64_t on_their_way, double card_busy = 0);

private:
    double next_on_cpu() const { return costs_.cpu_helps ? costs_.cpu(items_[back_ - 1].pairs) : 0.0; }

    std::vector<Item> items_;
    std::vector<double> cpu_before_, card_before_;  // [items + 1] what either side takes for those before
    size_t front_ = 0, back_ = 0;
    StreamCosts costs_;
};

}  // namespace thermocline::scheduler
