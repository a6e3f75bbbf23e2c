// What a hand-off to the CPU and back costs, by every way in which a card's streams wait for flags.
#pragma once

#include "cuda/device.h"

#include <functional>
#include <memory>
#include <string>
#include <vector>

namespace thermocline::cuda {

struct HandoffSpeed {
    FlagWait way;
    double us = 0;             // of a round trip; 0: the card does not have this way
    std::string why_not = {};  // then
};

/// Microseconds of a round trip as a pass makes it: a recorded graph raises a flag by a kernel, the thread that calls
/// this sees it and raises another, for which the graph waits in the way of this device. Takes less than a second.
/// Throws Error if a flag does not come.
double measure_handoff_us(Device& device);

/// The same by each of kFlagWaits, in their order. open() opens the card so that it waits in this way, or throws Error,
/// which is why_not; if none works that of the first is thrown.
std::vector<HandoffSpeed> measure_handoffs(const std::function<std::unique_ptr<Device>(FlagWait)>& open);

/// Of the way that a card opened with all of kFlagWaits takes: the first that works.
const HandoffSpeed& used(const std::vector<HandoffSpeed>& speeds);

}  // namespace thermocline::cuda
