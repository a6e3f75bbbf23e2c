// The API server: routes to parsers, engine and replies, errors to bodies, keys, start-up, drain. The port can be open
// before the model is there: everything answers 503 until serve() is called. Handlers run on HTTP threads and share
// nothing but the engine's queue and a few atomics.
#pragma once

#include "src/server/errors.h"
#include "src/server/http.h"
#include "src/server/job.h"
#include "src/server/metrics.h"

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
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
    int64_t queue_seconds = 0;          // a request that has not begun by then is refused; 0: no limit
    int64_t request_seconds = 0;        // a request that has not ended by then is broken off; 0: no limit
    bool shows_slots = true;            // GET /slots
    bool opens_models = false;          // GET /v1/models needs no key
    bool guards_metrics = false;        // GET /metrics needs one
    bool has_llama_metrics = false;     // there also by the names of llama-server
    int64_t replay_bytes = 0;           // of answers as the model wrote them; 0: none are kept
    bool isolates_keys = false;         // requests with different API keys share nothing in the caches
    std::string version;
};

/// Tells the API keys of requests apart without showing them.
std::string salt_of_key(const HttpRequest& request);

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
    /// What run() knows of a request besides its job.
    struct Live {
        Live(std::shared_ptr<Job> its_job, const HttpRequest& request, Metrics& metrics, std::atomic<int64_t>& running)
            : job(std::move(its_job)),
              request_id(request.id),
              path(request.path),
              start(std::chrono::steady_clock::now()),
              trace(metrics, job->call()),
              counted(running) {}
        std::shared_ptr<Job> job;
        std::string request_id, path;
        std::chrono::steady_clock::time_point start;
        bool has_begun = false;    // the engine works on it, or did
        std::vector<Delta> early;  // of a stream: taken before its headers went out
        RequestTrace trace;
        Running counted;
    };

    using BodyFunction = std::function<Json(const Json& body, const Backend& served)>;
    /// A route whose errors become bodies of its dialect, and that is logged.
    void add(const std::string& method, const std::string& path, HttpHandler handler);
    void add_post(const std::string& path, BodyFunction function);
    void add_openai_routes();
    void add_anthropic_routes();
    void add_small_routes();
    void add_page();
    void add_metrics();
    void add_pass_metrics();
    void add_llama_metrics();
    void add_expert_metrics();
    Json stats() const;
    double cache_usage() const;
    bool is_open(const std::string& path) const;
    std::optional<HttpReply> check_access(const HttpRequest& request) const;
    HttpReply guarded(const HttpHandler& handler, const HttpRequest& request) const;
    /// The call by the name of its request, and with its own part of the caches if keys are kept apart.
    template <typename AnyCall>
    AnyCall asked_by(const HttpRequest& request, AnyCall call) const {
        call.request.id = request.id;
        if (options_.isolates_keys) call.request.cache_salt = salt_of_key(request) + call.request.cache_salt;
        return call;
    }
    const Backend& backend() const;
    HttpReply health() const;
    HttpReply run(const HttpRequest& request, std::shared_ptr<Job> job);
    HttpReply stream(const HttpRequest& request, std::shared_ptr<Live> live);
    void pump(Live& live, StreamWriter& writer) const;
    /// The next delta; RequestError when the server stops waiting for one.
    std::optional<Delta> next(Live& live) const;

    const ServerOptions options_;
    Metrics metrics_;  // outlives the requests that http_ may still hold
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
    /// Blocks until a signal came; false if none did within that time.
    bool wait(std::chrono::milliseconds time);
};

}  // namespace thermocline::server
