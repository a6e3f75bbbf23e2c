// Experts of one layer, and where the CPU's part of them passes between card and CPU.
#pragma once

#include "cuda/run.h"
#include "src/ops/plan.h"

#include <atomic>
#include <cstdint>

namespace thermocline::scheduler {

struct Handoff {
    const ops::Experts* step;
    cuda::HostJob to;
};

inline void raise(cuda::Flag* flag) { std::atomic_ref<uint64_t>(flag->value).store(1, std::memory_order_release); }
inline uint64_t flag_of(const cuda::Flag* flag) {
    return std::atomic_ref<uint64_t>(const_cast<cuda::Flag*>(flag)->value).load(std::memory_order_acquire);
}

}  // namespace thermocline::scheduler
