#include "src/server/server.h"

#include "src/base/log.h"
#include "src/server/errors.h"
#include "src/server/generation.h"
#include "src/server/reply.h"
#include "src/server/small_routes.h"
#include "src/server/stream.h"
#include "src/text/prompt_deepseek_v4.h"

#include <chrono>
#include <csignal>
#include <ctime>
#include <fcntl.h>
#include <optional>
#include <thread>
#include <unistd.h>
#include <utility>

namespace thermocline::server {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds kPoll{100};
/// Headers go out after that time without a token, so that clients and proxies see that the request lives.
constexpr milliseconds kSilentStart{2000};

HttpReply json_reply(const Json& body, int status = 200) {
    HttpReply reply;
    reply.status = status;
    reply.body = dump_json(body);
    return reply;
}

HttpReply error_reply(const RequestError& error) {
    HttpReply reply = json_reply(error_json(error), error.status());
    if (error.status() == 429) reply.headers = {{"Retry-After", "1"}, {"retry-after-ms", "1000"}};
    if (error.status() == 503) reply.headers = {{"Retry-After", "5"}};
    if (error.status() == 401) reply.headers = {{"WWW-Authenticate", "Bearer"}};
    if (error.status() == 501) reply.headers = {{"x-should-retry", "false"}};
    return reply;
}

/// Runs a handler; what is wrong with the request becomes its error body.
HttpReply guarded(const HttpHandler& handler, const HttpRequest& request) {
    try {
        return handler(request);
    } catch (const RequestError& error) {
        return error_reply(error);
    } catch (const Error& error) {
        return error_reply(bad_request(error));
    }
}

bool equal_in_constant_time(const std::string& a, const std::string& b) {
    unsigned char difference = a.size() == b.size() ? 0 : 1;
    for (size_t i = 0; i < a.size(); ++i)
        difference |= static_cast<unsigned char>(a[i] ^ (b.empty() ? 1 : b[i % b.size()]));
    return difference == 0;
}

}  // namespace

/// One generating request from its body to the last byte of its answer.
struct Server::Job {
    explicit Job(std::atomic<int64_t>& running) : counted(running) {}
    virtual ~Job() = default;
    virtual const Call& call() const = 0;
    virtual std::unique_ptr<EventStream> new_stream() const = 0;
    /// The whole answer, from all deltas.
    virtual Json reply() const = 0;
    virtual void add(Delta delta) = 0;

    std::string request_id;
    ReplyHead head;
    std::optional<Tally> tally;
    std::vector<ChoiceText> choices;
    std::unique_ptr<Generation> generation;
    std::optional<Delta> first;  // of a stream: taken before its headers went out
    Running counted;
};

struct Server::ChatJob : Server::Job {
    using Job::Job;
    const Call& call() const override { return request; }
    std::unique_ptr<EventStream> new_stream() const override {
        return std::make_unique<ChatStream>(head, request, *tally, starts_in_reasoning, prompt);
    }
    Json reply() const override { return chat_reply(head, request, choices, *tally, prompt); }
    void add(Delta delta) override {
        const auto index = static_cast<size_t>(delta.choice);
        tally->add(delta);
        views[index].apply(delta);
        choices[index].add(delta, !request.include_reasoning);
    }

    ChatCall request;
    bool starts_in_reasoning = false;
    std::vector<int32_t> prompt;
    std::vector<ReasoningView> views;
};

struct Server::CompletionJob : Server::Job {
    using Job::Job;
    const Call& call() const override { return request; }
    std::unique_ptr<EventStream> new_stream() const override {
        return std::make_unique<CompletionStream>(head, request, *tally, echoes, prompts);
    }
    Json reply() const override { return completion_reply(head, request, choices, echoes, prompts, *tally); }
    void add(Delta delta) override {
        tally->add(delta);
        choices[static_cast<size_t>(delta.choice)].add(delta, false);
    }

    CompletionCall request;
    std::vector<std::vector<int32_t>> prompts;
    std::vector<std::string> echoes;
};

Server::Server(ServerOptions options)
    : options_(std::move(options)), http_(options_.http, [](int status, const std::string& message) {
          return dump_json(error_json(status, message));
      }) {
    http_.gate([this](const HttpRequest& request) { return check_access(request); });
    add_routes();
    add_small_routes();
}

void Server::serve(Backend backend) {
    backend_ = std::move(backend);
    ready_.store(true, std::memory_order_release);
}

const Backend& Server::backend() const {
    if (draining_) throw RequestError(503, "the server is shutting down");
    if (!ready_.load(std::memory_order_acquire)) throw RequestError(503, "Loading model");
    return backend_;
}

