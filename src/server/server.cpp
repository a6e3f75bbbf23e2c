#include "src/server/server.h"

#include "src/base/checksum.h"
#include "src/base/log.h"
#include "src/server/page.h"
#include "src/server/small_routes.h"

#include <algorithm>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <fcntl.h>
#include <functional>
#include <optional>
#include <poll.h>
#include <span>
#include <thread>
#include <unistd.h>
#include <utility>

namespace thermocline::server {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kPoll{100};
/// Headers go out after that time without a token, so that clients and proxies see that the request lives.
constexpr milliseconds kSilentStart{2000};

bool equal_in_constant_time(const std::string& a, const std::string& b) {
    unsigned char difference = a.size() == b.size() ? 0 : 1;
    for (size_t i = 0; i < a.size(); ++i)
        difference |= static_cast<unsigned char>(a[i] ^ (b.empty() ? 1 : b[i % b.size()]));
    return difference == 0;
}

std::string api_key(const HttpRequest& request) {
    const std::string bearer = request.header("Authorization");
    return bearer.starts_with("Bearer ") ? bearer.substr(7) : request.header("x-api-key");
}

}  // namespace

std::string salt_of_key(const HttpRequest& request) {
    const std::string key = api_key(request);
    char salt[32];
    std::snprintf(salt, sizeof salt, "key %016llx ",
                  static_cast<unsigned long long>(checksum_of(std::as_bytes(std::span(key.data(), key.size())))));
    return salt;
}

Server::Server(ServerOptions options)
    : options_(std::move(options)),
      http_(options_.http, [](const HttpRequest& request, int status, const std::string& message) {
          return error_reply(RequestError(status, message), dialect_of(request.path), request.id);
      }) {
    http_.gate([this](const HttpRequest& request) { return check_access(request); });
    add_openai_routes();
    add_anthropic_routes();
    add_small_routes();
    add_page();
}

/// Joins what others count to what the server counts.
void Server::add_metrics() {
    using Kind = Metrics::Kind;
    const engine::Engine* engine = backend_.engine;
    metrics_.add(Kind::kGauge, "vllm:num_requests_running", "Sequences in the engine.",
                 [engine] { return static_cast<double>(engine->load().running); });
    metrics_.add(Kind::kGauge, "vllm:num_requests_waiting", "Sequences that wait for the engine.",
                 [engine] { return static_cast<double>(engine->load().waiting); });
    metrics_.add(Kind::kGauge, "vllm:kv_cache_usage_perc", "Part of the caches that running sequences fill, 0 to 1.",
                 [this] { return cache_usage(); });
    metrics_.add(Kind::kCounter, "vllm:num_preemptions_total", "Sequences that gave their caches back for a while.",
                 [engine] { return static_cast<double>(engine->counters().preemptions); });
    metrics_.add(Kind::kCounter, "engine_prefix_disk_hits_total", "Tokens of prompts that came from the disk.",
                 [engine] { return static_cast<double>(engine->counters().prefix_disk_hits); });
    metrics_.add(Kind::kCounter, "engine_prefix_disk_loads_total", "States that came from the disk.",
                 [engine] { return static_cast<double>(engine->counters().prefix_loads); });
    metrics_.add(Kind::kGauge, "engine_prefix_memory_bytes", "States of earlier requests in memory.",
                 [engine] { return static_cast<double>(engine->counters().prefix_bytes); });
    metrics_.add(Kind::kGauge, "engine_prefix_disk_bytes", "States of earlier requests on disk.",
                 [engine] { return static_cast<double>(engine->counters().prefix_disk_bytes); });
}

double Server::cache_usage() const {
    const engine::Counters now = backend_.engine->counters();
    return now.kv_total_bytes == 0 ? 0.0
                                   : static_cast<double>(now.kv_used_bytes) / static_cast<double>(now.kv_total_bytes);
}

