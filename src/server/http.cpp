#include "src/server/http.h"

#include "src/base/error.h"
#include "src/base/log.h"

#include <algorithm>
#include <charconv>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <deque>
#include <dirent.h>
#include <httplib.h>
#include <mutex>
#include <optional>
#include <random>
#include <set>
#include <sys/socket.h>
#include <system_error>
#include <thread>

namespace thermocline::server {
namespace {

constexpr size_t kMaxHeaderBytes = 64 << 10;

std::string random_id() {
    std::random_device device;
    char text[33];
    std::snprintf(text, sizeof text, "%08x%08x%08x%08x", device(), device(), device(), device());
    return text;
}

/// The socket of a connection, which httplib 0.11 does not tell: the one of this process with that peer. -1 if none.
int find_socket(const std::string& peer_address, int peer_port) {
    DIR* folder = opendir("/proc/self/fd");
    if (folder == nullptr) return -1;
    int found = -1;
    while (const dirent* entry = readdir(folder)) {
        const int fd = std::atoi(entry->d_name);
        sockaddr_storage peer{};
        socklen_t size = sizeof peer;
        char host[NI_MAXHOST], port[NI_MAXSERV];
        if (entry->d_name[0] == '.' || getpeername(fd, reinterpret_cast<sockaddr*>(&peer), &size) != 0) continue;
        if (getnameinfo(reinterpret_cast<sockaddr*>(&peer), size, host, sizeof host, port, sizeof port,
                        NI_NUMERICHOST | NI_NUMERICSERV) != 0)
            continue;
        if (peer_address == host && peer_port == std::atoi(port)) found = fd;
    }
    closedir(folder);
    return found;
}

bool peer_closed(int fd) {
    char byte;
    const ssize_t got = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    return got == 0 || (got < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR);
}

/// The client's id if it is short and printable (it goes into a header and the log), else a new one.
std::string request_id(const httplib::Request& request) {
    const std::string given = request.get_header_value("x-request-id");
    const bool is_usable = !given.empty() && given.size() <= 128 &&
                           std::all_of(given.begin(), given.end(), [](char c) { return c > 32 && c < 127; });
    return is_usable ? given : random_id();
}

class SinkWriter : public StreamWriter {
public:
    explicit SinkWriter(httplib::DataSink& sink) : sink_(sink) {}
    bool write(std::string_view bytes) override { return sink_.write(bytes.data(), bytes.size()); }
    bool alive() override { return sink_.is_writable(); }

private:
    httplib::DataSink& sink_;
};

/// Of a Content-Type, in lower case; "" if it names none.
std::string charset_of(std::string type) {
    std::transform(type.begin(), type.end(), type.begin(), [](unsigned char c) { return std::tolower(c); });
    const size_t found = type.find("charset=");
    if (found == std::string::npos) return "";
    type.erase(0, found + 8);
    type.erase(std::min(type.find_first_of("; "), type.size()));
    type.erase(std::remove(type.begin(), type.end(), '"'), type.end());
    return type;
}

size_t header_bytes(const httplib::Request& request) {
    size_t bytes = 0;
    for (const auto& [name, value] : request.headers) bytes += name.size() + value.size() + 4;
    return bytes;
}

/// Threads that are made when a connection finds none idle: a stream holds one, and so does a client that keeps its
/// connection; a health check must not wait for either.
class ConnectionThreads : public httplib::TaskQueue {
public:
    explicit ConnectionThreads(size_t most) : most_(most) {}

    void enqueue(std::function<void()> connection) override {
        const std::lock_guard lock(mutex_);
        waiting_.push_back(std::move(connection));
        if (waiting_.size() > idle_ && threads_.size() < most_) {
            try {
                threads_.emplace_back([this] { serve(); });
            } catch (const std::system_error& error) {
                if (threads_.empty()) throw;
                log::warn("no thread more than {} for connections: {}", threads_.size(), error.what());
            }
        }
        wake_.notify_one();
    }

    void shutdown() override {
        {
            const std::lock_guard lock(mutex_);
            ending_ = true;
        }
        wake_.notify_all();
        for (std::thread& thread : threads_) thread.join();
    }

private:
    void serve() {
        std::unique_lock lock(mutex_);
        while (true) {
            ++idle_;
            wake_.wait(lock, [this] { return !waiting_.empty() || ending_; });
            --idle_;
            if (waiting_.empty()) return;
            {
                const std::function<void()> connection = std::move(waiting_.front());
                waiting_.pop_front();
                lock.unlock();
                connection();
            }
            lock.lock();
        }
    }

