#include "src/app/settings.h"

#include "scheduler/cost_model.h"
#include "scheduler/expert_prefetch.h"
#include "scheduler/machine_file.h"
#include "src/base/error.h"
#include "src/base/file.h"
#include "src/base/json.h"
#include "src/engine/vocabulary.h"

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <unistd.h>

namespace thermocline::app {

namespace {

namespace fs = std::filesystem;

std::vector<fs::path> bundled_configs() {
    const fs::path folder = bundled("configs/models");
    std::vector<fs::path> files;
    if (folder.empty()) return files;
    for (const auto& item : fs::directory_iterator(folder)) files.push_back(item.path());
    std::sort(files.begin(), files.end());
    return files;
}

/// The file of a name in configs/models, or "".
std::string config_of(const std::string& name) {
    for (const fs::path& file : bundled_configs())
        if (file.stem() == name || file.filename() == name) return file.string();
    return "";
}

std::string config_names() {
    std::string names;
    for (const fs::path& file : bundled_configs()) names += (names.empty() ? "" : ", ") + file.stem().string();
    return names;
}

std::string flag_value(const std::string& path, const std::string& key, const Json& value) {
    if (value.is_string()) return value.get<std::string>();
    if (value.is_number() || value.is_boolean()) return dump_json(value);
    fail(path, ": ", printable(key), " is ", value.type_name(), ", expected a string, a number or a truth value");
}

}  // namespace

void ModelFlags::declare(CLI::App& command, Positional positional) {
    auto* model_option = command.add_option(
        "MODEL", model,
        "directory with config.json and safetensors, a .gguf file (first split), or a directory that `convert` wrote; "
        "default: the bundled demo model. "
        "With --load-format dummy also a config.json, or a name in configs/models");
    if (positional == Positional::kRequired) model_option->required();
    const char* group = "Model";
    command
        .add_option("--load-format", load_format,
                    "auto: the weights of the files; dummy: random weights in the official formats, for benchmarks")
        ->check(CLI::IsMember({"auto", "dummy"}))
        ->group(group)
        ->capture_default_str();
    command
        .add_option("--tokenizer", tokenizer,
                    "with --load-format dummy: directory with the tokenizer.json to use; the random model gets its "
                    "vocabulary")
        ->group(group);
    declare_layers(command);
    command
        .add_option("--max-model-len", max_model_len,
                    "longest sequence in tokens, prompt and output together; 0: the model's limit, at most 32768")
        ->check(CLI::NonNegativeNumber)
        ->group(group)
        ->capture_default_str();
    command
        .add_option(
            "--kv-cache-dtype", kv_cache_dtype,
            "auto (= bf16), bf16, fp8 (the trained form); to compare with oracles: f32 (no rounding anywhere), fp8-f32 "
            "(what fp8 rounds, simulated in f32)")
        ->check(CLI::IsMember({"auto", "f32", "bf16", "fp8", "fp8-f32"}))
        ->group(group)
        ->capture_default_str();
    command
        .add_option(
            "--activations", activations,
            "model: inputs of FP8/FP4 matrices are rounded to e4m3 per 128 as in training; bf16: they are not; "
            "bf16-rounded: as model, and inputs of other packed matrices whose numbers are exact in bf16 (INT4, Q8_0, "
            "Q4_0, Q5_0, Q6_K, IQ4) are rounded to that, faster in prompts; int8: fastest, inputs of packed matrices "
            "of "
            "2 to 6 bits and Q8_0 are rounded to int8 per 32, FP8 as model, others as bf16. Cards round as model at "
            "most")
        ->check(CLI::IsMember({"model", "bf16", "bf16-rounded", "int8"}))
        ->group(group)
        ->capture_default_str();
    command
        .add_flag(
            "--deterministic", deterministic,
            "what a greedy or seeded request gets depends on the model, these flags and the request alone, bit for "
            "bit, "
            "whatever else is served. On the CPU that is always so. A card then multiplies rows alike however many "
            "there are, which is slower, and experts stay where they are at the start: give --gpu-memory (of "
            "several cards also --layer-split) to have the same ones there every time")
        ->group(group);
    command.add_option("--seed", seed, "key of the random numbers, dummy weights among them")
        ->group(group)
        ->capture_default_str();
    group = "Machine";
    command
        .add_flag("--weights-in-place", weights_in_place,
                  "read the weights where the files are mapped instead of packing them while loading: starts at once, "
                  "needs no memory of its own, computes slower. Converted models are mapped packed either way")
        ->group(group);
    declare_threads(command);
    command
        .add_option("--worker-timeout", worker_timeout,
                    "seconds in which a CPU worker must take the next piece of its work; else requests "
                    "that run fail and the process ends with status 1; 0: no limit")
        ->check(CLI::Range(0.0, 1e6))
        ->group(group)
        ->capture_default_str();
    command
        .add_option("--numa", numa,
                    "weights on machines with several NUMA nodes. nps: a slice of every matrix on each node, computed "
                    "by its cores; tp: a slice per socket; off: whole, interleaved over the nodes; auto: nps")
        ->check(CLI::IsMember({"auto", "off", "tp", "nps"}))
        ->group(group)
        ->capture_default_str();
    command.add_option("--isa", isa, "CPU kernels")
        ->check(CLI::IsMember({"auto", "scalar", "avx2", "avx512", "avx512_bf16", "amx"}))
        ->group(group)
        ->capture_default_str();
    command
        .add_option("--gpus", gpus,
                    "none; 1: dense weights, attention and caches on the first card (not yet tried on real hardware); "
                    "N: on the first N cards, each with a part of the layers; emulated, emulated:N: the same on host "
                    "threads, slowly, for tests")
        ->check(CLI::Validator(
            [](const std::string& value) -> std::string {
                try {
                    (void)scheduler::gpu_choice(value);
                } catch (const Error& error) {
                    return error.what();
                }
                return "";
            },
            "{none,N,emulated,emulated:N}"))
        ->group(group)
        ->capture_default_str();
    command
        .add_option(
            "--offload-experts", offload_experts,
            "with --gpus: where routed experts are computed. auto: as many on the card as fit, the others by the "
            "CPU, or in prompts where that is faster sent through the card; stream: in prompts all others are sent "
            "through the card; cpu: all by the CPU; none: all on the card")
        ->check(CLI::IsMember({"auto", "cpu", "stream", "none"}))
        ->group(group)
        ->capture_default_str();
    residency_option =
        command
            .add_option(
                "--residency", residency,
                "which experts lie on the card where not all fit. adaptive: those that are chosen often, lately; "
                "lru: those chosen last; static: those of --placement, else the first of every layer")
            ->check(CLI::IsMember({"adaptive", "lru", "static"}))
            ->group(group)
            ->capture_default_str();
    command
        .add_option("--prefetch", prefetch,
                    "auto: in decode, experts that a layer will probably choose are brought into the caches of the CPU "
                    "while the card does attention, or read ahead where they lie in the file, as long as that is "
                    "measured to gain; off: never")
        ->check(CLI::IsMember({"auto", "off"}))
        ->group(group)
        ->capture_default_str();
    command
        .add_option("--gpu-library", gpu_library,
                    "auto: products of prompts by cuBLASLt where it is installed and measured to be faster; off: by "
                    "the kernels of this program alone, whose results do not depend on what was measured")
        ->check(CLI::IsMember({"auto", "off"}))
        ->group(group)
        ->capture_default_str();
    command
        .add_option("--placement", placement, "file that `place` wrote: the experts that lie on the card at the start")
        ->group(group);
    command
        .add_option("--profile", profile,
                    "file that `profile` wrote: with --gpus what the residency expects from the start; without "
                    "--placement the likeliest experts lie on the card then")
        ->group(group);
    command
        .add_option("--gpu-memory", gpu_memory,
                    "budget of each card, such as 24GiB or 96GB, CUDA itself included; or one for each, as "
                    "24GiB,96GiB; default: all that is free")
        ->group(group);
    declare_layer_split(command);
    command
        .add_flag(
            "--allow-slow-fallback", allow_slow_fallback,
            "start although the card and the CPU can wait for each other only by functions of the driver, the link "
            "is very slow, or the CPU has no vector instructions; without this that is refused")
        ->group(group);
    declare_host_memory(command, "all that is free, but a margin");
    declare_log_level(command);
}

void ModelFlags::declare_layer_split(CLI::App& command) {
    command
        .add_option("--layer-split", layer_split,
                    "with several cards, how many layers each of them plays, as 20,41. auto: those of --placement, "
                    "else as is expected to be fastest")
        ->group("Machine")
        ->capture_default_str();
}

void ModelFlags::declare_host_memory(CLI::App& command, const std::string& otherwise) {
    command
        .add_option(
            "--host-memory", host_memory,
            "budget of host memory, such as 96GB, for weights, caches and buffers of this program; experts that "
            "it has no room for lie on the card alone. Default: " +
                otherwise)
        ->group("Machine");
    command
        .add_flag(
            "--allow-file-experts", allow_file_experts,
            "experts that neither card nor host memory has room for are read from the file whenever they are "
            "chosen, which is slow; without this they are refused. The model must be one that `convert` wrote, or "
            "--weights-in-place")
        ->group("Machine");
}

void ModelFlags::declare_layers(CLI::App& command) {
    command.add_option("--layers", layers, "keep the first N layers (for benchmarks); 0: all")
        ->check(CLI::NonNegativeNumber)
        ->group("Model")
        ->capture_default_str();
}

void ModelFlags::declare_threads(CLI::App& command) {
    command.add_option("--threads", threads, "CPU workers, pinned, one per physical core; 0: all cores (also: auto)")
        ->transform(CLI::Transformer({{"auto", "0"}}))
        ->check(CLI::NonNegativeNumber)
        ->group("Machine")
        ->capture_default_str();
}

void ModelFlags::declare_log_level(CLI::App& command) {
    command.add_option("--log-level", log_level, "trace, debug, info, warn, error or off; logs go to stderr")
        ->check(CLI::IsMember({"trace", "debug", "info", "warn", "error", "off"}))
        ->group("Output")
        ->capture_default_str();
    // Consumed by with_config_file before CLI11 sees the command line; declared for --help.
    command.add_option("--config", "JSON file whose keys are flag names; the command line wins")->group("Output");
}

std::filesystem::path bundled(const std::string& name) {
    std::error_code ignored;
    const auto binary = fs::read_symlink("/proc/self/exe", ignored);
    for (auto folder = binary.parent_path(); !folder.empty() && folder != folder.root_path();
         folder = folder.parent_path())
        if (fs::exists(folder / name, ignored)) return folder / name;
    const fs::path checkout = THERMOCLINE_CHECKOUT;
    return fs::exists(checkout / name, ignored) ? checkout / name : fs::path();
}

std::string ModelFlags::path() const {
    std::error_code ignored;
    if (model.empty()) {
        const fs::path demo = bundled("models/demo");
        if (demo.empty()) fail("no MODEL given, and the bundled demo model (models/demo) is not above this binary");
        return demo.string();
    }
    const bool named = !fs::exists(model, ignored) && model.find('/') == std::string::npos;
    const bool config = named ? !config_of(model).empty() : fs::path(model).extension() == ".json";
    if (load_format != "dummy") {
        if (config) fail(printable(model), ": a config without weights, which needs --load-format dummy");
        return model;
    }
    if (named && !config)
        fail(printable(model), ": no such file or directory, and no name in configs/models (", config_names(), ")");
    return named ? config_of(model) : model;
}

model::LoadOptions ModelFlags::load_options() const {
    model::LoadOptions options;
    options.kv_cache = kv_cache_dtype == "f32"       ? model::KvCacheDtype::kF32
                       : kv_cache_dtype == "fp8"     ? model::KvCacheDtype::kFp8
                       : kv_cache_dtype == "fp8-f32" ? model::KvCacheDtype::kFp8F32
                                                     : model::KvCacheDtype::kBf16;
    if ((activations == "int8" || activations == "bf16-rounded") && weights_in_place)
        fail("--activations ", activations,
             " multiplies packed weights, which --weights-in-place does without: leave one of them out");
    options.activations = activations == "int8"           ? model::Activations::kInt8
                          : activations == "bf16"         ? model::Activations::kBf16
                          : activations == "bf16-rounded" ? model::Activations::kBf16Rounded
                                                          : model::Activations::kModel;
    options.layers = layers;
    options.format = load_format == "dummy" ? model::LoadFormat::kDummy : model::LoadFormat::kAuto;
    options.seed = seed;
    if (!tokenizer.empty() && load_format != "dummy")
        fail("--tokenizer is for random weights, expected --load-format dummy with it");
    if (!tokenizer.empty()) options.dummy_vocab = engine::load_tokenizer(tokenizer).vocab_size();
    options.defer_codes = !weights_in_place;
    return options;
}

std::chrono::milliseconds ModelFlags::worker_patience() const {
    return std::chrono::milliseconds(static_cast<int64_t>(worker_timeout * 1e3));
}

scheduler::Numa ModelFlags::numa_mode() const {
    return numa == "off" ? scheduler::Numa::kOff : numa == "tp" ? scheduler::Numa::kPackages : scheduler::Numa::kNodes;
}

engine::EngineOptions ModelFlags::engine_options(const std::string& chat_encoding) const {
    engine::EngineOptions options;
    options.model = path();
    options.tokenizer = tokenizer;
    options.load = load_options();
    options.max_model_len = max_model_len;
    options.weights_in_place = weights_in_place;
    options.threads = threads;
    options.worker_patience = worker_patience();
    options.numa = numa_mode();
    options.isa = isa;
    options.gpus = gpu_wishes();
    options.chat_encoding = chat_encoding;
    return options;
}

std::filesystem::path machine_of_host() {
    char host[256] = {};
    ::gethostname(host, sizeof host - 1);
    const std::filesystem::path path = bundled("configs/machines") / (std::string(host) + ".json");
    std::error_code ignored;
    return std::filesystem::exists(path, ignored) ? path : std::filesystem::path();
}

scheduler::GpuWishes ModelFlags::gpu_wishes() const {
    if (deterministic && gpus != "none" && residency != "static" && residency_option != nullptr &&
        residency_option->count() > 0)
        fail("--residency ", residency,
             " moves experts by what was asked lately, which --deterministic rules out: leave "
             "one of them out");
    scheduler::GpuWishes wishes{.gpus = gpus,
                                .offload_experts = offload_experts,
                                .deterministic = deterministic,
                                .residency = residency,
                                .placement = placement,
                                .profile = profile,
                                .host_bytes = host_memory.empty() ? 0 : parse_size(host_memory, "--host-memory"),
                                .file_experts = allow_file_experts,
                                .slow_fallback = allow_slow_fallback,
                                .prefetch = prefetch,
                                .library = gpu_library};
    if (gpus != "none") wishes.worker_cache_bytes = scheduler::half_of_caches(scheduler::detect_machine());
    if (gpu_memory.find(',') != std::string::npos)
        for (const std::string& size : CLI::detail::split(gpu_memory, ','))
            wishes.card_memory.push_back(parse_size(size, "--gpu-memory"));
    else if (!gpu_memory.empty())
        wishes.memory_bytes = parse_size(gpu_memory, "--gpu-memory");
    if (layer_split != "auto")
        for (const std::string& text : CLI::detail::split(layer_split, ',')) {
            int64_t& count = wishes.layer_split.emplace_back();
            const auto [rest, error] = std::from_chars(text.data(), text.data() + text.size(), count);
            if (error != std::errc() || rest != text.data() + text.size() || count < 1)
                fail("--layer-split is ", printable(layer_split),
                     ", expected auto, or a number for each card as 20,41");
        }
    const scheduler::GpuChoice choice = scheduler::gpu_choice(gpus);
    if (const auto path = machine_of_host(); choice.cards > 1 && !choice.emulated && !path.empty()) {
        const scheduler::MachineDescription machine = scheduler::read_machine(path);
        for (const scheduler::DescribedGpu& gpu : machine.gpus)
            wishes.rates.push_back(scheduler::rates_of(machine, &gpu, scheduler::Outlook::kTarget));
    }
    return wishes;
}

int64_t ModelFlags::context(int64_t max_context) const {
    if (max_model_len > max_context)
        fail("--max-model-len is ", max_model_len, ", expected at most ", max_context, " (max_position_embeddings)");
    return max_model_len > 0 ? max_model_len : std::min(max_context, engine::kDefaultMaxModelLen);
}

int64_t parse_size(const std::string& text, const std::string& flag) {
    struct Unit {
        const char* name;
        double bytes;
    };
    constexpr Unit kUnits[] = {{"", 1.0},          {"B", 1.0},      {"kB", 1e3},    {"KB", 1e3},
                               {"MB", 1e6},        {"GB", 1e9},     {"TB", 1e12},   {"KiB", 1024.0},
                               {"MiB", 1048576.0}, {"GiB", 0x1p30}, {"TiB", 0x1p40}};
    double number = 0.0;
    const char* end = text.data() + text.size();
    const auto [rest, error] = std::from_chars(text.data(), end, number, std::chars_format::fixed);
    std::string unit(error == std::errc() ? rest : end, end);
    unit.erase(0, std::min(unit.find_first_not_of(' '), unit.size()));
    const auto* found =
        std::find_if(std::begin(kUnits), std::end(kUnits), [&](const Unit& u) { return unit == u.name; });
    const double bytes = found == std::end(kUnits) ? 0.0 : number * found->bytes;
    if (error != std::errc() || !(bytes >= 1.0 && bytes <= 0x1p50))
        fail(flag, " is \"", printable(text), "\", expected a size such as 24GiB, 1.5TB or 34190917632, up to 1024TiB");
    return static_cast<int64_t>(bytes);
}

std::vector<std::string> with_config_file(const std::vector<std::string>& arguments) {
    std::vector<std::string> command_line, from_file;
    for (size_t i = 0; i < arguments.size(); ++i) {
        std::string path;
        if (arguments[i].rfind("--config=", 0) == 0)
            path = arguments[i].substr(9);
        else if (arguments[i] == "--config" && i + 1 < arguments.size())
            path = arguments[++i];
        else {
            command_line.push_back(arguments[i]);
            continue;
        }
        const Json config = parse_json(read_text(path), path);
        if (!config.is_object()) fail(path, ": is ", config.type_name(), ", expected an object");
        for (const auto& [key, value] : config.items()) {
            from_file.push_back("--" + key + "=" + (value.is_boolean() ? value.dump() : flag_value(path, key, value)));
        }
    }
    if (command_line.empty()) return command_line;
    command_line.insert(command_line.begin() + 1, from_file.begin(), from_file.end());  // after the command's name
    return command_line;
}

}  // namespace thermocline::app