/// What the forward passes were like.
void Server::add_pass_metrics() {
    const engine::Engine* engine = backend_.engine;
    metrics_.add([engine](std::string& out, const std::string& labels) {
        // vLLM's bounds: 1, 8, 16 and on.
        const engine::Counters now = engine->counters();
        std::vector<double> bounds = {1};
        std::vector<uint64_t> counts(2);
        for (size_t i = 0; i < now.passes_by_tokens.size(); ++i) {
            counts[i == 0 ? 0 : counts.size() - 1] += static_cast<uint64_t>(now.passes_by_tokens[i]);
            if (i < 3 || i + 1 == now.passes_by_tokens.size()) continue;
            bounds.push_back(static_cast<double>(int64_t{1} << i));
            counts.push_back(0);
        }
        const char* name = "vllm:iteration_tokens_total";
        write_header(out, name, "Tokens in a forward pass.", "histogram");
        write_histogram(out, name, labels, bounds, counts, static_cast<double>(now.pass_tokens));

        name = "vllm:cache_config_info";
        write_header(out, name, "What the caches hold: blocks of the longest sequence.", "gauge");
        out += name + ("{" + labels) + ",block_size=\"" + std::to_string(engine->max_model_len()) +
               "\",num_gpu_blocks=\"" +
               std::to_string(now.kv_sequence_bytes == 0 ? engine->max_sequences()
                                                         : now.kv_total_bytes / now.kv_sequence_bytes) +
               "\"} 1.0\n";
    });
}

/// The names of llama-server, for dashboards that were made for it.
void Server::add_llama_metrics() {
    if (!options_.has_llama_metrics) return;
    using Kind = Metrics::Kind;
    const engine::Engine* engine = backend_.engine;
    const auto share = [](double amount, double of) { return of > 0 ? amount / of : 0.0; };
    const auto computed = [this] {
        const auto cached = static_cast<double>(metrics_.cached_tokens);  // first: both grow
        return std::max(0.0, static_cast<double>(metrics_.prompt_tokens) - cached);
    };
    const auto generated = [this] { return static_cast<double>(metrics_.output_tokens); };
    const auto pass_sequences = [engine, share] {
        const engine::Counters now = engine->counters();
        return share(static_cast<double>(now.pass_sequences), static_cast<double>(now.passes));
    };
    metrics_.add(Kind::kCounter, "llamacpp:prompt_tokens_total", "Prompt tokens computed.", computed);
    metrics_.add(Kind::kCounter, "llamacpp:prompt_seconds_total", "Computing prompts.",
                 [this] { return metrics_.prefill.sum(); });
    metrics_.add(Kind::kCounter, "llamacpp:tokens_predicted_total", "Tokens generated.", generated);
    metrics_.add(Kind::kCounter, "llamacpp:tokens_predicted_seconds_total", "Generating.",
                 [this] { return metrics_.decode.sum(); });
    metrics_.add(Kind::kCounter, "llamacpp:n_decode_total", "Forward passes.",
                 [engine] { return static_cast<double>(engine->counters().passes); });
    metrics_.add(Kind::kGauge, "llamacpp:prompt_tokens_seconds", "Prompt tokens a second of computing them.",
                 [this, share, computed] { return share(computed(), metrics_.prefill.sum()); });
    metrics_.add(Kind::kGauge, "llamacpp:predicted_tokens_seconds", "Tokens a second of generating them, of a request.",
                 [this, share, generated] { return share(generated(), metrics_.decode.sum()); });
    metrics_.add(Kind::kGauge, "llamacpp:requests_processing", "Sequences in the engine.",
                 [engine] { return static_cast<double>(engine->load().running); });
    metrics_.add(Kind::kGauge, "llamacpp:requests_deferred", "Sequences that wait for the engine.",
                 [engine] { return static_cast<double>(engine->load().waiting); });
    metrics_.add(Kind::kGauge, "llamacpp:n_busy_slots_per_decode", "Sequences in a forward pass, mean.",
                 pass_sequences);
    metrics_.add(Kind::kGauge, "llamacpp:n_tokens_max", "Tokens of the longest sequence so far.",
                 [engine] { return static_cast<double>(engine->counters().longest_sequence); });
}

