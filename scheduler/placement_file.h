// The file that `place` writes and --placement reads: one JSON document, {"thermocline_placement": 1, "model": NAME,
// "layers": as in a trace, "resident": [layers][ids of the experts on the card]}, and what was expected of it.
#pragma once

#include "scheduler/placement.h"
#include "src/base/json.h"

#include <string>
#include <vector>

namespace thermocline::scheduler {

Json placement_json(const Placement& placement, const std::string& model, const std::vector<RoutedLayer>& layers);

/// The experts on the card, layer by layer. Throws Error naming file and field if it is damaged or of another model.
std::vector<ExpertName> read_placement(const std::string& path, const std::string& model,
                                       const std::vector<RoutedLayer>& layers);

}  // namespace thermocline::scheduler
