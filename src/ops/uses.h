// What a step reads and what it writes, so that a player may start steps side by side or in another order; and what is
// known of what it reads.
#pragma once

#include "src/ops/plan.h"

#include <array>
#include <cstdint>

namespace thermocline::ops {

/// Slots and caches of one step; kNone stands for none. What is changed in place is written.
struct Uses {
    std::array<Slot, 4> reads = {kNone, kNone, kNone, kNone};
    std::array<Slot, 3> writes = {kNone, kNone, kNone};
    std::array<CacheId, 2> cache_reads = {kNone, kNone};
    std::array<CacheId, 2> cache_writes = {kNone, kNone};
};

Uses uses_of(const Step& step);

/// Whether the plan puts the queries into FP4 too, which then holds them exactly.
bool queries_are_fp4(const Plan& plan, const SelectEntries& s);

}  // namespace thermocline::ops
