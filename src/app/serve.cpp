// `serve`: the OpenAI-compatible server.
#include "scheduler/bandwidth.h"
#include "src/app/commands.h"
#include "src/app/settings.h"
#include "src/base/error.h"
#include "src/base/file.h"
#include "src/base/log.h"
#include "src/base/pages.h"
#include "src/server/server.h"

#include <cstdlib>
#include <ctime>
#include <memory>
#include <sstream>
#include <thread>

namespace thermocline::app {

namespace {

struct ServeFlags {
    ModelFlags model;
    server::ServerOptions server;
    std::vector<std::string> names, aliases, api_keys;
    std::string api_key_file, log_format = "text", chat_encoding = "auto", effort = "high";
    std::string reasoning_field = "reasoning_content", logprobs_mode = "raw", metrics_style = "vllm";
    int32_t max_logprobs = 20;
    bool default_thinking = true, anthropic_thinking = false;
    int64_t max_queue = 256, max_num_seqs = 16, max_num_batched_tokens = 0;
    std::string kv_memory = "auto", cache_ram = "auto", kv_disk, replay_cache = "64MiB", routing, admin;
    double kv_disk_gb = 32.0;
};

engine::EngineOptions engine_options(const ServeFlags& flags) {
    engine::EngineOptions options = flags.model.engine_options(flags.chat_encoding);
    options.max_queue = flags.max_queue;
    options.max_num_seqs = flags.max_num_seqs;
    options.prefill_chunk = flags.max_num_batched_tokens;
    options.record_routing = flags.routing;
    options.admin_folder = flags.admin;
    if (flags.kv_memory != "auto") options.kv_bytes = parse_size(flags.kv_memory, "--kv-cache-memory-bytes");
    if (flags.cache_ram == "0")
        options.prefix_bytes = 0;
    else if (flags.cache_ram != "auto")
        options.prefix_bytes = parse_size(flags.cache_ram, "--cache-ram");
    if (!flags.kv_disk.empty() && options.prefix_bytes == 0)
        fail("--kv-disk writes what --cache-ram keeps, which is 0: give it some memory");
    options.prefix_disk = flags.kv_disk;
    options.prefix_disk_bytes = static_cast<int64_t>(flags.kv_disk_gb * 1e9);
    return options;
}

/// Keys of --api-key, of the file (one a line) and of THERMOCLINE_API_KEY.
std::vector<std::string> api_keys(const ServeFlags& flags) {
    std::vector<std::string> keys = flags.api_keys;
    if (!flags.api_key_file.empty()) {
        std::istringstream lines(read_text(flags.api_key_file, 1 << 20));
        for (std::string line; std::getline(lines, line);)
            if (!line.empty()) keys.push_back(line);
        if (keys.size() == flags.api_keys.size()) fail(flags.api_key_file, ": holds no key, expected one a line");
    }
    if (const char* key = std::getenv("THERMOCLINE_API_KEY"); key != nullptr && *key != '\0') keys.push_back(key);
    return keys;
}

server::ServedModel served_model(const ServeFlags& flags, const engine::Assembly& assembly) {
    server::ServedModel served;
    served.name = flags.names.empty() ? assembly.name : flags.names.front();
    served.aliases = flags.aliases;
    if (flags.names.size() > 1) served.aliases.insert(served.aliases.end(), flags.names.begin() + 1, flags.names.end());
    served.root = assembly.name;
    served.created = std::time(nullptr);
    served.max_model_len = assembly.engine->max_model_len();
    served.trained_context = assembly.model->max_context;
    served.vocab = assembly.model->vocab;
    served.hidden = assembly.model->trunk.matrices.front().matrix.cols;  // the embedding
    served.weight_bytes = assembly.model->weight_bytes;
    served.parameters = assembly.model->parameters;
    served.sampling = assembly.sampling;
    served.revision = assembly.encoding.revision;
    served.chat.thinking = flags.default_thinking;
    served.chat.effort = text::effort_from_word(flags.effort, "--default-reasoning-effort");
    served.anthropic_thinks = flags.anthropic_thinking;
    using Field = server::ReasoningField;
    served.reasoning_field = flags.reasoning_field == "both"        ? Field::kBoth
                             : flags.reasoning_field == "reasoning" ? Field::kReasoning
                                                                    : Field::kReasoningContent;
    served.processed_logprobs = flags.logprobs_mode == "processed";
    served.max_logprobs = flags.max_logprobs;
    char hash[9];
    std::snprintf(hash, sizeof hash, "%08x", static_cast<unsigned>(assembly.state_hash));
    served.fingerprint = "b" + flags.server.version + "-" + hash;
    return served;
}

/// True if the engine broke: clients hear of it for some seconds, then a supervisor may start us again.
bool wait_for_end(server::StopSignal& stop, const engine::Engine& engine) {
    while (!stop.wait(std::chrono::milliseconds(500))) {
        if (!engine.broken()) continue;
        stop.wait(std::chrono::seconds(5));
        return true;
    }
    return false;
}

void serve(const ServeFlags& flags) {
    log::start(flags.model.log_level, flags.log_format);
    server::ServerOptions options = flags.server;
    if (flags.replay_cache != "0") options.replay_bytes = parse_size(flags.replay_cache, "--replay-cache");
    options.api_keys = api_keys(flags);
    options.has_llama_metrics = flags.metrics_style == "both";
    if (!flags.admin.empty() && options.api_keys.empty())
        fail("--admin lets clients move experts and write files: give --api-key too");
    options.http.server_name += "/" + options.version;
    server::StopSignal stop;
    server::Server server(options);
    const int port = server.bind();  // before loading: a taken port is known at once, clients get 503 meanwhile
    std::thread listener([&] { server.listen(); });
    bool broken = false;
    try {
        engine::Assembly assembly = engine::assemble(engine_options(flags));
        server::Backend backend{assembly.engine.get(), assembly.tokenizer.get(), served_model(flags, assembly)};
        if (!assembly.routing->layers().empty()) backend.experts = [&assembly] { return engine::expert_use(assembly); };
        backend.admin = assembly.admin.get();
        backend.read_gb_per_second = scheduler::try_read_bandwidth(*assembly.workers);
        server.serve(std::move(backend));
        log::info("listening on http://{}:{}", options.http.host, port);
        broken = wait_for_end(stop, *assembly.engine);
        log::info("shutting down");
        server.shut_down();
        listener.join();
    } catch (...) {
        server.shut_down();
        if (listener.joinable()) listener.join();
        throw;
    }
    if (broken) fail("the engine has failed, see the log: no forward pass succeeded any more");
}

void add_batching_flags(CLI::App& command, ServeFlags& flags) {
    const char* group = "Batching and caches";
    command.add_option("--max-queue", flags.max_queue, "requests that may wait; 0: no limit")
        ->check(CLI::NonNegativeNumber)
        ->group(group)
        ->capture_default_str();
    command.add_option("--max-num-seqs", flags.max_num_seqs, "requests that run at once, in the same forward passes")
        ->check(CLI::PositiveNumber)
        ->group(group)
        ->capture_default_str();
    command
        .add_option("--max-num-batched-tokens", flags.max_num_batched_tokens,
                    "tokens in one forward pass: one of every request that generates, the rest of prompts in equal "
                    "shares. More: faster prompts, longer pauses for those who generate. 0: 512, with a card 4096, "
                    "or as many as its memory has room for")
        ->check(CLI::NonNegativeNumber)
        ->group(group)
        ->capture_default_str();
    command
        .add_option("--kv-cache-memory-bytes", flags.kv_memory,
                    "for the caches of all running requests (4GiB, 500MB, bytes); when it gets short, the youngest "
                    "waits and computes again. auto: all they may need, at most half of the free memory; on a card all")
        ->group(group)
        ->capture_default_str();
    command
        .add_option("--cache-ram", flags.cache_ram,
                    "memory for states of earlier requests, from which prompts that begin alike go on; 0: none; auto: "
                    "an eighth of the free memory, at most 8GiB")
        ->group(group)
        ->capture_default_str();
    command
        .add_option(
            "--kv-disk", flags.kv_disk,
            "folder where these states also go, so that they outlive the server (not the program: another build "
            "starts afresh); it holds what requests said")
        ->group(group);
    command
        .add_option("--replay-cache", flags.replay_cache,
                    "memory for answers as the model wrote them: a conversation that goes on shows the model its own "
                    "tokens, however the client spells them; 0: prompts depend on the request alone")
        ->group(group)
        ->capture_default_str();
    command
        .add_flag("--isolate-api-keys", flags.server.isolates_keys,
                  "requests with different API keys share no states and no answers")
        ->group(group);
    command.add_option("--kv-disk-gb", flags.kv_disk_gb, "10^9 bytes that this folder may hold")
        ->check(CLI::Range(0.001, 1e6))
        ->group(group)
        ->capture_default_str();
}

}  // namespace

void add_serve(CLI::App& root) {
    auto flags = std::make_shared<ServeFlags>();
    flags->server.version = "0.1.0";
    CLI::App& command = *root.add_subcommand("serve", "server with the APIs of OpenAI and Anthropic");
    flags->model.declare(command, ModelFlags::Positional::kOptional);
    const char* group = "Server";
    command.add_option("--host", flags->server.http.host, "address to listen on")->group(group)->capture_default_str();
    command.add_option("--port", flags->server.http.port, "0: any free one")
        ->check(CLI::Range(0, 65535))
        ->group(group)
        ->capture_default_str();
    command
        .add_option("--api-key", flags->api_keys, "opens the API; may be given several times; also THERMOCLINE_API_KEY")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
        ->group(group);
    command.add_option("--api-key-file", flags->api_key_file, "file with one key a line")->group(group);
    command
        .add_option("--cors-origins", flags->server.http.cors_origins,
                    "web origins whose pages may call; \"*\": all; \"\": none")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
        ->group(group)
        ->capture_default_str();
    command
        .add_option("--queue-timeout", flags->server.queue_seconds,
                    "seconds that a request may wait for its turn; 0: no limit")
        ->check(CLI::NonNegativeNumber)
        ->group(group)
        ->capture_default_str();
    command
        .add_option("--request-timeout", flags->server.request_seconds, "seconds that a request may take; 0: no limit")
        ->check(CLI::NonNegativeNumber)
        ->group(group)
        ->capture_default_str();
    command
        .add_option("--record-routing", flags->routing,
                    "write the experts that every layer chose for every token (JSON lines), for `profile`")
        ->group(group);
    command
        .add_option("--admin", flags->admin,
                    "POST /v1/experts/record, /pin and /place start and end recordings of routing, keep experts on the "
                    "card, and place them anew by a profile or placement; files lie in this folder. Needs an API key")
        ->group(group);
    command.add_option("--log-format", flags->log_format, "text, or json: one object a line")
        ->group(group)
        ->capture_default_str();
    command.add_flag("--slots,!--no-slots", flags->server.shows_slots, "whether GET /slots tells what runs")
        ->group(group)
        ->capture_default_str();
    command.add_flag("--open-models", flags->server.opens_models, "GET /v1/models needs no API key")->group(group);
    command.add_flag("--guard-metrics", flags->server.guards_metrics, "GET /metrics needs one")->group(group);
    command
        .add_option("--metrics-style", flags->metrics_style,
                    "names in GET /metrics: vllm's, or both these and llama-server's")
        ->check(CLI::IsMember({"vllm", "both"}))
        ->group(group)
        ->capture_default_str();
    command.add_option("--max-body-size", flags->server.http.max_body, "largest request body in bytes")
        ->group(group)
        ->capture_default_str();
    command
        .add_option("--sse-ping-interval", flags->server.ping_seconds,
                    "seconds between comments in a silent stream; -1: never")
        ->group(group)
        ->capture_default_str();
    command
        .add_option("--drain-timeout", flags->server.drain_seconds,
                    "seconds that running requests may take at shutdown")
        ->check(CLI::NonNegativeNumber)
        ->group(group)
        ->capture_default_str();
    add_batching_flags(command, *flags);
    group = "Served model";
    command.add_option("--served-model-name", flags->names, "name in the API; more than one: aliases; \"*\": any")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
        ->group(group);
    command.add_option("--model-alias", flags->aliases, "other names that the API answers to; \"*\": any")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
        ->group(group);
    command
        .add_option("--reasoning-field", flags->reasoning_field,
                    "what answers of chats call the reasoning: reasoning_content, reasoning (vLLM), or both")
        ->check(CLI::IsMember({"reasoning_content", "reasoning", "both"}))
        ->group(group)
        ->capture_default_str();
    command
        .add_option("--logprobs-mode", flags->logprobs_mode,
                    "raw: log-probabilities of the model; processed: of what was drawn from, behind masks, biases, "
                    "penalties, temperature, min_p, top_k and top_p")
        ->check(CLI::IsMember({"raw", "processed"}))
        ->group(group)
        ->capture_default_str();
    command.add_option("--max-logprobs", flags->max_logprobs, "candidates for each token that a request may ask for")
        ->check(CLI::NonNegativeNumber)
        ->group(group)
        ->capture_default_str();
    command.add_option("--chat-encoding", flags->chat_encoding, "auto, v4, v4-0731 or v4.1")
        ->group(group)
        ->capture_default_str();
    command
        .add_flag("--default-thinking,!--no-default-thinking", flags->default_thinking,
                  "whether requests that do not say get reasoning")
        ->group(group)
        ->capture_default_str();
    command
        .add_flag("--anthropic-think-by-default", flags->anthropic_thinking,
                  "reasoning for /v1/messages requests without \"thinking\"")
        ->group(group);
    command.add_option("--default-reasoning-effort", flags->effort, "low, medium, high, xhigh or max")
        ->group(group)
        ->capture_default_str();
    command.callback([flags] { serve(*flags); });
}

}  // namespace thermocline::app
