#include "cpu/worker_watch.h"

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <stop_token>
#include <utility>

namespace thermocline::cpu {

namespace {

using Clock = std::chrono::steady_clock;

std::string stuck_text(const Workers& workers, const std::vector<int>& late, Clock::duration waited) {
    std::string text = workers.name_of(late.front());
    if (late.size() > 1) text += " and " + std::to_string(late.size() - 1) + " others";
    return text + (late.size() > 1 ? " have" : " has") + " not gone on for " +
           std::to_string(std::chrono::duration_cast<std::chrono::seconds>(waited).count()) +
           " s: is a disk stuck that the weights are read from, a core gone, memory short (dmesg)? --worker-timeout "
           "waits longer";
}

}  // namespace

WorkerWatch::WorkerWatch(const Workers& workers, std::chrono::milliseconds patience,
                         std::function<void(const std::string&)> on_stuck) {
    if (patience.count() <= 0) return;
    thread_ = std::jthread([&workers, patience, on_stuck = std::move(on_stuck)](std::stop_token stop) {
        const std::chrono::milliseconds tick(std::clamp<int64_t>(patience.count() / 16, 1, 1000));
        std::mutex mutex;
        std::condition_variable_any wake;
        std::unique_lock lock(mutex);
        uint64_t seen = 0;
        Clock::duration waited{};
        Clock::time_point last = Clock::now();
        while (!wake.wait_for(lock, stop, tick, [&] { return stop.stop_requested(); })) {
            const Clock::time_point now = Clock::now();
            const Clock::duration passed = std::min<Clock::duration>(now - std::exchange(last, now), 2 * tick);
            const Workers::Standing standing = workers.standing();
            const bool stands = !standing.late.empty() && standing.progress == seen;
            seen = standing.progress;
            waited = stands ? waited + passed : Clock::duration{};
            if (waited < patience) continue;
            on_stuck(stuck_text(workers, standing.late, waited));
            return;
        }
    });
}

}  // namespace thermocline::cpu
