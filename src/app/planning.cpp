#include "src/app/planning.h"

#include "src/base/error.h"
#include "src/base/log.h"
#include "src/engine/assemble.h"
#include "src/engine/vocabulary.h"
#include "src/model/registry.h"

#include <algorithm>
#include <vector>

namespace thermocline::app {

namespace {

namespace fs = std::filesystem;

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
    const fs::path folder = bundled("configs/machines");
    if (wanted.find('/') == std::string::npos && fs::exists(folder / (wanted + ".json"), ignored))
        return folder / (wanted + ".json");
    if (wanted.empty() && !machine_of_host().empty()) return machine_of_host();
    if (wanted.empty())
        fail(
            "this machine has no machine file: run `thermocline bench-machine`, or say --machine with a file or one "
            "of ",
            machine_names(folder));
    fail("--machine is ", printable(wanted), ", expected a machine file or one of ", machine_names(folder));
}

/// A config.json, or a name in configs/models.
bool is_config(const ModelFlags& flags) {
    std::error_code ignored;
    return fs::path(flags.model).extension() == ".json" ||
           (!flags.model.empty() && !fs::exists(flags.model, ignored) && flags.model.find('/') == std::string::npos);
}

/// Configs give outlines; of a checkpoint only the headers and small tensors are read.
std::unique_ptr<model::Model> model_of(ModelFlags flags) {
    const bool config = is_config(flags);
    if (config) flags.load_format = "dummy";
    model::LoadOptions options = flags.load_options();
    options.format = config ? model::LoadFormat::kOutline : model::LoadFormat::kAuto;
    options.spare_rows = engine::kSpareRows;  // as an engine keeps them
    return model::load_model(flags.path(), options);
}

}  // namespace

void PlanningFlags::declare(CLI::App& command) {
    command.add_option(
        "MODEL", model.model,
        "a name in configs/models, a config.json, or a model as for `run`; default: the bundled demo model");
    command.add_option("--machine", machine,
                       "machine file, or a name in configs/machines; default: what bench-machine wrote here");
    command.add_option("--context", context, "tokens of one sequence, prompt and output together")
        ->check(CLI::PositiveNumber)
        ->capture_default_str();
    command.add_option("--concurrency", concurrency, "sequences at once")
        ->check(CLI::Range(int64_t{1}, int64_t{65536}))
        ->capture_default_str();
    CLI::Option* one =
        command.add_option("--gpu", card, "which card of the machine file, counted from 0")->capture_default_str();
    command
        .add_option("--gpus", cards,
                    "how many of its cards, the first ones; more than 1: each with a part of the layers")
        ->check(CLI::Range(size_t{1}, size_t{64}))
        ->excludes(one)
        ->capture_default_str();
    model.declare_layer_split(command);
    command.add_option("--gpu-memory", model.gpu_memory,
                       "budget of each card, such as 24GiB or 96GB; or one for each, as 24GiB,96GiB; default: all of "
                       "it");
    model.declare_host_memory(command, "what the machine has, but what the system needs");
    command.add_option("--kv-cache-dtype", model.kv_cache_dtype, "auto (= bf16), bf16 or fp8 (the trained form)")
        ->check(CLI::IsMember({"auto", "bf16", "fp8"}))
        ->capture_default_str();
    command.add_option("--layers", model.layers, "keep the first N layers; 0: all")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    model.log_level = "warn";
    model.declare_log_level(command);
}

std::string Planned::text() const {
    return split ? scheduler::split_text(*split, machine) : scheduler::forecast_text(forecast, machine);
}

Planned plan_ahead(const PlanningFlags& flags, const std::function<Shares(const Planned&)>& shares_for) {
    log::start(flags.model.log_level);
    const fs::path path = machine_path(flags.machine);
    Planned planned;
    planned.machine = scheduler::read_machine(path);
    planned.machine_name = path.stem().string();
    const scheduler::GpuWishes wishes = flags.model.gpu_wishes();
    planned.model = model_of(flags.model);
    planned.is_config = is_config(flags.model);
    const model::Model& model = *planned.model;
    planned.model_name = engine::model_name(model.checkpoint);
    if (flags.context > model.max_context)
        fail("--context is ", flags.context, ", expected at most ", model.max_context, " (max_position_embeddings)");
    const int64_t chunk = scheduler::default_prefill_chunk(!planned.machine.gpus.empty());
    const scheduler::ForecastQuestion question{model.trunk,         model.mtp ? &*model.mtp : nullptr,
                                               planned.machine,     flags.context,
                                               flags.concurrency,   chunk,
                                               wishes.memory_bytes, wishes.host_bytes,
                                               wishes.file_experts, flags.card,
                                               flags.cards,         wishes.card_memory,
                                               wishes.layer_split};
    if (flags.cards > 1) {
        planned.split = scheduler::forecast_split(question, shares_for ? shares_for(planned) : Shares());
        return planned;
    }
    if (!wishes.card_memory.empty() || !wishes.layer_split.empty())
        fail("--gpu-memory and --layer-split of several cards need --gpus");
    planned.forecast = scheduler::forecast(question);
    planned.cards = scheduler::forecast_each_card(question);
    return planned;
}

}  // namespace thermocline::app