/// How much of what the routers chose was on the card.
void Server::add_expert_metrics() {
    if (!backend_.experts) return;
    const auto metric = [&](Metrics::Kind kind, const char* name, const char* help, auto value) {
        metrics_.add(kind, name, help,
                     [this, value] { return static_cast<double>(std::invoke(value, backend_.experts())); });
    };
    const auto add = [&](const char* name, const char* help, auto value) {
        metric(Metrics::Kind::kCounter, name, help, value);
    };
    const auto gauge = [&](const char* name, const char* help, auto value) {
        metric(Metrics::Kind::kGauge, name, help, value);
    };
    gauge("engine_expert_decode_uses_card", "Whether experts on the card take part in passes that decode.",
          &engine::ExpertUse::decode_on_card);
    gauge("engine_expert_prompts_use_card", "Whether experts on the card take part in passes over prompts.",
          &engine::ExpertUse::prompts_on_card);
    gauge("engine_expert_decode_gain", "How much longer a pass that decodes takes without them, as a share.",
          &engine::ExpertUse::decode_gain);
    gauge("engine_expert_prompt_gain", "How much longer a pass over a prompt takes without them, as a share.",
          &engine::ExpertUse::prompt_gain);
    gauge("engine_expert_prefetch_on", "Whether experts are brought near before they are chosen.",
          &engine::ExpertUse::prefetch_on);
    gauge("engine_expert_prefetch_gain", "How much longer a pass that decodes takes without that, as a share.",
          &engine::ExpertUse::prefetch_gain);
    add("engine_expert_foretold_total", "Choices that gates foretold before attention.", &engine::ExpertUse::foretold);
    add("engine_expert_foretold_right_total", "Of these chosen.", &engine::ExpertUse::foretold_right);
    add("engine_expert_warmed_bytes_total", "Of foretold experts, brought into the caches of the CPU.",
        &engine::ExpertUse::warmed_bytes);
    add("engine_expert_read_ahead_bytes_total", "Of experts in files, asked for before they were computed.",
        &engine::ExpertUse::read_ahead_bytes);
    add("engine_expert_choices_total", "Routed experts that tokens chose, with a card.", &engine::ExpertUse::choices);
    add("engine_expert_hits_total", "Of these on the card.", &engine::ExpertUse::hits);
    add("engine_expert_transfers_total", "Experts brought to the card.", &engine::ExpertUse::moved_experts);
    add("engine_expert_transfer_bytes_total", "Bytes of these.", &engine::ExpertUse::moved_bytes);
    add("engine_expert_streamed_total", "Experts sent through the card for a prompt.",
        &engine::ExpertUse::streamed_experts);
    add("engine_expert_adopted_total", "Of these stayed on the card.", &engine::ExpertUse::adopted_experts);
    add("engine_expert_card_reads_total", "Experts that the card read, each once a pass.",
        &engine::ExpertUse::card_reads);
    add("engine_expert_cpu_reads_total", "Experts that the CPU read, each once a pass.", &engine::ExpertUse::cpu_reads);
    add("engine_expert_card_bytes_total", "Bytes of experts read in memory of cards.", &engine::ExpertUse::card_bytes);
    add("engine_expert_host_bytes_total", "Bytes of experts read in host memory, with a card.",
        &engine::ExpertUse::host_bytes);
    add("engine_expert_link_bytes_total", "Bytes of experts brought or streamed to cards.",
        &engine::ExpertUse::link_bytes);
    add("engine_expert_link_seconds_total", "That these kept the links busy, by their measured speed.",
        &engine::ExpertUse::link_seconds);
    add("engine_expert_layers_total", "Layers with routed experts that were played, with a card.",
        &engine::ExpertUse::layers_played);
    add("engine_expert_cpu_seconds_total", "That the CPU computed experts in these.", &engine::ExpertUse::cpu_seconds);
    add("engine_expert_exposed_seconds_total", "Of these not hidden behind the card's own experts.",
        &engine::ExpertUse::exposed_seconds);
}

