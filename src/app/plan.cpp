// `plan`: will it fit, where does each byte go, what speed to expect; before anything is loaded, also for machines that
// are not here.
#include "src/app/commands.h"
#include "src/app/planning.h"
#include "src/base/error.h"
#include "src/base/json.h"

#include <cstdio>
#include <memory>
#include <string>

namespace thermocline::app {

namespace {

struct PlanFlags {
    PlanningFlags planning;
    bool json = false;
};

void plan(const PlanFlags& flags) {
    const Planned planned = plan_ahead(flags.planning);
    const int64_t context = flags.planning.context, concurrency = flags.planning.concurrency;
    const std::string& name = planned.model_name;
    if (flags.json) {
        Json json = {
            {"model", name}, {"machine", planned.machine_name}, {"context", context}, {"concurrency", concurrency}};
        json.update(planned.split ? scheduler::split_json(*planned.split, planned.machine)
                                  : scheduler::forecast_json(planned.forecast));
        if (!planned.split) json["cards"] = scheduler::cards_json(planned.cards, planned.machine);
        std::printf("%s\n", dump_json(json, 2).c_str());
    } else {
        std::printf("%s on %s: %lld tokens of context, %lld at once\n\n%s%s", printable(name).c_str(),
                    printable(planned.machine_name).c_str(), static_cast<long long>(context),
                    static_cast<long long>(concurrency), planned.text().c_str(),
                    scheduler::cards_text(planned.cards, planned.machine, flags.planning.card).c_str());
    }
    if (!planned.refusal().empty()) fail(printable(name), " does not fit: ", planned.refusal());
}

}  // namespace

void add_plan(CLI::App& root) {
    auto flags = std::make_shared<PlanFlags>();
    CLI::App& command = *root.add_subcommand(
        "plan", "will it fit, where does each byte go, what speed to expect; loads nothing, for any machine file");
    flags->planning.declare(command);
    command.add_flag("--json", flags->json, "print one JSON document");
    command.footer("Exit status: 0 it fits, 1 it does not (the table is printed all the same) or an error.");
    command.callback([flags] { plan(*flags); });
}

}  // namespace thermocline::app
