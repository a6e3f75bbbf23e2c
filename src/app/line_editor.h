// One line from the person at the terminal: editing and history on a terminal (libedit), plain lines elsewhere.
#pragma once

#include <optional>
#include <string>

namespace thermocline::app {

/// Nothing at the end of input (Ctrl-D). Ctrl-C while editing drops the line and gives an empty one.
std::optional<std::string> read_line(const std::string& prompt);

}  // namespace thermocline::app
