// How often a recorded trace of routing would have found its experts on a card: the trace is played against the rules
// of residency.h, against a fixed set and against the best that foresight could do. Pure.
#pragma once

#include "scheduler/placement.h"
#include "scheduler/residency.h"
#include "scheduler/routing_trace.h"

#include <cstdint>
#include <limits>
#include <span>
#include <vector>

namespace thermocline::scheduler {

struct Replayed {
    int64_t choices = 0, hits = 0;  // of rows and layers; of these on the card when their pass began
    int64_t changes = 0;            // experts that were brought
    double hit_rate() const { return choices > 0 ? static_cast<double>(hits) / static_cast<double>(choices) : 0.0; }
};

/// Plays passes `count_from` and later; those before only warm up. At most `most_changes` experts come after a pass,
/// and are there in the next.
Replayed replay(const RoutingTrace& trace, std::span<const ExpertName> resident, const ResidencyRules& rules,
                size_t count_from = 0, int64_t most_changes = std::numeric_limits<int64_t>::max());

/// The offline optimum of rules that bring only what was just chosen: kept is what is chosen again soonest (Belady's
/// rule), of that what more rows choose then. Exact where every pass has one row, and where every pass chooses all.
Replayed replay_optimum(const RoutingTrace& trace, std::span<const ExpertName> resident, size_t count_from = 0);

/// The `slots` experts that passes before `until` chose most often, of all layers together; of equals the first.
std::vector<ExpertName> most_chosen(const RoutingTrace& trace, size_t until, int64_t slots);

}  // namespace thermocline::scheduler
