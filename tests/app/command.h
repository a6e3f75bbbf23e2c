// Runs the thermocline binary as a person would: arguments in, exit status and both outputs back.
#pragma once

#include <string>
#include <vector>

namespace thermocline::app {

struct Ran {
    int status;  // exit status; -1 when a signal ended it
    std::string out, err;
    double seconds;
    long peak_kib;  // largest resident set
};

/// `input` is written to stdin.
Ran run_command(const std::vector<std::string>& arguments, const std::string& input = "");

}  // namespace thermocline::app
