// The answer of `plan`: does a model fit a machine, where does every byte go, how fast will it be. Puts the budget of
// the card (gpu_memory.h), that of host memory and the cost model together. Pure; nothing is loaded or measured.
#pragma once

#include "scheduler/cost_model.h"
#include "scheduler/gpu_memory.h"
#include "scheduler/host_memory.h"
#include "scheduler/machine_file.h"
#include "src/base/json.h"
#include "src/ops/plan.h"

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace thermocline::scheduler {

struct ForecastQuestion {
    const ops::Plan& trunk;
    const ops::Plan* draft;  // null: the model has no draft head. Host memory holds it whole, as engines do
    const MachineDescription& machine;
    int64_t context = 0, sequences = 1, prefill_chunk = 0;
    int64_t gpu_memory = 0;     // budget; 0: all of the card
    int64_t host_memory = 0;    // budget; 0: what the machine has, less what the system needs
    bool file_experts = false;  // those that no memory has room for may be read from the file
    size_t card = 0;            // of the machine's cards the one to use
    // Of several cards, the first `cards` of the machine (split_forecast.h):
    size_t cards = 1;
    std::vector<int64_t> card_memory = {};   // budget of each; empty: gpu_memory of each
    std::vector<int64_t> layer_counts = {};  // layers of each; empty: as is best
};

struct Forecast {
    size_t card = 0;
    std::optional<GpuMemoryPlan> gpu;    // none: the machine has no card
    std::optional<HostMemoryPlan> host;  // nothing if card and CPU share one memory
    bool host_is_asked = false;
    ExpertTiers tiers;
    int64_t expert_bytes = 0;
    double resident = 0.0;  // share of the routed experts
    struct Expected {
        Outlook outlook;
        double hit;
        DecodeTime decode;    // of one sequence at `context`
        PrefillTime prefill;  // 0 seconds: not known
    };
    std::array<Expected, 3> expected;
    std::string refusal;  // the first thing that does not fit; empty: all does
    std::string slow;     // slow_fallback(), which is not started with unasked; empty: nothing
};

/// Throws Error if a wish is out of range or over what the card has.
Forecast forecast(const ForecastQuestion& question);

/// What each card of the machine alone would do, as `question` asks of one; with all of its memory where it has less
/// than the budget.
std::vector<Forecast> forecast_each_card(ForecastQuestion question);
/// The one that fits and decodes fastest at target; of equals, and if none fits, `card`.
size_t best_card(const std::vector<Forecast>& cards, size_t card = 0);
/// A line for each; nothing of a single one. `card`: that is planned with.
std::string cards_text(const std::vector<Forecast>& cards, const MachineDescription& machine, size_t card);
Json cards_json(const std::vector<Forecast>& cards, const MachineDescription& machine);

const char* outlook_name(Outlook outlook);

/// For people and for programs: host memory beside cards whose experts are divided so.
std::string host_text(const HostMemoryPlan& host, const ExpertTiers& tiers, bool is_asked);
Json host_json(const HostMemoryPlan& host, const ExpertTiers& tiers);
Json card_json(const GpuMemoryPlan& plan);
Json tiers_json(const ExpertTiers& tiers, int64_t expert_bytes);
/// slow_fallback() of a card with so many of its experts resident, as far as a machine file knows; and what it means.
std::string slow_link_of(const DescribedGpu& gpu, const ExpertTiers& tiers);
std::string slow_text(const std::string& slow);
/// As an engine would have them, but for the budget.
GpuMemoryWishes wishes_of(const ForecastQuestion& question);
/// Of host memory beside cards, as a question asks. Throws Error if the budget is more than the machine has.
HostMemoryPlan host_plan(const ForecastQuestion& question);
inline constexpr Outlook kOutlooks[] = {Outlook::kConservative, Outlook::kTarget, Outlook::kUpperBound};
using AllExpected = std::array<Forecast::Expected, 3>;
std::string expected_text(const AllExpected& expected, bool on_card);
Json expected_json(const AllExpected& expected);

/// For people.
std::string forecast_text(const Forecast& forecast, const MachineDescription& machine);
Json forecast_json(const Forecast& forecast);

}  // namespace thermocline::scheduler
