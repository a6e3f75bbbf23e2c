// The API server: routes to parsers, engine and replies, errors to bodies, keys, start-up, drain. The port can be open
// before the model is there: everything answers 503 until serve() is called. Handlers run on HTTP threads and share
// nothing but the engine's queue and a few atomics.
#pragma once

#include "src/engine/engine.h"
#include "src/server/http.h"
#include "src/server/openai.h"
#include "src/text/tokenizer.h"

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace thermocline::server {

struct ServerOptions {
    HttpOptions http;
    std::vector<std::string> api_keys;  // any of them opens the API; none: open to all
    int64_t ping_seconds = 15;          // comment in a silent stream; -1: never
    int64_t drain_seconds = 30;         // running requests may go on that long after shut_down()
    std::string version;
};

/// What is served. The engine and the tokenizer outlive the server.
struct Backend {
    engine::Engine* engine;
    const text::Tokenizer* tokenizer;
    ServedModel model;
};

class Server {
public:
    explicit Server(ServerOptions options);

    /// Opens the port; throws Error if it cannot. Returns the port.
    int bind() { return http_.bind(); }
    /// Answers requests until shut_down(). Blocks.
    void listen() { http_.listen(); }
    /// From here on requests reach the model. Once.
    void serve(Backend backend);
    /// Refuses new requests, waits for running ones, breaks off what takes too long, ends listen(). Once.
    void shut_down();

private:
    /// Counts a request as running while it lives.
    class Running {
    public:
        explicit Running(std::atomic<int64_t>& count) : count_(count) { ++count_; }
        ~Running() { --count_; }
        Running(const Running&) = delete;
        Running& operator=(const Running&) = delete;

    private:
        std::atomic<int64_t>& count_;
    };
    struct Job;
    struct ChatJob;
    struct CompletionJob;

    void add_routes();
    void add_small_routes();
    std::optional<HttpReply> check_access(const HttpRequest& request) const;
    const Backend& backend() const;
    HttpReply health() const;
    HttpReply chat(const HttpRequest& request);
    HttpReply completion(const HttpRequest& request);
    HttpReply run(const HttpRequest& request, std::shared_ptr<Job> job);
    HttpReply stream(const HttpRequest& request, std::shared_ptr<Job> job);
    void pump(Job& job, StreamWriter& writer) const;
    void check_running() const;

    const ServerOptions options_;
    HttpServer http_;
    Backend backend_{};
    std::atomic<bool> ready_ = false;     // backend_ is set
    std::atomic<bool> draining_ = false;  // nothing new
    std::atomic<bool> aborting_ = false;  // nothing at all
    std::atomic<int64_t> running_ = 0;
};

/// Catches SIGINT and SIGTERM from construction on; a second signal ends the process at once. One per process.
class StopSignal {
public:
    StopSignal();
    /// Blocks until a signal came.
    void wait();
};

}  // namespace thermocline::server
