// The dense weights of a plan in the memory of a card: every matrix that a Linear step multiplies with, the vectors,
// the tables of routing, the rotary frequencies. One stretch of memory, taken once.
#pragma once

#include "cuda/device.h"
#include "cuda/run.h"
#include "src/ops/plan.h"

#include <cstdint>

namespace thermocline::scheduler {

class GpuWeights {
public:
    /// Copies what `plan` shows; throws Error if the card has no room.
    GpuWeights(const ops::Plan& plan, cuda::Device& device, cuda::Stream& stream);

    const cuda::Weights& on_card() const { return weights_; }
    int64_t bytes() const { return memory_.bytes(); }

    /// What a card will be asked for.
    static int64_t bytes_of(const ops::Plan& plan);

private:
    cuda::DeviceMemory memory_;
    cuda::Weights weights_;
};

}  // namespace thermocline::scheduler
