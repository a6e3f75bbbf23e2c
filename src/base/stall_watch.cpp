#include "src/base/stall_watch.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <stop_token>
#include <utility>

namespace thermocline {

StallWatch::StallWatch(std::chrono::milliseconds patience, std::function<std::optional<uint64_t>()> progress,
                       std::function<void(Clock::duration)> on_stall) {
    if (patience.count() <= 0) return;
    thread_ =
        std::jthread([patience, progress = std::move(progress), on_stall = std::move(on_stall)](std::stop_token stop) {
            const std::chrono::milliseconds tick(std::clamp<int64_t>(patience.count() / 16, 1, 1000));
            std::mutex mutex;
            std::condition_variable_any wake;
            std::unique_lock lock(mutex);
            std::optional<uint64_t> seen;
            Clock::duration waited{};
            Clock::time_point last = Clock::now();
            while (!wake.wait_for(lock, stop, tick, [&] { return stop.stop_requested(); })) {
                const Clock::time_point now = Clock::now();
                const Clock::duration passed = std::min<Clock::duration>(now - std::exchange(last, now), 2 * tick);
                const std::optional<uint64_t> found = progress();
                waited = found && found == seen ? waited + passed : Clock::duration{};
                seen = found;
                if (waited < patience) continue;
                on_stall(waited);
                return;
            }
        });
}

}  // namespace thermocline
