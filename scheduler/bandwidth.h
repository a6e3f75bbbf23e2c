// How fast this machine reads memory, measured now with the workers that will do the work: the denominator of every
// "% of limit".
#pragma once

#include "cpu/workers.h"

namespace thermocline::scheduler {

/// Bytes per second / 1e9 that all workers together read from buffers larger than the caches, best of a few passes;
/// takes about a fifth of a second.
double measure_read_bandwidth(cpu::Workers& workers);

}  // namespace thermocline::scheduler
