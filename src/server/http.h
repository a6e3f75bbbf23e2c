// HTTP/1.1 over cpp-httplib (0.11.4, the only file that includes it is http.cpp): bytes to HttpRequest, HttpReply to
// bytes, limits, time-outs, CORS, request ids. Knows no route by itself. Handlers run on the library's threads, one
// thread a connection; listen() blocks its caller, stop() may be called from anywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace thermocline::server {

struct HttpRequest {
    std::string method;
    std::string path;  // decoded, without query and trailing slash
    std::string body;
    std::string id;  // x-request-id: the client's or ours
    /// Value of a header, "" if it is not there.
    std::function<std::string(const std::string& name)> header;
    /// The client closed the connection.
    std::function<bool()> client_gone;
};

/// Writes a streamed body. Used by the thread that runs the reply's stream function.
class StreamWriter {
public:
    virtual ~StreamWriter() = default;
    /// False when the client is gone.
    virtual bool write(std::string_view bytes) = 0;
    virtual bool alive() = 0;
};

struct HttpReply {
    int status = 200;
    std::string content_type = "application/json; charset=utf-8";
    std::string body;
    std::vector<std::pair<std::string, std::string>> headers;
    /// If set, writes the body in pieces; headers are out before it is called.
    std::function<void(StreamWriter&)> stream;
    bool close = false;  // the connection, after this reply
    std::string note;    // for the log
};

struct HttpOptions {
    std::string host = "127.0.0.1";
    int port = 8000;  // 0: any free one
    size_t max_body = size_t{128} << 20;
    int connections = 1024;  // served at the same time, each on a thread of its own; more wait
    /// Origins whose pages may call: "*" for all; named ones are reflected, with credentials; none for none.
    std::vector<std::string> cors_origins = {"*"};
    std::string server_name = "thermocline";
};

/// Makes the reply to what the HTTP layer refuses by itself (404, 405, 411, 413, ...). Of a request that could not be
/// read, path and id are empty.
using Refusal = std::function<HttpReply(const HttpRequest& request, int status, const std::string& message)>;
using HttpHandler = std::function<HttpReply(const HttpRequest&)>;
/// Looks at every request but preflights, before its body is read; a reply is the answer then.
using HttpGate = std::function<std::optional<HttpReply>(const HttpRequest&)>;

class HttpServer {
public:
    HttpServer(HttpOptions options, Refusal refusal);
    ~HttpServer();
    HttpServer(const HttpServer&) = delete;
    HttpServer& operator=(const HttpServer&) = delete;

    /// `path`: exact, or ending in "/*" for everything below. Call before bind().
    void route(const std::string& method, const std::string& path, HttpHandler handler);
    void gate(HttpGate gate);

    /// Opens the port; throws Error if it cannot. Returns the port.
    int bind();
    /// Serves until stop().
    void listen();
    void stop();

private:
    struct State;
    std::unique_ptr<State> state_;
};

}  // namespace thermocline::server
