#include "src/app/progress.h"

#include <cstdio>
#include <unistd.h>

namespace thermocline::app {

Progress::Progress(std::string what, int64_t total, std::string unit)
    : what_(std::move(what)),
      unit_(std::move(unit)),
      total_(total),
      terminal_(::isatty(STDERR_FILENO) == 1),
      start_(Clock::now()),
      last_(start_) {}

void Progress::update(int64_t done) {
    const auto now = Clock::now();
    if (now - last_ < (terminal_ ? std::chrono::milliseconds(shown_ ? 100 : 1000) : std::chrono::milliseconds(5000)))
        return;
    last_ = now;
    const double seconds = std::chrono::duration<double>(now - start_).count();
    const double rate = static_cast<double>(done) / seconds;
    const double left = rate > 0 ? static_cast<double>(total_ - done) / rate : 0.0;
    std::fprintf(stderr, "%s%s %lld of %lld %s, %.3g/s, %.0f s left%s", terminal_ ? "\r\x1b[K" : "", what_.c_str(),
                 static_cast<long long>(done), static_cast<long long>(total_), unit_.c_str(), rate, left,
                 terminal_ ? "" : "\n");
    shown_ = true;
}

Progress::~Progress() {
    if (shown_ && terminal_) std::fprintf(stderr, "\r\x1b[K");
}

}  // namespace thermocline::app
