// `inspect`: what the files of a model contain; nothing is loaded. Of a converted model every byte is checked.
#include "src/model/inspect.h"

#include "src/app/commands.h"
#include "src/app/progress.h"
#include "src/base/error.h"
#include "src/base/json.h"
#include "src/base/log.h"
#include "src/model/converted.h"

#include <cstdio>
#include <memory>
#include <string>

namespace thermocline::app {

namespace {

struct InspectFlags {
    std::string model, log_level = "warn";
    bool json = false;
};

void inspect(const InspectFlags& flags) {
    log::start(flags.log_level);
    const model::Checkpoint checkpoint = model::open_checkpoint(flags.model);
    model::Report report = model::inspect(checkpoint);
    if (checkpoint.container == "converted") {  // loading maps matrices unread; here is the place to read them
        Progress progress("inspect:", report.bytes >> 20, "MiB");
        for (std::string& line : damaged_tensors(checkpoint, [&](int64_t done) { progress.update(done >> 20); }))
            report.problems.push_back(std::move(line));
    }
    const std::string text = flags.json ? dump_json(model::report_json(report), 2) + "\n" : model::report_text(report);
    std::fwrite(text.data(), 1, text.size(), stdout);
    if (!report.problems.empty())
        fail(flags.model, ": ", report.problems.size(), " problems, the model would not load");
}

}  // namespace

void add_inspect(CLI::App& root) {
    auto flags = std::make_shared<InspectFlags>();
    CLI::App& command =
        *root.add_subcommand("inspect", "what the files contain: architecture, tensors, formats, sizes");
    command
        .add_option("MODEL", flags->model,
                    "directory with config.json and safetensors, a .gguf file, or a converted model")
        ->required();
    command.add_flag("--json", flags->json, "print one JSON document");
    command.add_option("--log-level", flags->log_level, "trace, debug, info, warn, error or off; logs go to stderr")
        ->capture_default_str();
    command.callback([flags] { inspect(*flags); });
}

}  // namespace thermocline::app
