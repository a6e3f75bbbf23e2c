#include "src/base/end_process.h"

#include "src/base/log.h"

#include <cstdio>
#include <cstdlib>

namespace thermocline {

void end_process(const std::string& why) {
    log::error("{}; the process ends", why);
    std::fflush(nullptr);
    std::_Exit(1);
}

}  // namespace thermocline