    const size_t most_;
    std::mutex mutex_;  // guards what follows
    std::condition_variable wake_;
    std::deque<std::function<void()>> waiting_;
    std::vector<std::thread> threads_;
    size_t idle_ = 0;
    bool ending_ = false;
};

/// httplib lets 5 connections wait to be accepted. When more come within one turn of its loop, the kernel falls back to
/// cookies, and some clients hear nothing but a reset.
class ListeningServer : public httplib::Server {
public:
    bool wait_for_many() { return ::listen(svr_sock_, SOMAXCONN) == 0; }
};

std::string without_trailing_slash(std::string path) {
    while (path.size() > 1 && path.back() == '/') path.pop_back();
    return path;
}

}  // namespace

struct HttpServer::State {
    struct Route {
        std::string method, path;
        HttpHandler handler;
    };

    HttpOptions options;
    Refusal refusal;
    HttpGate gate;
    std::vector<Route> routes;
    ListeningServer server;
    std::mutex mutex;  // guards what follows
    bool listening = false, stopping = false;

    const Route* find(const std::string& method, const std::string& path) const {
        for (const Route& route : routes) {
            if (route.method != method) continue;
            const bool is_tree = route.path.ends_with("/*");
            const auto stem = std::string_view(route.path).substr(0, route.path.size() - (is_tree ? 1 : 0));
            if (is_tree ? path.starts_with(stem) && path.size() > stem.size() : path == stem) return &route;
        }
        return nullptr;
    }

    HttpReply no_route(const HttpRequest& request) const {
        const std::string &method = request.method, &path = request.path;
        std::set<std::string> allowed;
        for (const Route& route : routes)
            if (find(route.method, path) != nullptr) allowed.insert(route.method);
        const bool is_doubled = path.starts_with("/v1/v1/");
        if (allowed.empty()) {
            return refusal(request, 404,
                           printable(method + " " + path, 200) + " does not exist" +
                               (is_doubled ? "; the base URL of the client seems to end in /v1 twice" : ""));
        }
        HttpReply reply = refusal(request, 405, printable(method, 20) + " is not allowed for " + printable(path, 200));
        std::string list;
        for (const std::string& name : allowed) list += (list.empty() ? "" : ", ") + name;
        reply.headers.emplace_back("Allow", list);
        return reply;
    }

    /// Reads the body, and keeps it if `keeps`; a status and reason if it is refused. Form bodies arrive raw here:
    /// curl -d sends JSON as a form.
    std::optional<HttpReply> read_body(const httplib::Request& request, const httplib::ContentReader& reader,
                                       HttpRequest& out, bool keeps) const {
        const std::string length = request.get_header_value("Content-Length");
        const bool is_chunked = request.has_header("Transfer-Encoding");
        HttpReply refused;
        if (length.empty() && !is_chunked) {
            refused = refusal(out, 411, "the request has neither Content-Length nor a chunked body");
        } else if (!is_chunked &&
                   !std::all_of(length.begin(), length.end(), [](char c) { return c >= '0' && c <= '9'; })) {
            refused = refusal(out, 400, "Content-Length is not a number");
        } else if (const std::string charset = charset_of(request.get_header_value("Content-Type"));
                   !charset.empty() && charset != "utf-8" && charset != "utf8" && charset != "us-ascii") {
            refused = refusal(out, 415, "the charset of the body is " + printable(charset, 40) + ", expected utf-8");
        } else if (request.is_multipart_form_data()) {
            refused = refusal(out, 400, "multipart bodies are not supported, expected JSON");
        } else {
            size_t seen = 0;
            const bool complete = reader([&](const char* data, size_t size) {
                seen += size;
                if (keeps && seen <= options.max_body) out.body.append(data, size);
                // A body that is a little too long is read to its end, so that the client sees the answer.
                return seen <= 2 * options.max_body;
            });
            if (complete && seen <= options.max_body) return std::nullopt;
            refused = seen > options.max_body
                          ? refusal(out, 413,
                                    "the request body is larger than " + std::to_string(options.max_body) + " bytes")
                          : refusal(out, 400, "the request body is incomplete");
        }
        refused.close = true;
        return refused;
    }

