// A card whose streams are watched: a call that does not return, because the driver hangs or the card is off the bus,
// would keep the thread that made it waiting for ever, and no patience of that thread's own could end it.
#pragma once

#include "cuda/device.h"
#include "src/base/end_process.h"

#include <chrono>
#include <functional>
#include <memory>
#include <string>

namespace thermocline::cuda {

/// The same card. Calls `on_stuck` with a sentence, from a thread of its own and once, when no call of its streams has
/// returned for `patience` though one is under way.
std::unique_ptr<Device> watched(std::unique_ptr<Device> device, std::chrono::milliseconds patience,
                                std::function<void(const std::string&)> on_stuck = end_process);

}  // namespace thermocline::cuda
