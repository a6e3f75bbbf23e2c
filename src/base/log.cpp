#include "src/base/log.h"

#include "src/base/error.h"
#include "src/base/json.h"

#include <array>
#include <chrono>
#include <ctime>
#include <memory>

namespace thermocline::log {
namespace {

/// {"time": UTC, "level", "request_id" if the message begins with one, "message"}.
class JsonFormatter : public spdlog::formatter {
public:
    void format(const spdlog::details::log_msg& entry, spdlog::memory_buf_t& out) override {
        const std::time_t seconds = spdlog::log_clock::to_time_t(entry.time);
        const auto milliseconds =
            std::chrono::duration_cast<std::chrono::milliseconds>(entry.time.time_since_epoch()).count() % 1000;
        std::tm parts{};
        gmtime_r(&seconds, &parts);
        std::array<char, 32> time{};
        std::strftime(time.data(), time.size(), "%Y-%m-%dT%H:%M:%S", &parts);
        Json json = {{"time", fmt::format("{}.{:03d}Z", time.data(), milliseconds)},
                     {"level", std::string(spdlog::level::to_string_view(entry.level).data())}};
        std::string message(entry.payload.data(), entry.payload.size());
        const size_t end = message.starts_with('[') ? message.find("] ") : std::string::npos;
        if (end != std::string::npos) {
            json["request_id"] = message.substr(1, end - 1);
            message.erase(0, end + 2);
        }
        json["message"] = std::move(message);
        const std::string line = dump_json(json) + "\n";
        out.append(line.data(), line.data() + line.size());
    }
    std::unique_ptr<spdlog::formatter> clone() const override { return std::make_unique<JsonFormatter>(); }
};

}  // namespace

void start(const std::string& level, const std::string& format) {
    const auto parsed = spdlog::level::from_str(level);
    if (parsed == spdlog::level::off && level != "off")
        fail("--log-level is ", printable(level), ", expected trace, debug, info, warn, error or off");
    auto logger = spdlog::get("thermocline");
    if (!logger) {
        logger = spdlog::stderr_color_mt("thermocline");
        spdlog::set_default_logger(logger);
    }
    logger->set_level(parsed);
    if (format == "json")
        logger->set_formatter(std::make_unique<JsonFormatter>());
    else if (format == "text")
        logger->set_pattern("%H:%M:%S.%e %^%l%$ %v");
    else
        fail("--log-format is ", printable(format), ", expected text or json");
}

}  // namespace thermocline::log
