// Neighbouring numbers that are read or written by one instruction.
#pragma once

#include "cuda/launch.h"

#include <cstdint>

namespace thermocline::cuda {

struct alignas(16) Four {
    float x[4];
};

struct alignas(8) Two {
    float x[2];
};
struct alignas(8) TwoWords {
    uint32_t x[2];
};

/// `from` aligned to 16 bytes.
GPU_CODE inline Four load_four(const float* from) { return *reinterpret_cast<const Four*>(from); }
GPU_CODE inline void store_four(float* to, const Four& four) { *reinterpret_cast<Four*>(to) = four; }

}  // namespace thermocline::cuda