Json Server::stats() const {
    const engine::Engine::Load load = backend().engine->load();
    const engine::Counters now = backend_.engine->counters();
    Json stats = {{"model", backend_.model.name},
                  {"requests", {{"running", load.running}, {"waiting", load.waiting}}},
                  {"kv_cache_usage", cache_usage()},
                  {"prefix_cache",
                   {{"memory_bytes", now.prefix_bytes},
                    {"disk_bytes", now.prefix_disk_bytes},
                    {"disk_hits", now.prefix_disk_hits},
                    {"disk_loads", now.prefix_loads}}}};
    if (backend_.read_gb_per_second > 0) stats["memory_gb_per_second"] = backend_.read_gb_per_second;
    const Json counted = metrics_.stats();
    for (const auto& [key, value] : counted.items()) stats[key] = value;
    return stats;
}

/// The page needs no key: it holds nothing but its own text.
void Server::add_page() {
    for (const PageFile& file : page_files()) {
        http_.route("GET", std::string(file.path), [&file](const HttpRequest&) {
            HttpReply reply;
            reply.content_type = file.content_type;
            reply.body = file.content;
            reply.headers = {{"Content-Security-Policy",
                              "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
                              "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"},
                             {"X-Content-Type-Options", "nosniff"},
                             {"Referrer-Policy", "no-referrer"},
                             {"Cache-Control", "no-cache"}};
            return reply;
        });
    }
}

void Server::serve(Backend backend) {
    backend_ = std::move(backend);
    if (options_.replay_bytes > 0) backend_.turns = std::make_shared<text::WrittenTurns>(options_.replay_bytes);
    backend_.grammars =
        std::make_shared<Grammars>(*backend_.tokenizer, backend_.engine->vocab(), backend_.engine->eos_ids());
    add_metrics();
    add_pass_metrics();
    add_llama_metrics();
    add_expert_metrics();
    ready_.store(true, std::memory_order_release);
}

const Backend& Server::backend() const {
    if (draining_) throw RequestError(503, "the server is shutting down");
    if (!ready_.load(std::memory_order_acquire)) throw RequestError(503, "Loading model");
    return backend_;
}

/// Needs no key.
bool Server::is_open(const std::string& path) const {
    for (const char* open : {"/health", "/v1/health", "/ping", "/ready", "/version", "/load"})
        if (path == open) return true;
    for (const PageFile& file : page_files())
        if (path == file.path) return true;
    const auto is_at = [&path](const std::string& base) { return path == base || path.starts_with(base + "/"); };
    return (path == "/metrics" && !options_.guards_metrics) ||
           (options_.opens_models && (is_at("/v1/models") || is_at("/models")));
}

/// API keys: everything else needs one when there are any.
std::optional<HttpReply> Server::check_access(const HttpRequest& request) const {
    if (options_.api_keys.empty() || is_open(request.path)) return std::nullopt;
    const std::string key = api_key(request);
    bool is_known = false;
    for (const std::string& known : options_.api_keys) is_known |= equal_in_constant_time(key, known);
    if (is_known) return std::nullopt;
    return error_reply(RequestError(401, "the API key is missing or wrong"), dialect_of(request.path), request.id);
}

/// Runs a handler; what is wrong with the request becomes its error body.
HttpReply Server::guarded(const HttpHandler& handler, const HttpRequest& request) const {
    const Dialect dialect = dialect_of(request.path);
    HttpReply reply;
    try {
        reply = handler(request);
    } catch (const RequestError& error) {
        reply = error_reply(error, dialect, request.id);
    } catch (const Error& error) {
        reply = error_reply(bad_request(error), dialect, request.id);
    }
    reply.close |= draining_;
    return reply;
}

void Server::add(const std::string& method, const std::string& path, HttpHandler handler) {
    http_.route(method, path, [this, handler = std::move(handler)](const HttpRequest& request) {
        const auto start = std::chrono::steady_clock::now();
        HttpReply reply = guarded(handler, request);
        const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
        metrics_.count_response(reply.status);
        log::info("[{}] {} {} {} {:.0f} ms{}{}{}", request.id, request.method, request.path, reply.status, time.count(),
                  reply.stream ? " to the headers" : "", reply.note.empty() ? "" : ": ", reply.note);
        return reply;
    });
}

void Server::add_post(const std::string& path, BodyFunction function) {
    add("POST", path, [this, function = std::move(function)](const HttpRequest& request) {
        return json_reply(function(parse_body(request.body), backend()));
    });
}

