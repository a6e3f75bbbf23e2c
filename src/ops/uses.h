// What a step reads and what it writes, so that a player may start steps side by side or in another order.
#pragma once

#include "src/ops/steps.h"

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

}  // namespace thermocline::ops
