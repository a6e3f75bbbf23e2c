// The golden tiny model of shared/design/deepseek-v4.md, appendix A: its weights come from a formula, so the test can
// write the checkpoint itself. Values to compare with: tests/golden/dsv4-tiny.json.
#pragma once

#include "src/base/json.h"

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace thermocline::tiny {

/// Writes config.json and model.safetensors (F32, official names, tid2eid I64) into `directory`, which is created.
void write_model(const std::filesystem::path& directory);

/// The same, once per process, in a directory of its own that is removed when the process ends.
const std::string& model_path();

/// Token i of the test sequence, (7 i^2 + 3 i + 11) mod 97; the golden values cover the first 300.
std::vector<int32_t> tokens(int64_t count);

/// tests/golden/dsv4-tiny.json
const Json& golden();

}  // namespace thermocline::tiny