void Server::add_small_routes() {
    const auto get = [this](const char* path, auto function) {
        http_.route("GET", path, [this, function](const HttpRequest& request) {
            return guarded([&](const HttpRequest&) { return function(); }, request);
        });
    };
    for (const char* path : {"/health", "/v1/health", "/ping", "/ready"}) get(path, [this] { return health(); });
    get("/version", [this] { return json_reply({{"version", options_.version}}); });
    get("/load", [this] { return json_reply({{"server_load", running_.load()}}); });
    get("/props", [this] {
        return json_reply(server_facts(backend().model, backend().engine->max_sequences(), options_.version));
    });
    get("/tokenizer_info", [this] { return json_reply(tokenizer_facts(backend().model, *backend().tokenizer)); });
    get("/v1/stats", [this] { return json_reply(stats()); });
    get("/v1/experts", [this] {
        if (!backend().experts) throw RequestError(404, "this model has no routed experts");
        return json_reply(expert_atlas(backend().experts()));
    });
    using Order = Json (*)(const Json& body, engine::ExpertAdmin& admin);
    const std::pair<const char*, Order> orders[] = {
        {"/v1/experts/record", record_reply}, {"/v1/experts/pin", pin_reply}, {"/v1/experts/place", place_reply}};
    for (const auto& [path, order] : orders)
        add_post(path, [order = order](const Json& body, const Backend& served) {
            if (served.admin == nullptr)
                throw RequestError(403, "this server takes no orders, start it with --admin DIR");
            return order(body, *served.admin);
        });
    get("/metrics", [this] {
        if (!ready_.load(std::memory_order_acquire)) throw RequestError(503, "Loading model");
        HttpReply reply;
        reply.content_type = "text/plain; version=0.0.4; charset=utf-8";
        reply.body = metrics_.prometheus(backend_.model.name);
        return reply;
    });
    get("/slots", [this] {
        if (!options_.shows_slots) throw RequestError(501, "/slots is off, start the server without --no-slots");
        return json_reply(slot_list(backend().engine->slots(), backend().model));
    });
    for (const char* path : {"/v1/embeddings", "/embeddings"})
        add_post(path, [](const Json&, const Backend&) -> Json {
            throw RequestError(501, "embeddings are not supported: the model that is served generates text");
        });
    add_post("/tokenize",
             [](const Json& body, const Backend& b) { return tokenize_reply(body, b.model, *b.tokenizer); });
    add_post("/detokenize", [](const Json& body, const Backend& b) { return detokenize_reply(body, *b.tokenizer); });
    add_post("/apply-template", [](const Json& body, const Backend& b) { return template_reply(body, b.model); });
}

HttpReply Server::health() const {
    if (backend().engine->broken()) throw RequestError(503, kBroken);
    return json_reply({{"status", "ok"}});
}

std::optional<Delta> Server::next(Live& live) const {
    std::optional<Delta> delta;
    try {
        delta = live.job->generation().next(kPoll);
    } catch (const RequestError& error) {
        if (error.status() == 500) live.trace.fail();
        throw;
    }
    live.has_begun |= delta.has_value();
    if (delta) live.trace.on(*delta);
    if (aborting_) throw RequestError(503, "the server is shutting down");
    const auto age = std::chrono::steady_clock::now() - live.start;
    if (options_.queue_seconds > 0 && !live.has_begun && age > std::chrono::seconds(options_.queue_seconds))
        throw RequestError(503, "the request waited over " + std::to_string(options_.queue_seconds) +
                                    " seconds for its turn, try again later");
    if (options_.request_seconds > 0 && age > std::chrono::seconds(options_.request_seconds) &&
        !live.job->generation().done())
        throw RequestError(408, "the request took over " + std::to_string(options_.request_seconds) +
                                    " seconds, the limit of this server");
    return delta;
}

