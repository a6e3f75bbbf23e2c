// What the routers of a model are and what they chose in a pass. Pure data.
#pragma once

#include "src/ops/plan.h"

#include <cstdint>
#include <string>
#include <vector>

namespace thermocline::scheduler {

/// The experts that one pass chose: of each Route step of the plan, in order, [rows, top_k].
struct RoutingRecord {
    std::vector<std::vector<int32_t>> ids;
    /// What the largest were chosen of, scores with their bias: of each Route step [rows, experts]. Only if wanted, and
    /// only the CPU tells.
    bool wants_ranks = false;
    std::vector<std::vector<float>> ranks = {};
    /// What was foretold of `ids` before attention (ops::Foretelling), alike; of layers that choose by token the ids.
    /// Only if wanted, and only the CPU tells.
    bool wants_foretold = false;
    std::vector<std::vector<int32_t>> foretold = {};
};

/// A layer with a router.
struct RoutedLayer {
    int64_t experts, top_k;
    bool operator==(const RoutedLayer&) const = default;
};
/// One a Route step, in order, as in RoutingRecord.
std::vector<RoutedLayer> routed_layers(const ops::Plan& plan);
/// "2 layers, 256 experts, top 6"
std::string shape_text(const std::vector<RoutedLayer>& layers);

}  // namespace thermocline::scheduler
