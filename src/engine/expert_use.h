// How the routed experts of a running model are used, for those who show it.
#pragma once

#include <cstdint>
#include <vector>

namespace thermocline::engine {

struct ExpertUse {
    int64_t tokens = 0;
    std::vector<std::vector<int64_t>> chosen;   // [layers][experts]: tokens that chose each
    std::vector<std::vector<int32_t>> on_card;  // of each layer, as of some passes ago
    // Since the start, with a card: experts that tokens chose; of these on the card; experts brought there, their
    // bytes.
    int64_t choices = 0, hits = 0, moved_experts = 0, moved_bytes = 0;
};

}  // namespace thermocline::engine
