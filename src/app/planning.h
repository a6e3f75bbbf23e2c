// What `plan` and `place` ask alike: a model, a machine that need not be here, a context and how many sequences; and
// the forecast for them.
#pragma once

#include "scheduler/forecast.h"
#include "src/app/settings.h"

#include <CLI/CLI.hpp>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace thermocline::app {

struct PlanningFlags {
    ModelFlags model;
    std::string machine;
    int64_t context = 8192, concurrency = 1;
    size_t card = 0;  // of the machine's

    void declare(CLI::App& command);
};

struct Planned {
    std::unique_ptr<model::Model> model;
    std::string model_name, machine_name;
    bool is_config = false;  // a shape without weights
    scheduler::MachineDescription machine;
    scheduler::Forecast forecast;
    std::vector<scheduler::Forecast> cards;  // of each alone
};

/// Reads the machine file and what the plan of the model needs; no weights. Throws Error.
Planned plan_ahead(const PlanningFlags& flags);

}  // namespace thermocline::app
