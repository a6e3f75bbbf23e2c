// `serve`: the OpenAI-compatible server.
#include "src/app/commands.h"
#include "src/app/settings.h"
#include "src/base/error.h"
#include "src/base/file.h"
#include "src/base/log.h"
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
    std::vector<std::string> names, api_keys;
    std::string api_key_file, chat_encoding = "auto", effort = "high";
    bool default_thinking = true;
    int64_t max_queue = 256;
};

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
    if (flags.names.size() > 1) served.aliases.assign(flags.names.begin() + 1, flags.names.end());
    served.root = assembly.name;
    served.created = std::time(nullptr);
    served.max_model_len = assembly.engine->max_model_len();
    served.trained_context = assembly.model->max_context;
    served.vocab = assembly.model->vocab;
    served.hidden = assembly.model->trunk.matrices.front().matrix.cols;  // the embedding
    served.weight_bytes = assembly.model->weight_bytes;
    served.sampling = assembly.sampling;
    served.revision = assembly.encoding.revision;
    served.chat.thinking = flags.default_thinking;
    served.chat.effort = text::effort_from_word(flags.effort, "--default-reasoning-effort");
    served.fingerprint = "b" + flags.server.version;
    return served;
}

void serve(const ServeFlags& flags) {
    log::start(flags.model.log_level);
    server::ServerOptions options = flags.server;
    options.api_keys = api_keys(flags);
    server::StopSignal stop;
    server::Server server(options);
    const int port = server.bind();  // before loading: a taken port is known at once, clients get 503 meanwhile
    std::thread listener([&] { server.listen(); });
    try {
        engine::EngineOptions engine_options = flags.model.engine_options(flags.chat_encoding);
        engine_options.max_queue = flags.max_queue;
        engine::Assembly assembly = engine::assemble(engine_options);
        server.serve({assembly.engine.get(), assembly.tokenizer.get(), served_model(flags, assembly)});
        log::info("listening on http://{}:{}", options.http.host, port);
        stop.wait();
        log::info("shutting down");
        server.shut_down();
        listener.join();
    } catch (...) {
        server.shut_down();
        if (listener.joinable()) listener.join();
        throw;
    }
}

}  // namespace

void add_serve(CLI::App& root) {
    auto flags = std::make_shared<ServeFlags>();
    flags->server.version = "0.1.0";
    CLI::App& command = *root.add_subcommand("serve", "OpenAI-compatible server");
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
    command.add_option("--cors-origin", flags->server.http.cors_origin, "Access-Control-Allow-Origin; empty: none")
        ->group(group)
        ->capture_default_str();
    command.add_option("--max-body-size", flags->server.http.max_body, "largest request body in bytes")
        ->group(group)
        ->capture_default_str();
    command.add_option("--max-queue", flags->max_queue, "requests that may wait; 0: no limit")
        ->check(CLI::NonNegativeNumber)
        ->group(group)
        ->capture_default_str();
    command
        .add_option("--sse-ping-interval", flags->server.ping_seconds,
                    "seconds between comments in a silent stream; -1: never")
        ->group(group)
        ->capture_default_str();
    command
        .add_option("--drain-seconds", flags->server.drain_seconds, "running requests may take that long at shutdown")
        ->check(CLI::NonNegativeNumber)
        ->group(group)
        ->capture_default_str();
    group = "Served model";
    command.add_option("--served-model-name", flags->names, "name in the API; more than one: aliases; \"*\": any")
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
        ->group(group);
    command.add_option("--chat-encoding", flags->chat_encoding, "auto, v4, v4-0731 or v4.1")
        ->group(group)
        ->capture_default_str();
    command
        .add_flag("--default-thinking,!--no-default-thinking", flags->default_thinking,
                  "whether requests that do not say get reasoning")
        ->group(group)
        ->capture_default_str();
    command.add_option("--default-reasoning-effort", flags->effort, "low, medium, high, xhigh or max")
        ->group(group)
        ->capture_default_str();
    command.callback([flags] { serve(*flags); });
}

}  // namespace thermocline::app
