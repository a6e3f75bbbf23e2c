// The flags that every command which loads a model shares, and how --config FILE joins the command line.
#pragma once

#include "scheduler/topology.h"
#include "src/engine/assemble.h"
#include "src/model/registry.h"

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace thermocline::app {

struct ModelFlags {
    std::string model;  // directory, .gguf file, or empty: the bundled demo model; with dummy weights also a config
    std::string load_format = "auto";
    std::string tokenizer;  // directory, for dummy weights; empty: the model's own
    int32_t layers = 0;
    int64_t max_model_len = 0;  // 0: the model's own, at most 32768
    std::string kv_cache_dtype = "auto";
    std::string activations = "model";
    std::string isa = "auto";
    std::string gpus = "none";
    std::string offload_experts = "auto";
    std::string residency = "adaptive";
    const CLI::Option* residency_option = nullptr;  // once it is declared
    std::string placement, profile;                 // empty: none
    std::string gpu_memory;                         // empty: all that is free; or a size for each card
    std::string layer_split = "auto";
    std::string host_memory;  // empty: all that is free, but a margin
    bool allow_file_experts = false, allow_slow_fallback = false;
    std::string prefetch = "auto", gpu_library = "auto";
    int threads = 0;
    double worker_timeout = 60.0;
    std::string numa = "auto";
    bool weights_in_place = false;
    bool deterministic = false;
    uint64_t seed = 0;
    std::string log_level = "info";

    /// Declares the flags on a command. `positional`: MODEL may be given, or must be.
    enum class Positional { kOptional, kRequired };
    void declare(CLI::App& command, Positional positional);
    /// --host-memory and --allow-file-experts; `otherwise`: the budget by default.
    void declare_host_memory(CLI::App& command, const std::string& otherwise);
    /// --layer-split.
    void declare_layer_split(CLI::App& command);
    /// Two of them, for commands that take no others: --threads; --log-level (with --config).
    void declare_layers(CLI::App& command);
    void declare_threads(CLI::App& command);
    void declare_log_level(CLI::App& command);

    /// MODEL, or where the bundled demo model or the config of that name lies. Throws Error if there is no such thing.
    std::string path() const;
    model::LoadOptions load_options() const;
    scheduler::Numa numa_mode() const;
    std::chrono::milliseconds worker_patience() const;
    scheduler::GpuWishes gpu_wishes() const;
    engine::EngineOptions engine_options(const std::string& chat_encoding) const;
    /// Tokens of one sequence for a model whose own limit is `max_context`. Throws Error if the flag is over that.
    int64_t context(int64_t max_context) const;
};

/// A file or folder of this repository ("configs/models"), found above the binary (in a checkout, or installed next
/// to it) or in the checkout that the binary was built from. Empty if it is not there.
std::filesystem::path bundled(const std::string& name);

/// The machine file of this host in configs/machines, as bench-machine writes it; empty: there is none.
std::filesystem::path machine_of_host();

/// Bytes of a size such as "24GiB", "1.5 TB", "800MiB" or "34190917632"; kB, MB, GB, TB are powers of 1000, KiB to TiB
/// of 1024. Throws Error naming `flag` unless it is from 1 byte to 1 PiB.
int64_t parse_size(const std::string& text, const std::string& flag);

/// The command line with the keys of `--config FILE` (JSON, flag names as keys) put in front of the other flags, so
/// that the command line wins. Throws Error naming file and key.
std::vector<std::string> with_config_file(const std::vector<std::string>& arguments);

}  // namespace thermocline::app
