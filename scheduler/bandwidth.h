// How fast this machine moves memory, measured now with the workers that will do the work: the denominator of every
// "% of limit".
#pragma once

#include "cpu/workers.h"
#include "src/base/pages.h"

#include <cmath>
#include <cstdint>
#include <vector>

namespace thermocline::scheduler {

/// One stretch of huge pages per worker, larger than its share of the caches and first touched by it, so that it lies
/// on its node. All figures: bytes per second / 1e9 of all workers together, best of a few passes, each about 50 ms.
class BandwidthProbe {
public:
    /// Takes 128 MiB a worker. Throws Error if there is no memory. `workers` must outlive the probe.
    explicit BandwidthProbe(cpu::Workers& workers);

    double read();
    double write();
    /// Bytes read plus bytes written.
    double copy();

private:
    /// Best rate at which body(stretch, worker, pass) moves `bytes` of every stretch.
    template <typename Body>
    double best_of(int passes, size_t bytes, Body body);

    cpu::Workers& workers_;
    std::vector<Pages> stretches_;  // [workers]
    std::vector<uint64_t> sums_;    // [workers] of what was read, so that no pass can be left out
};

/// A measured figure as files show it: three decimals.
inline double rounded(double figure) { return std::round(figure * 1000.0) / 1000.0; }

/// Read bandwidth by a probe of its own; takes about a third of a second.
double measure_read_bandwidth(cpu::Workers& workers);

/// The same where it is only for comparison; 0, and why is logged, if there is little memory to measure with: the
/// weights of a large model should not leave the page cache for it.
double try_read_bandwidth(cpu::Workers& workers);

}  // namespace thermocline::scheduler
