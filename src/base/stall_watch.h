// Looks now and then, from a thread of its own, whether something that may hang goes on.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <optional>
#include <thread>

namespace thermocline {

class StallWatch {
public:
    using Clock = std::chrono::steady_clock;

    /// Calls `on_stall` with the time that it took, once, when `progress` has given the same number for `patience`
    /// (0: never). It gives nothing while there is nothing to do. Both are called by the thread of this watch. Time in
    /// which this process was stopped does not count.
    StallWatch(std::chrono::milliseconds patience, std::function<std::optional<uint64_t>()> progress,
               std::function<void(Clock::duration)> on_stall);

private:
    std::jthread thread_;
};

}  // namespace thermocline
