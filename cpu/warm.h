// Experts that a layer will probably need are brought into the caches of the workers who will read them, while the
// card has the workers wait (hybrid-engine.md 4.7). Nothing that is computed depends on it.
#pragma once

#include "cpu/run.h"

#include <cstdint>
#include <span>

namespace thermocline::cpu {

/// Each worker brings its own strips of `experts`, the first before the next, as run(s) will share them out if
/// f.strips_first: at most `bytes_each`, and no more once `stop`, which another thread or device sets atomically, is
/// not 0. Returns the bytes that all of them have asked memory for.
int64_t warm_experts(const ops::Experts& s, const Frame& f, std::span<const int32_t> experts, int64_t bytes_each,
                     const uint64_t& stop) noexcept;

}  // namespace thermocline::cpu
