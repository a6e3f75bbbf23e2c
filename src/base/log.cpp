#include "src/base/log.h"

#include "src/base/error.h"

namespace thermocline::log {

void start(const std::string& level) {
    const auto parsed = spdlog::level::from_str(level);
    if (parsed == spdlog::level::off && level != "off")
        fail("--log-level is ", printable(level), ", expected trace, debug, info, warn, error or off");
    auto logger = spdlog::get("thermocline");
    if (!logger) {
        logger = spdlog::stderr_color_mt("thermocline");
        spdlog::set_default_logger(logger);
    }
    logger->set_level(parsed);
    logger->set_pattern("%H:%M:%S.%e %^%l%$ %v");
}

}  // namespace thermocline::log
