// spdlog enters the program here and nowhere else. Logs go to stderr; stdout belongs to results.
#pragma once

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>
#include <string>

namespace thermocline::log {

using spdlog::debug;
using spdlog::error;
using spdlog::info;
using spdlog::warn;

/// Sets up the logger on stderr; `level` is one of trace, debug, info, warn, error, off; `format` is text or json (one
/// object a line). Throws Error on others. What is said of a request begins with "[its id] ", a field of its own in
/// JSON.
void start(const std::string& level, const std::string& format = "text");

}  // namespace thermocline::log
