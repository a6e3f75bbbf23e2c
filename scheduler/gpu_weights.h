// The dense weights of a plan in the memory of a card: every matrix that a Linear step multiplies with, the vectors,
// the tables of routing, the rotary frequencies.
#pragma once

#include "cuda/device.h"
#include "cuda/run.h"
#include "src/ops/plan.h"

#include <cstddef>
#include <cstdint>

namespace thermocline::scheduler {

class GpuWeights {
public:
    /// Copies what `plan` shows to `at` of the card, bytes_of() bytes. Throws Error if the card fails.
    GpuWeights(const ops::Plan& plan, cuda::Device& device, std::byte* at);

    const cuda::Weights& on_card() const { return weights_; }

    static int64_t bytes_of(const ops::Plan& plan);

private:
    cuda::Weights weights_;
};

}  // namespace thermocline::scheduler
