// Which routed experts lie on the card: solved from how often each is chosen and from what a hit saves (R2, R4 of
// hybrid-engine.md 1.5). Pure.
#pragma once

#include "scheduler/routing.h"
#include "src/ops/plan.h"

#include <cstdint>
#include <span>
#include <vector>

namespace thermocline::scheduler {

/// A routed expert of a plan.
struct ExpertName {
    ops::ExpertsId set;
    int32_t expert;
    auto operator<=>(const ExpertName&) const = default;
};

/// Experts of each layer.
std::vector<int64_t> expert_counts(const std::vector<RoutedLayer>& layers);
std::vector<int64_t> expert_counts(const ops::Plan& plan);

/// `count` experts without knowledge of how often each is chosen: as many of every layer, give or take one, the first
/// of each, behind those that are there already. At most as many as there are.
std::vector<ExpertName> spread_experts(std::span<const int64_t> sizes, int64_t count,
                                       std::vector<ExpertName> names = {});

/// The share of tokens that each expert is expected in, [layers][experts]: a count and a half of how often it was
/// chosen (what was never seen is unlikely, not impossible).
std::vector<std::vector<double>> shares_of(const std::vector<RoutedLayer>& layers,
                                           const std::vector<std::vector<int64_t>>& counts);

/// The `count` experts of the largest shares; of equals the first.
std::vector<ExpertName> likeliest_experts(const std::vector<std::vector<double>>& shares, int64_t count);

/// The same experts, those of larger shares first; without shares the first of every layer, then the second.
std::vector<ExpertName> likeliest_first(std::vector<ExpertName> names, const std::vector<std::vector<double>>& shares);

/// What a layer is expected to take with none, one, two ... of its likeliest experts on the card: [experts + 1].
/// `shares`: of its experts; `layer_seconds`: as in PlacementQuestion.
std::vector<double> seconds_by_slots(const RoutedLayer& layer, const std::vector<double>& shares,
                                     const std::vector<double>& layer_seconds);

struct PlacementQuestion {
    const std::vector<RoutedLayer>& layers;
    const std::vector<std::vector<int64_t>>& counts;  ///< [layers][experts]: rows that chose each
    /// Of a layer with 0 .. top_k resident experts among the chosen: [top_k + 1]; every further one gains at most what
    /// the one before did (CHECK).
    const std::vector<double>& layer_seconds;
    int64_t slots = 0;
    std::vector<ExpertName> pinned = {};  ///< on the card whatever they gain
};

struct Placement {
    std::vector<ExpertName> resident = {};
    struct Layer {
        int64_t slots = 0;
        double hit = 0;      // expected, of its chosen experts
        double seconds = 0;  // expected, of a token
    };
    std::vector<Layer> layers = {};
    std::vector<std::vector<double>> shares = {};  // of all experts, shares_of()
    double hit = 0;                                // mean of the layers
    double seconds = 0;                            // of a token in all layers
};

/// Throws Error if a pin names no expert of such layers or one twice, or they are more than `slots`.
void check_pins(std::span<const ExpertName> pins, const std::vector<RoutedLayer>& layers, int64_t slots);

/// The set with the least expected time of a token where a layer's hits are binomial with the mean of its experts'
/// shares: exact for that, since the value of a layer is concave in the number of its slots and all slots cost the
/// same. Throws Error if a pin names no expert, or the pins alone are more than the slots.
Placement place_experts(const PlacementQuestion& question);

}  // namespace thermocline::scheduler
