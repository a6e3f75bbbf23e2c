// The answer of `plan --gpus N`: as forecast.h, of a model whose layers are split over several cards, which play them
// in turn. Pure; nothing is loaded or measured.
#pragma once

#include "scheduler/forecast.h"
#include "scheduler/layer_split.h"
#include "src/base/json.h"

#include <cstdint>
#include <string>
#include <vector>

namespace thermocline::scheduler {

struct SplitForecast {
    std::vector<CardPart> cards;
    std::vector<ExpertTiers> tiers;  // of each card's layers
    std::vector<double> seconds;     // that each card takes of a token, at target
    HostMemoryPlan host;
    bool host_is_asked = false;
    AllExpected expected;  // of all cards together
    std::string refusal;   // the first thing that does not fit; empty: all does
    std::string slow;      // Forecast::slow of the first card with one

    ExpertTiers all() const { return sum_of(tiers); }
};

/// The first `question.cards` of the machine, at least 2. The draft head is host memory's: only one card plays it.
/// `shares`: as in SplitQuestion. Throws Error if a wish is out of range or over what a card has.
SplitForecast forecast_split(const ForecastQuestion& question, std::vector<std::vector<double>> shares = {});

/// For people. `machine`: as was asked about.
std::string split_text(const SplitForecast& forecast, const MachineDescription& machine);
Json split_json(const SplitForecast& forecast, const MachineDescription& machine);

}  // namespace thermocline::scheduler