/// API keys: everything but liveness needs one when there are any.
std::optional<HttpReply> Server::check_access(const HttpRequest& request) const {
    for (const char* open : {"/health", "/v1/health", "/ping", "/version", "/load"})
        if (request.path == open) return std::nullopt;
    if (options_.api_keys.empty()) return std::nullopt;
    std::string key = request.header("Authorization");
    key = key.starts_with("Bearer ") ? key.substr(7) : request.header("x-api-key");
    bool is_known = false;
    for (const std::string& known : options_.api_keys) is_known |= equal_in_constant_time(key, known);
    if (is_known) return std::nullopt;
    return error_reply(RequestError(401, "the API key is missing or wrong"));
}

void Server::add_routes() {
    const auto add = [this](const char* method, const std::string& path, HttpHandler handler) {
        http_.route(method, path, [handler = std::move(handler)](const HttpRequest& request) {
            const auto start = std::chrono::steady_clock::now();
            HttpReply reply = guarded(handler, request);
            const std::chrono::duration<double, std::milli> time = std::chrono::steady_clock::now() - start;
            log::info("{} {} {} {} {:.0f} ms{}", request.id, request.method, request.path, reply.status, time.count(),
                      reply.stream ? " to the headers" : "");
            return reply;
        });
    };
    for (const char* base : {"/v1", "", "/beta/v1", "/beta"}) {
        add("POST", std::string(base) + "/chat/completions", [this](const HttpRequest& r) { return chat(r); });
        add("POST", std::string(base) + "/completions", [this](const HttpRequest& r) { return completion(r); });
    }
    for (const char* base : {"/v1", ""}) {
        add("GET", std::string(base) + "/models",
            [this](const HttpRequest&) { return json_reply(model_list(backend().model)); });
        add("GET", std::string(base) + "/models/*", [this, skip = std::string(base).size() + 8](const HttpRequest& r) {
            const std::string id = r.path.substr(skip);
            const Json entry = model_entry(backend().model, id);
            if (entry.is_null())
                throw RequestError(404, "The model `" + printable(id, 200) + "` does not exist.", "model");
            return json_reply(entry);
        });
    }
}

void Server::add_small_routes() {
    const auto post = [this](const char* path, auto function) {
        http_.route("POST", path, [this, function](const HttpRequest& request) {
            return guarded([&](const HttpRequest& r) { return json_reply(function(parse_body(r.body), backend())); },
                           request);
        });
    };
    const auto get = [this](const char* path, auto function) {
        http_.route("GET", path, [function](const HttpRequest& request) {
            return guarded([&](const HttpRequest&) { return function(); }, request);
        });
    };
    for (const char* path : {"/health", "/v1/health", "/ping"}) get(path, [this] { return health(); });
    get("/version", [this] { return json_reply({{"version", options_.version}}); });
    get("/load", [this] { return json_reply({{"server_load", running_.load()}}); });
    get("/props", [this] { return json_reply(server_facts(backend().model, options_.version)); });
    get("/tokenizer_info", [this] { return json_reply(tokenizer_facts(backend().model, *backend().tokenizer)); });
    post("/tokenize", [](const Json& body, const Backend& b) { return tokenize_reply(body, b.model, *b.tokenizer); });
    post("/detokenize", [](const Json& body, const Backend& b) { return detokenize_reply(body, *b.tokenizer); });
    post("/apply-template", [](const Json& body, const Backend& b) { return template_reply(body, b.model); });
}

HttpReply Server::health() const {
    backend();  // 503 while loading and draining
    return json_reply({{"status", "ok"}});
}

HttpReply Server::chat(const HttpRequest& request) {
    const Backend& served = backend();
    auto job = std::make_shared<ChatJob>(running_);
    job->request = chat_call(parse_body(request.body), served.model);
    const ChatCall& call = job->request;
    const text::Prompt prompt = text::render_deepseek_v4(call.chat.messages, call.chat.options);
    job->starts_in_reasoning = prompt.starts_in_reasoning;
    job->prompt = truncated(served.tokenizer->encode(prompt.text), call, served.model.max_model_len);
    job->head = {text::make_call_id("chatcmpl-"), std::time(nullptr), &served.model, served.tokenizer};
    job->tally.emplace(static_cast<int64_t>(job->prompt.size()), call.choices);

    text::ParserOptions parser;
    parser.revision = served.model.revision;
    parser.starts_in_reasoning = prompt.starts_in_reasoning;
    parser.tools = call.chat.options.tools;
    parser.parse_tool_calls = call.chat.options.tool_choice.kind != text::ToolChoice::Kind::kNone;
    parser.parallel_tool_calls = call.chat.options.parallel_tool_calls;
    parser.stop = call.stop;
    parser.include_stop = call.include_stop;
    std::vector<ChoicePlan> plans;
    for (int32_t i = 0; i < call.choices; ++i) {
        ChoicePlan plan{call.request, [parser, skip = call.skip_special_tokens, tokenizer = served.tokenizer] {
                            return std::make_unique<engine::ChatOutput>(*tokenizer, parser, skip);
                        }};
        plan.request.prompt = job->prompt;
        plan.request.sampling.seed += static_cast<uint64_t>(i);
        plans.push_back(std::move(plan));
        job->views.emplace_back(call, prompt.starts_in_reasoning);
    }
    job->choices.resize(plans.size());
    job->generation = std::make_unique<Generation>(*served.engine, std::move(plans), call.return_progress);
    return run(request, std::move(job));
}

