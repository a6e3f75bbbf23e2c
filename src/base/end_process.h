// The end where something hangs that can neither be called off nor freed.
#pragma once

#include <string>

namespace thermocline {

/// Logs why and ends the process with status 1, destroying nothing.
[[noreturn]] void end_process(const std::string& why);

}  // namespace thermocline
