#include "cpu/worker_watch.h"

#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace thermocline::cpu {

namespace {

std::string stuck_text(const Workers& workers, const std::vector<int>& late, StallWatch::Clock::duration waited) {
    std::string text = workers.name_of(late.front());
    if (late.size() > 1) text += " and " + std::to_string(late.size() - 1) + " others";
    return text + (late.size() > 1 ? " have" : " has") + " not gone on for " +
           std::to_string(std::chrono::duration_cast<std::chrono::seconds>(waited).count()) +
           " s: is a disk stuck that the weights are read from, a core gone, memory short (dmesg)? --worker-timeout "
           "waits longer";
}

}  // namespace

WorkerWatch::WorkerWatch(const Workers& workers, std::chrono::milliseconds patience,
                         std::function<void(const std::string&)> on_stuck)
    : watch_(
          patience,
          [&workers]() -> std::optional<uint64_t> {
              const Workers::Standing standing = workers.standing();
              if (standing.late.empty()) return std::nullopt;
              return standing.progress;
          },
          [&workers, on_stuck = std::move(on_stuck)](StallWatch::Clock::duration waited) {
              if (const std::vector<int> late = workers.standing().late; !late.empty())
                  on_stuck(stuck_text(workers, late, waited));
          }) {}

}  // namespace thermocline::cpu
