// A line on stderr that says how far long work is: redrawn in place on a terminal, every few seconds elsewhere.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace thermocline::app {

class Progress {
public:
    /// `unit` in the plural ("tokens"); nothing is printed before the work has lasted a second.
    Progress(std::string what, int64_t total, std::string unit);
    ~Progress();
    void update(int64_t done);

private:
    using Clock = std::chrono::steady_clock;
    std::string what_, unit_;
    int64_t total_;
    bool terminal_, shown_ = false;
    Clock::time_point start_, last_;
};

}  // namespace thermocline::app