HttpReply Server::completion(const HttpRequest& request) {
    const Backend& served = backend();
    const text::Tokenizer& tokenizer = *served.tokenizer;
    auto job = std::make_shared<CompletionJob>(running_);
    job->request = completion_call(parse_body(request.body), served.model);
    const CompletionCall& call = job->request;
    std::vector<ChoicePlan> plans;
    int64_t prompt_tokens = 0;
    for (const PromptInput& input : call.prompts) {
        const std::string* text = std::get_if<std::string>(&input);
        std::vector<int32_t> ids = text != nullptr ? tokenizer.encode(*text) : std::get<std::vector<int32_t>>(input);
        const bool wants_bos = text != nullptr && call.add_special_tokens && tokenizer.add_bos() && tokenizer.bos_id();
        if (wants_bos && ids.front() != *tokenizer.bos_id()) ids.insert(ids.begin(), *tokenizer.bos_id());
        ids = truncated(std::move(ids), call, served.model.max_model_len);
        prompt_tokens += static_cast<int64_t>(ids.size());
        for (int32_t i = 0; i < call.choices; ++i) {
            ChoicePlan plan{call.request, [&call, &tokenizer] {
                                return std::make_unique<engine::PlainOutput>(tokenizer, call.stop, call.include_stop,
                                                                             call.skip_special_tokens,
                                                                             call.request.min_tokens);
                            }};
            plan.request.prompt = ids;
            plan.request.sampling.seed += static_cast<uint64_t>(i);
            plans.push_back(std::move(plan));
        }
        if (call.echo) job->echoes.push_back(text != nullptr ? *text : tokenizer.decode(ids));
        job->prompts.push_back(std::move(ids));
    }
    job->head = {text::make_call_id("cmpl-"), std::time(nullptr), &served.model, served.tokenizer};
    job->tally.emplace(prompt_tokens, call.choices);
    job->choices.resize(plans.size());
    job->generation = std::make_unique<Generation>(*served.engine, std::move(plans), call.return_progress);
    return run(request, std::move(job));
}

/// Ends a request when the server stops waiting for it.
void Server::check_running() const {
    if (aborting_) throw RequestError(503, "the server is shutting down");
}

HttpReply Server::run(const HttpRequest& request, std::shared_ptr<Job> job) {
    job->request_id = request.id;
    if (job->call().stream) return stream(request, std::move(job));
    auto looked = std::chrono::steady_clock::now();
    while (!job->generation->done()) {
        std::optional<Delta> delta = job->generation->next(kPoll);
        if (delta) job->add(std::move(*delta));
        check_running();
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
    log::info("{} {}", request.id, job->tally->summary());
    return json_reply(job->reply());
}

HttpReply Server::stream(const HttpRequest& request, std::shared_ptr<Job> job) {
    const auto deadline = std::chrono::steady_clock::now() + kSilentStart;
    while (!job->first && std::chrono::steady_clock::now() < deadline && !request.client_gone()) {
        job->first = job->generation->next(kPoll);
        check_running();
    }
    HttpReply reply;
    reply.content_type = "text/event-stream; charset=utf-8";
    reply.stream = [this, job = std::move(job)](StreamWriter& writer) { pump(*job, writer); };
    return reply;
}

/// Writes a stream until it ends, breaks, or the client is gone; leaving cancels what still runs.
void Server::pump(Job& job, StreamWriter& writer) const {
    const int64_t ping_seconds = job.call().ping_seconds.value_or(options_.ping_seconds);
    const auto events = job.new_stream();
    auto last_sent = std::chrono::steady_clock::now();
    std::optional<Delta> delta = std::move(job.first);
    try {
        while (true) {
            const auto now = std::chrono::steady_clock::now();
            std::string text;
            if (delta) text = events->on(std::move(*delta));
            if (!delta && !writer.alive()) return;
            if (!delta && ping_seconds > 0 && now - last_sent >= std::chrono::seconds(ping_seconds))
                text = ": ping\n\n";
            if (!text.empty()) {
                if (!writer.write(text)) return;
                last_sent = now;
            }
            if (job.generation->done()) break;
            check_running();
            delta = job.generation->next(kPoll);
        }
        writer.write(events->end());
        log::info("{} {}", job.request_id, events->tally().summary());
    } catch (const RequestError& error) {
        writer.write(sse_error(error));
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

void StopSignal::wait() {
    char byte;
    while (read(signal_pipe[0], &byte, 1) < 0 && errno == EINTR) {
    }
}

}  // namespace thermocline::server
