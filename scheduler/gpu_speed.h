// What the graphics cards of this machine can do beside its CPU, measured (bench-machine): their link alone and while
// the CPU reads its memory, their own memory, and how long a hand-off to the CPU takes.
#pragma once

#include "cuda/cuda.h"
#include "cuda/handoff_speed.h"

#include <span>
#include <vector>

namespace thermocline::scheduler {

struct GpuSpeed {
    cuda::DeviceInfo device;
    cuda::LinkSpeed link;                           // the CPU idle
    cuda::LinkSpeed busy_link;                      // all CPU workers reading
    double busy_cpu_read = 0.0;                     // GB/s that the workers read meanwhile
    double memory_read = 0.0;                       // GB/s of a kernel
    double handoff_us = 0.0;                        // GPU to CPU and back, as passes do it
    std::vector<cuda::HandoffSpeed> handoffs = {};  // by every way; empty: not known
};

/// Takes a few seconds. `cpus`: of the workers that read meanwhile. Throws Error naming the card.
GpuSpeed measure_gpu(const cuda::DeviceInfo& device, std::span<const int> cpus);

}  // namespace thermocline::scheduler
