// printf into a string, for tables and messages; a result longer than 400 bytes is cut.
#pragma once

#include <string>

namespace thermocline::scheduler {

std::string printed(const char* pattern, ...) __attribute__((format(printf, 1, 2)));

}  // namespace thermocline::scheduler