    void answer(const httplib::Request& request, httplib::Response& response, const httplib::ContentReader* reader);
    void send(const HttpRequest& request, HttpReply reply, httplib::Response& response) const;
    void allow_origin(const httplib::Request& request, httplib::Response& response) const;
    void set_up();
};

/// The whole way of one request; never throws.
void HttpServer::State::answer(const httplib::Request& request, httplib::Response& response,
                               const httplib::ContentReader* reader) {
    HttpRequest out;
    out.method = request.method;
    out.path = without_trailing_slash(request.path);
    out.id = request_id(request);
    out.header = [&request](const std::string& name) { return request.get_header_value(name.c_str()); };
    const int fd = find_socket(request.remote_addr, request.remote_port);
    out.client_gone = [fd] { return fd >= 0 && peer_closed(fd); };
    HttpReply reply;
    try {
        const Route* route = find(out.method == "HEAD" ? "GET" : out.method, out.path);
        std::optional<HttpReply> refused;
        if (header_bytes(request) > kMaxHeaderBytes) {
            refused = refusal(out, 431, "the headers are larger than " + std::to_string(kMaxHeaderBytes) + " bytes");
            refused->close = true;
        } else {
            if (gate) refused = gate(out);
            if (refused && reader != nullptr) {
                // Clients look for the answer when they have sent the body: it is thrown away as it comes.
                read_body(request, *reader, out, false);
                refused->close = true;
            } else if (reader != nullptr) {
                refused = read_body(request, *reader, out, true);
            }
        }
        if (refused) {
            reply = std::move(*refused);
        } else {
            reply = route != nullptr ? route->handler(out) : no_route(out);
        }
    } catch (const std::exception& error) {
        log::error("[{}] {} {} failed: {}", out.id, out.method, printable(out.path), error.what());
        reply = refusal(out, 500, "internal error");
    }
    // Without a reader the body, if there is one, was not read: what follows on the connection would be taken for
    // requests.
    if (reader == nullptr && out.method != "GET" && out.method != "HEAD") reply.close = true;
    send(out, std::move(reply), response);
}

void HttpServer::State::send(const HttpRequest& request, HttpReply reply, httplib::Response& response) const {
    response.status = reply.status;
    response.set_header("x-request-id", request.id);
    for (const auto& [name, value] : reply.headers) response.set_header(name.c_str(), value.c_str());
    if (reply.close) response.set_header("Connection", "close");
    if (reply.stream) {
        response.set_header("Cache-Control", "no-cache");
        response.set_header("X-Accel-Buffering", "no");
        response.set_chunked_content_provider(
            reply.content_type.c_str(),
            [stream = std::move(reply.stream), id = request.id](size_t, httplib::DataSink& sink) {
                SinkWriter writer(sink);
                try {
                    stream(writer);
                } catch (const std::exception& error) {
                    log::error("[{}] the stream failed: {}", id, error.what());
                }
                sink.done();
                return true;
            });
    } else if (reply.close && !reply.body.empty()) {
        // A provider that ends with false makes httplib 0.11 close the connection: the body was not read to its end.
        const size_t size = reply.body.size();
        response.set_content_provider(
            size, reply.content_type.c_str(),
            [body = std::move(reply.body)](size_t offset, size_t length, httplib::DataSink& sink) {
                sink.write(body.data() + offset, length);
                return false;
            });
    } else {
        response.set_content(reply.body, reply.content_type.c_str());
    }
}

void HttpServer::State::allow_origin(const httplib::Request& request, httplib::Response& response) const {
    const auto has = [this](const std::string& origin) {
        return std::find(options.cors_origins.begin(), options.cors_origins.end(), origin) !=
               options.cors_origins.end();
    };
    const std::string origin = request.get_header_value("Origin");
    if (has("*")) {
        response.set_header("Access-Control-Allow-Origin", "*");
    } else if (!origin.empty() && has(origin)) {
        response.set_header("Access-Control-Allow-Origin", origin);
        response.set_header("Access-Control-Allow-Credentials", "true");
    }
    if (!options.cors_origins.empty() && !has("*")) response.set_header("Vary", "Origin");
    response.set_header("Access-Control-Expose-Headers", "x-request-id");
}

void HttpServer::State::set_up() {
    server.set_tcp_nodelay(true);
    server.set_read_timeout(60);
    server.set_write_timeout(600);
    server.set_keep_alive_timeout(75);
    server.set_keep_alive_max_count(10000);
    server.new_task_queue = [this] { return new ConnectionThreads(static_cast<size_t>(options.connections)); };
    server.set_pre_routing_handler([this](const httplib::Request& request, httplib::Response& response) {
        // Ranges make no sense here, and httplib would cut a JSON body by them; it would also compress event streams
        // ("text/event-stream; charset=..." is not the name it looks for). The object itself is not const.
        auto& changed = const_cast<httplib::Request&>(request);
        changed.ranges.clear();
        changed.headers.erase("Accept-Encoding");
        response.set_header("Server", options.server_name);
        allow_origin(request, response);
        if (request.method == "OPTIONS") {
            response.status = 200;
            response.set_header("Access-Control-Allow-Methods", "GET, POST, DELETE, OPTIONS");
            // Browsers do not count Authorization among "*", and take "*" for a name where credentials are sent.
            const std::string asked = request.get_header_value("Access-Control-Request-Headers");
            response.set_header("Access-Control-Allow-Headers", asked.empty() ? "*, Authorization" : asked);
            response.set_header("Access-Control-Max-Age", "86400");
            return httplib::Server::HandlerResponse::Handled;
        }
        if (request.method == "POST" && find("POST", without_trailing_slash(request.path)) != nullptr)
            return httplib::Server::HandlerResponse::Unhandled;
        answer(request, response, nullptr);
        return httplib::Server::HandlerResponse::Handled;
    });
    server.set_post_routing_handler([](const httplib::Request&, httplib::Response& response) {
        if (response.get_header_value("Connection") == "close") response.headers.erase("Keep-Alive");
    });
    server.set_error_handler([this](const httplib::Request&, httplib::Response& response) {
        // Only what httplib refused by itself has no body yet: a broken request line, headers over the limit.
        if (response.body.empty() && !response.content_provider_)
            response.set_content(refusal({}, response.status, "the HTTP request is malformed").body,
                                 "application/json");
    });
}

HttpServer::HttpServer(HttpOptions options, Refusal refusal) : state_(std::make_unique<State>()) {
    state_->options = std::move(options);
    state_->refusal = std::move(refusal);
    state_->set_up();
}

HttpServer::~HttpServer() { stop(); }

void HttpServer::route(const std::string& method, const std::string& path, HttpHandler handler) {
    state_->routes.push_back({method, path, std::move(handler)});
}

void HttpServer::gate(HttpGate gate) { state_->gate = std::move(gate); }

int HttpServer::bind() {
    HttpOptions& options = state_->options;
    // Routes that take a body are matched by httplib with a regular expression; ours are plain text and short.
    for (const State::Route& route : state_->routes) {
        if (route.method != "POST") continue;
        std::string pattern;
        for (const char c : route.path)
            pattern += (std::isalnum(static_cast<unsigned char>(c)) || c == '/' || c == '_') ? std::string(1, c)
                                                                                             : std::string("\\") + c;
        state_->server.Post(pattern + "/*", [this](const httplib::Request& request, httplib::Response& response,
                                                   const httplib::ContentReader& reader) {
            state_->answer(request, response, &reader);
        });
    }
    bool bound;
    if (options.port == 0) {
        options.port = state_->server.bind_to_any_port(options.host);
        bound = options.port > 0;
    } else {
        bound = state_->server.bind_to_port(options.host, options.port);
    }
    if (!bound || !state_->server.wait_for_many())
        fail("cannot listen on ", options.host, " port ", options.port, ": ", std::strerror(errno));
    return options.port;
}

void HttpServer::listen() {
    {
        const std::lock_guard lock(state_->mutex);
        if (state_->stopping) return;
        state_->listening = true;
    }
    const bool ended_well = state_->server.listen_after_bind();
    const std::lock_guard lock(state_->mutex);
    state_->listening = false;
    if (!ended_well && !state_->stopping) fail("accepting connections failed: ", std::strerror(errno));
}

void HttpServer::stop() {
    bool listening;
    {
        const std::lock_guard lock(state_->mutex);
        if (std::exchange(state_->stopping, true)) return;
        listening = state_->listening;
    }
    // httplib ignores a stop that comes before its loop runs.
    while (listening && !state_->server.is_running()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    if (listening) state_->server.stop();
}

}  // namespace thermocline::server
