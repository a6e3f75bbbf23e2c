#include "scheduler/printed.h"

#include <cstdarg>
#include <cstdio>

namespace thermocline::scheduler {

std::string printed(const char* pattern, ...) {
    char text[401];
    va_list arguments;
    va_start(arguments, pattern);
    std::vsnprintf(text, sizeof text, pattern, arguments);
    va_end(arguments);
    return text;
}

}  // namespace thermocline::scheduler
