// `convert`: writes the packed form of a model once (hybrid-engine.md 2.2 a), which every later start maps as it is.
#include "src/engine/convert.h"

#include "scheduler/topology.h"
#include "src/app/commands.h"
#include "src/app/progress.h"
#include "src/app/settings.h"
#include "src/base/log.h"

#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <memory>

namespace thermocline::app {

namespace {

std::atomic<bool> interrupted = false;

struct ConvertFlags {
    ModelFlags model;
    std::string destination;
};

void convert(const ConvertFlags& flags) {
    log::start(flags.model.log_level);
    for (const int signal : {SIGINT, SIGTERM})
        std::signal(
            signal, +[](int) { interrupted.store(true); });
    std::signal(SIGXFSZ, SIG_IGN);  // a file that may not grow on is an error like a full disk
    std::unique_ptr<Progress> progress;
    engine::Conversion conversion;
    conversion.model = flags.model.path();
    conversion.destination = flags.destination;
    conversion.layers = flags.model.layers;
    const auto slices = scheduler::weight_slices(scheduler::detect_machine(), scheduler::Numa::kOff);
    conversion.threads = static_cast<int>(scheduler::worker_places(slices, flags.model.threads).cpus.size());
    conversion.interrupted = &interrupted;
    conversion.progress = [&](int64_t done, int64_t all) {
        if (!progress) progress = std::make_unique<Progress>("convert:", all >> 20, "MiB");
        progress->update(done >> 20);
    };
    const auto start = std::chrono::steady_clock::now();
    const int64_t bytes = engine::convert(conversion);
    progress.reset();
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    std::printf("%s: %.2f GB written in %.1f s\n", flags.destination.c_str(), static_cast<double>(bytes) * 1e-9,
                seconds);
}

}  // namespace

void add_convert(CLI::App& root) {
    auto flags = std::make_shared<ConvertFlags>();
    CLI::App& command = *root.add_subcommand(
        "convert", "writes the weights as the kernels read them, once: later starts map them instead of packing");
    command
        .add_option("MODEL", flags->model.model,
                    "directory with config.json and safetensors, or a .gguf file (first split)")
        ->required();
    command
        .add_option("-o,--output", flags->destination,
                    "directory to write, new or empty; about as large as MODEL. It is a MODEL of its own then")
        ->required();
    flags->model.declare_layers(command);
    flags->model.declare_threads(command);
    flags->model.declare_log_level(command);
    command.callback([flags] { convert(*flags); });
}

}  // namespace thermocline::app
