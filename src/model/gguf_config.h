// GGUF metadata of architecture deepseek4 -> the keys of DeepSeek's own flat config.json (deepseek-v4.md 1.1 and 5.1),
// so that one reader serves both containers. Pure functions.
#pragma once

#include "src/model/weights.h"

namespace thermocline::model {

/// The config of a GGUF model. For an architecture other than deepseek4 only `architectures` and `model_type` are set,
/// to what the file says, so that it can be refused by name. Throws Error naming a key of the wrong type.
Json config_from_gguf(const Metadata& metadata, const WeightDirectory& weights);

}  // namespace thermocline::model
