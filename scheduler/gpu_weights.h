// The dense weights of a plan in the memory of a card: every matrix that a Linear step multiplies with, the vectors,
// the tables of routing, the rotary frequencies.
#pragma once

#include "cuda/device.h"
#include "cuda/run.h"
#include "memory/packed_weights.h"
#include "src/ops/plan.h"

#include <cstddef>
#include <cstdint>
#include <set>

namespace thermocline::scheduler {

class GpuWeights {
public:
    /// Copies what `plan` shows to `at` of the card, bytes_of() bytes; `packed`: as for upload(). Throws Error if the
    /// card fails.
    GpuWeights(const ops::Plan& plan, cuda::Device& device, std::byte* at, memory::PackedWeights* packed = nullptr);

    const cuda::Weights& on_card() const { return weights_; }

    static int64_t bytes_of(const ops::Plan& plan);
    /// The matrices that it copies.
    static std::set<ops::MatrixId> matrices_of(const ops::Plan& plan);

private:
    cuda::Weights weights_;
};

}  // namespace thermocline::scheduler
