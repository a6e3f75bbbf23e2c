// The file that `place` writes and --placement reads: one JSON document, {"thermocline_placement": 1, "model": NAME,
// "layers": as in a trace, "resident": [layers][ids of the experts on the card]}, and what was expected of it;
// "shares", [layers][experts], the share of tokens that choose each, and "layers_of_cards", how many layers each of
// several cards has, may be missing.
#pragma once

#include "scheduler/placement.h"
#include "src/base/json.h"

#include <string>
#include <string_view>
#include <vector>

namespace thermocline::scheduler {

Json placement_json(const Placement& placement, const std::string& model, const std::vector<RoutedLayer>& layers);

struct PlacedExperts {
    std::vector<ExpertName> resident;           // layer by layer
    std::vector<std::vector<double>> shares;    // [layers][experts], or empty
    std::vector<int64_t> layers_of_cards = {};  // layers of each card; empty: made for one
};
/// Throws Error naming file and field if it is damaged or of another model.
PlacedExperts read_placement(const std::string& path, const std::string& model, const std::vector<RoutedLayer>& layers);
/// The same of the content of a file; `name`: of it, for messages.
PlacedExperts parse_placement(std::string_view content, const std::string& name, const std::string& model,
                              const std::vector<RoutedLayer>& layers);

}  // namespace thermocline::scheduler
