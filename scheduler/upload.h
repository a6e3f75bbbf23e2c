// Brings weights onto a card, through pinned memory of its own.
#pragma once

#include "cuda/device.h"
#include "cuda/weights.h"

#include <span>

namespace thermocline::scheduler {

/// Makes all copies and waits for them. Throws Error if the card fails.
void upload(std::span<const cuda::Copy> copies, cuda::Device& device, cuda::Stream& stream);

}  // namespace thermocline::scheduler
