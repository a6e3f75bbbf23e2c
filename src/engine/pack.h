// Brings the weights of a loaded model into the layout that the kernels read fastest, and says so in the log.
#pragma once

#include "memory/packed_weights.h"
#include "src/model/registry.h"

#include <memory>

namespace thermocline::engine {

/// The plans of `model` then read the returned memory, which must live as long as they are played. Throws Error if it
/// does not fit. Null for a converted model, whose weights are mapped packed.
std::unique_ptr<memory::PackedWeights> pack_weights(model::Model& model, int threads);

}  // namespace thermocline::engine
