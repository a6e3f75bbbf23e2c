// How often a trace could have found its experts on a card with perfect foresight, if no more experts are brought than
// somebody else brought: the comparator for rules of residency, which all share the link. Pure.
#pragma once

#include "scheduler/routing_trace.h"

#include <cstddef>
#include <cstdint>

namespace thermocline::scheduler {

/// No rule with `slots` slots that brings only what was just chosen, as residency.h does and replay_optimum(), finds
/// more choices of passes `from` and later if it brings at most `changes` experts between them, whichever lay there at
/// `from`. Exact but for what lies between two numbers of changes: a flow of least cost (the slots) through the uses of
/// the experts, at the price of a change with which it brings so many (its dual: never too low).
double most_hits(const RoutingTrace& trace, int64_t slots, size_t from, int64_t changes);

}  // namespace thermocline::scheduler
