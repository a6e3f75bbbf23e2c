// What `plan` and `place` ask alike: a model, a machine that need not be here, a context and how many sequences; and
// the forecast for them.
#pragma once

#include "scheduler/forecast.h"
#include "scheduler/split_forecast.h"
#include "src/app/settings.h"

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace thermocline::app {

struct PlanningFlags {
    ModelFlags model;
    std::string machine;
    int64_t context = 8192, concurrency = 1;
    size_t card = 0;   // of the machine's
    size_t cards = 1;  // more: the first ones, with a part of the layers each

    void declare(CLI::App& command);
};

struct Planned {
    std::unique_ptr<model::Model> model;
    std::string model_name, machine_name;
    bool is_config = false;  // a shape without weights
    scheduler::MachineDescription machine;
    scheduler::Forecast forecast;                   // of one card
    std::vector<scheduler::Forecast> cards;         // of each alone
    std::optional<scheduler::SplitForecast> split;  // of several together

    /// The first thing that does not fit; empty: all does.
    const std::string& refusal() const { return split ? split->refusal : forecast.refusal; }
    /// For people.
    std::string text() const;
};

/// Reads the machine file and what the plan of the model needs; no weights. `shares_for`: of the experts of this plan
/// (scheduler::SplitQuestion), for several cards; may be null. Throws Error.
using Shares = std::vector<std::vector<double>>;
Planned plan_ahead(const PlanningFlags& flags, const std::function<Shares(const Planned&)>& shares_for = nullptr);

}  // namespace thermocline::app
