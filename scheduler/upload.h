// Brings weights onto a card, through pinned memory of its own.
#pragma once

#include "cuda/device.h"
#include "cuda/weights.h"
#include "memory/packed_weights.h"

#include <chrono>
#include <span>

namespace thermocline::scheduler {

/// How long copies may take before they are given up.
struct UploadPatience {
    std::chrono::milliseconds any = std::chrono::minutes(1);
    double bytes_per_s = 65536;  ///< and what they take at this rate
};

/// Makes all copies and waits for them. What they copy of `packed` (null: nothing) and is not made is made a piece at a
/// time and dropped again. Throws Error if the card fails or is slower than that; no copy runs any more then either.
void upload(std::span<const cuda::Copy> copies, cuda::Device& device, const UploadPatience& patience = {},
            memory::PackedWeights* packed = nullptr);

}  // namespace thermocline::scheduler
