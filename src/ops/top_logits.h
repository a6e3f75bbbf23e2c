// The largest logits of an output row, as a card finds them without sending all of them to the host.
#pragma once

#include <cstdint>
#include <span>

namespace thermocline::ops {

inline constexpr int kTopLogits = 128;

struct TopLogit {
    int32_t id;
    float logit;
};

struct TopLogits {
    std::span<const TopLogit> best;  // in any order; no other logit is above the least of them, equal ones have higher
                                     // ids
    bool is_all = false;             // there are no others
    float weights = 0;               // of all logits: the sum of exp((logit - largest) * factor), to about 1e-6
};

}  // namespace thermocline::ops
