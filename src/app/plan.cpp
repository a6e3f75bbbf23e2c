// `plan`: will it fit, where does each byte go, what speed to expect; before anything is loaded, also for machines that
// are not here.
#include "scheduler/forecast.h"
#include "src/app/commands.h"
#include "src/app/settings.h"
#include "src/base/error.h"
#include "src/base/json.h"
#include "src/base/log.h"
#include "src/model/registry.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <unistd.h>
#include <vector>

namespace thermocline::app {

namespace {

namespace fs = std::filesystem;

constexpr int64_t kPrefillChunk = 4096;

struct PlanFlags {
    ModelFlags model;
    std::string machine, gpu_memory;
    int64_t context = 8192, concurrency = 1;
    bool json = false;
};

std::string machine_names(const fs::path& folder) {
    std::vector<std::string> names;
    std::error_code failed;
    for (fs::directory_iterator item(folder, failed), end; !failed && item != end; item.increment(failed))
        names.push_back(item->path().stem().string());
    std::sort(names.begin(), names.end());
    std::string text;
    for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
    return text;
}

/// --machine: a file, or a name in configs/machines; without it that of this host.
fs::path machine_path(const std::string& wanted) {
    std::error_code ignored;
    if (!wanted.empty() && fs::exists(wanted, ignored)) return wanted;
    char host[256] = {};
    if (wanted.empty()) ::gethostname(host, sizeof host - 1);
    const std::string name = wanted.empty() ? host : wanted;
    const fs::path folder = bundled("configs/machines");
    if (name.find('/') == std::string::npos && fs::exists(folder / (name + ".json"), ignored))
        return folder / (name + ".json");
    if (wanted.empty())
        fail(
            "this machine has no machine file: run `thermocline bench-machine`, or say --machine with a file or one "
            "of ",
            machine_names(folder));
    fail("--machine is ", printable(wanted), ", expected a machine file or one of ", machine_names(folder));
}

/// Configs give outlines; of a checkpoint only the headers and small tensors are read.
std::unique_ptr<model::Model> model_of(ModelFlags flags) {
    std::error_code ignored;
    const bool config =
        fs::path(flags.model).extension() == ".json" ||
        (!flags.model.empty() && !fs::exists(flags.model, ignored) && flags.model.find('/') == std::string::npos);
    if (config) flags.load_format = "dummy";
    model::LoadOptions options = flags.load_options();
    options.format = config ? model::LoadFormat::kOutline : model::LoadFormat::kAuto;
    return model::load_model(flags.path(), options);
}

void plan(const PlanFlags& flags) {
    log::start(flags.model.log_level);
    const fs::path path = machine_path(flags.machine);
    const scheduler::MachineDescription machine = scheduler::read_machine(path);
    const int64_t gpu_memory = flags.gpu_memory.empty() ? 0 : parse_size(flags.gpu_memory, "--gpu-memory");
    const std::unique_ptr<model::Model> model = model_of(flags.model);
    if (flags.context > model->max_context)
        fail("--context is ", flags.context, ", expected at most ", model->max_context, " (max_position_embeddings)");
    const scheduler::Forecast forecast =
        scheduler::forecast({model->trunk, model->mtp ? &*model->mtp : nullptr, machine, flags.context,
                             flags.concurrency, kPrefillChunk, gpu_memory});
    const std::string name = fs::path(model->checkpoint.path).stem().string();
    if (flags.json) {
        Json json = {{"model", name},
                     {"machine", path.stem().string()},
                     {"context", flags.context},
                     {"concurrency", flags.concurrency}};
        json.update(scheduler::forecast_json(forecast));
        std::printf("%s\n", dump_json(json, 2).c_str());
    } else {
        std::printf("%s on %s: %lld tokens of context, %lld at once\n\n%s", printable(name).c_str(),
                    printable(path.stem().string()).c_str(), static_cast<long long>(flags.context),
                    static_cast<long long>(flags.concurrency), scheduler::forecast_text(forecast, machine).c_str());
    }
    if (!forecast.refusal.empty()) fail(printable(name), " does not fit: ", forecast.refusal);
}

}  // namespace

void add_plan(CLI::App& root) {
    auto flags = std::make_shared<PlanFlags>();
    CLI::App& command = *root.add_subcommand(
        "plan", "will it fit, where does each byte go, what speed to expect; loads nothing, for any machine file");
    command.add_option(
        "MODEL", flags->model.model,
        "a name in configs/models, a config.json, or a model as for `run`; default: the bundled demo model");
    command.add_option("--machine", flags->machine,
                       "machine file, or a name in configs/machines; default: what bench-machine wrote here");
    command.add_option("--context", flags->context, "tokens of one sequence, prompt and output together")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    command.add_option("--concurrency", flags->concurrency, "sequences at once")
        ->check(CLI::Range(int64_t{1}, int64_t{65536}))
        ->capture_default_str();
    command.add_option("--gpu-memory", flags->gpu_memory,
                       "budget of the card, such as 24GiB or 96GB; default: all of it");
    command
        .add_option("--kv-cache-dtype", flags->model.kv_cache_dtype, "auto (= bf16), bf16 or fp8 (the trained form)")
        ->check(CLI::IsMember({"auto", "bf16", "fp8"}))
        ->capture_default_str();
    command.add_option("--layers", flags->model.layers, "keep the first N layers; 0: all")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    command.add_flag("--json", flags->json, "print one JSON document");
    flags->model.log_level = "warn";
    flags->model.declare_log_level(command);
    command.footer("Exit status: 0 it fits, 1 it does not (the table is printed all the same) or an error.");
    command.callback([flags] { plan(*flags); });
}

}  // namespace thermocline::app