HttpReply Server::run(const HttpRequest& request, std::shared_ptr<Job> job) {
    const auto live = std::make_shared<Live>(std::move(job), request, metrics_, running_);
    if (live->job->call().stream) return stream(request, live);
    Generation& generation = live->job->generation();
    auto looked = std::chrono::steady_clock::now();
    while (!generation.done()) {
        std::optional<Delta> delta = next(*live);
        if (delta) live->job->add(std::move(*delta));
        const auto now = std::chrono::steady_clock::now();
        if (now - looked < kPoll) continue;
        looked = now;
        if (request.client_gone()) {
            HttpReply nobody;  // reads it: the destructor of the generation cancels the work
            nobody.status = 499;
            nobody.close = true;
            return nobody;
        }
    }
    HttpReply reply = json_reply(live->job->reply());
    reply.note = live->trace.summary();
    return reply;
}

/// Waits a moment for the first token, so that what fails before it gets a status of its own.
HttpReply Server::stream(const HttpRequest& request, std::shared_ptr<Live> live) {
    const auto deadline = std::chrono::steady_clock::now() + kSilentStart;
    const bool wants_progress = live->job->call().return_progress;
    bool has_begun = false;
    while (!has_begun && std::chrono::steady_clock::now() < deadline && !request.client_gone()) {
        std::optional<Delta> delta = next(*live);
        if (!delta) continue;
        has_begun = wants_progress || !delta->tokens.empty() || delta->ending;
        live->early.push_back(std::move(*delta));
    }
    HttpReply reply;
    reply.content_type = "text/event-stream; charset=utf-8";
    reply.stream = [this, live = std::move(live)](StreamWriter& writer) { pump(*live, writer); };
    return reply;
}

/// Writes a stream until it ends, breaks, or the client is gone; leaving cancels what still runs.
void Server::pump(Live& live, StreamWriter& writer) const {
    const int64_t ping_seconds = live.job->call().ping_seconds.value_or(options_.ping_seconds);
    Generation& generation = live.job->generation();
    const auto events = live.job->new_stream();
    auto last_sent = std::chrono::steady_clock::now();
    try {
        std::string text;
        for (Delta& delta : live.early) text += events->on(std::move(delta));
        while (true) {
            const auto now = std::chrono::steady_clock::now();
            if (text.empty() && ping_seconds > 0 && now - last_sent >= std::chrono::seconds(ping_seconds))
                text = events->ping();
            if (!text.empty()) {
                if (!writer.write(text)) return;
                last_sent = now;
            }
            if (generation.done()) break;
            std::optional<Delta> delta = next(live);
            if (!delta && !writer.alive()) return;
            text = delta ? events->on(std::move(*delta)) : "";
        }
        writer.write(events->end());
        log::info("[{}] {} ended: {}", live.request_id, live.path, live.trace.summary());
    } catch (const RequestError& error) {
        log::warn("[{}] {} broke off: {}", live.request_id, live.path, error.what());
        writer.write(events->failure(error, live.request_id));
    }
}

void Server::shut_down() {
    const auto wait = [this](milliseconds time) {
        const auto deadline = std::chrono::steady_clock::now() + time;
        while (running_ > 0 && std::chrono::steady_clock::now() < deadline)
            std::this_thread::sleep_for(milliseconds(20));
    };
    draining_ = true;
    if (ready_) backend_.engine->drain();
    wait(std::chrono::seconds(options_.drain_seconds));
    aborting_ = true;
    wait(milliseconds(3000));
    http_.stop();
}

namespace {

int signal_pipe[2] = {-1, -1};

void on_signal(int) {
    static volatile std::sig_atomic_t seen = 0;
    if (seen > 0) _exit(130);
    seen = 1;
    const char byte = 0;
    [[maybe_unused]] const ssize_t written = write(signal_pipe[1], &byte, 1);
}

}  // namespace

StopSignal::StopSignal() {
    if (pipe2(signal_pipe, O_CLOEXEC) != 0) fail("cannot make a pipe for signals");
    struct sigaction action {};
    action.sa_handler = on_signal;
    action.sa_flags = SA_RESTART;
    sigaction(SIGINT, &action, nullptr);
    sigaction(SIGTERM, &action, nullptr);
}

bool StopSignal::wait(milliseconds time) {
    pollfd came{signal_pipe[0], POLLIN, 0};
    return poll(&came, 1, static_cast<int>(time.count())) > 0;
}

}  // namespace thermocline::server
