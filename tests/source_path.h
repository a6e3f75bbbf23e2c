// Where the files of this repository are that tests read: in the checkout they were built in, or where they are run, as
// in the bundle of scripts/gpu_check.
#pragma once

#include <filesystem>
#include <string>

namespace thermocline {

/// "models/demo"
inline std::string source_path(const std::string& name) {
    const std::filesystem::path built = std::filesystem::path(THERMOCLINE_SOURCE_DIR) / name;
    std::error_code ignored;
    return std::filesystem::exists(built, ignored) ? built.string() : name;
}

}  // namespace thermocline
