// Brings the weights of a loaded model into the layout that the kernels read fastest, and says so in the log.
#pragma once

#include "memory/packed_weights.h"
#include "src/model/registry.h"

#include <memory>
#include <span>
#include <vector>

namespace thermocline::engine {

/// The plans of `model` then read the returned memory, which must live as long as they are played: a part of every
/// matrix in each slice, packed by all its cores. Null for a converted model, whose weights are mapped packed and
/// whole. `card_only`: views that are packed when they are brought to a card. Throws Error if there is no room.
std::unique_ptr<memory::PackedWeights> pack_weights(model::Model& model, const std::vector<memory::Slice>& slices,
                                                    std::span<const quant::Matrix* const> card_only = {});

/// Whether its file holds the weights as they are computed with.
bool is_mapped(const model::Model& model);

}  // namespace thermocline::engine
