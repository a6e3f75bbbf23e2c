// A server on loopback with a model that is a table, and clients for it.
#pragma once

#include "src/server/server.h"
#include "tests/engine/fake_model.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <httplib.h>
#include <memory>
#include <netinet/in.h>
#include <string>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>
#include <utility>
#include <vector>

namespace thermocline::server {

using namespace thermocline::testing;

/// A plain socket: for what no HTTP client would send.
class RawClient {
public:
    explicit RawClient(int port) : fd_(socket(AF_INET, SOCK_STREAM, 0)) {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(static_cast<uint16_t>(port));
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        EXPECT_EQ(connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof address), 0);
        timeval limit{10, 0};
        setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    }
    ~RawClient() { close(fd_); }
    void send(const std::string& bytes) { ::send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL); }
    /// Reads until `mark` came or the connection ends.
    std::string read_until(const std::string& mark) {
        std::string seen;
        char buffer[4096];
        while (seen.find(mark) == std::string::npos) {
            const ssize_t got = recv(fd_, buffer, sizeof buffer, 0);
            if (got <= 0) break;
            seen.append(buffer, static_cast<size_t>(got));
        }
        return seen;
    }

private:
    int fd_;
};

class ServerTest : public ::testing::Test {
protected:
    ServerTest() {
        script->limits.max_tokens = 200;
        options.drain_seconds = 1;
        start({});
    }
    ~ServerTest() override { stop(); }

    void start(std::vector<std::string> keys, int64_t max_queue = 256) {
        tokenizer = std::make_unique<text::Tokenizer>(fake_tokenizer());
        engine = std::make_unique<engine::Engine>(new_model(), engine::EngineLimits{max_queue, {kEos}},
                                                  cpu::select_kernels("auto"));
        options.http.port = 0;
        options.http.max_body = 100000;
        options.api_keys = std::move(keys);
        options.version = "test";
        server = std::make_unique<Server>(options);
        port = server->bind();
        listener = std::thread([this] { server->listen(); });
        wait_until_open();
    }
    virtual std::unique_ptr<engine::Forward> new_model() { return std::make_unique<FakeForward>(script); }
    void wait_until_open() {
        httplib::Client client("127.0.0.1", port);
        while (!client.Get("/health")) std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
    void serve() {
        model.name = model.root = "tiny";
        model.max_model_len = engine->max_model_len();
        model.vocab = engine->vocab();
        model.fingerprint = "btest";
        server->serve({engine.get(), tokenizer.get(), model, nullptr, experts, admin, nullptr, 20.0});
    }
    void stop() {
        if (!server) return;
        server->shut_down();
        listener.join();
        server.reset();
        engine.reset();
    }
    httplib::Result post(const std::string& path, const std::string& body) const {
        httplib::Client client("127.0.0.1", port);
        client.set_read_timeout(20);
        return client.Post(path, body, "application/json");
    }
    Json post_json(const std::string& path, const std::string& body, int status = 200) const {
        const auto result = post(path, body);
        if (!result) {
            ADD_FAILURE() << "no answer to " << body;
            return Json::object();
        }
        EXPECT_EQ(result->status, status) << result->body;
        return parse_json(result->body, "reply");
    }
    Json get_json(const std::string& path, int status = 200) const {
        const auto result = httplib::Client("127.0.0.1", port).Get(path);
        EXPECT_EQ(result->status, status) << result->body;
        return parse_json(result->body, "reply");
    }
    /// The events of a streamed answer; the last one must be [DONE].
    std::vector<Json> post_stream(const std::string& path, const std::string& body) const {
        const auto result = post(path, body);
        EXPECT_EQ(result->get_header_value("Content-Type"), "text/event-stream; charset=utf-8") << result->body;
        std::vector<Json> events;
        size_t at = 0;
        for (size_t end; (end = result->body.find("\n\n", at)) != std::string::npos; at = end + 2) {
            const std::string line = result->body.substr(at, end - at);
            if (line.starts_with("data: {")) events.push_back(parse_json(line.substr(6), "event"));
        }
        EXPECT_TRUE(result->body.ends_with("data: [DONE]\n\n")) << result->body;
        return events;
    }
    /// The named events of a streamed answer: their data.
    std::vector<Json> post_named_stream(const std::string& path, const std::string& body) const {
        const auto result = post(path, body);
        EXPECT_EQ(result->get_header_value("Content-Type"), "text/event-stream; charset=utf-8") << result->body;
        std::vector<Json> events;
        size_t at = 0;
        for (size_t end; (end = result->body.find("\n\n", at)) != std::string::npos; at = end + 2) {
            const std::string text = result->body.substr(at, end - at);
            const size_t data = text.find("\ndata: ");
            EXPECT_NE(data, std::string::npos) << text;
            events.push_back(parse_json(text.substr(data + 7), "event"));
            EXPECT_EQ(text.substr(0, data), "event: " + events.back()["type"].get<std::string>());
        }
        EXPECT_EQ(at, result->body.size()) << "all of it is events";
        return events;
    }
    static std::string chat_body(const std::string& more) {
        return R"({"messages": [{"role": "user", "content": "hello"}], "temperature": 0)" + more + "}";
    }
    static std::string completion_body(const std::string& prompt, const std::string& more) {
        return R"({"prompt": ")" + prompt + R"(", "temperature": 0)" + more + "}";
    }
    void wait_until_idle() const {
        for (int i = 0; i < 200 && engine->load().running + engine->load().waiting > 0; ++i)
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
        EXPECT_EQ(engine->load().running, 0);
    }

    ServerOptions options;  // for start()
    ServedModel model;      // for serve()
    std::shared_ptr<FakeForward::Script> script = std::make_shared<FakeForward::Script>();
    std::unique_ptr<text::Tokenizer> tokenizer;
    std::unique_ptr<engine::Engine> engine;
    std::function<engine::ExpertUse()> experts;  // for serve()
    engine::ExpertAdmin* admin = nullptr;
    std::unique_ptr<Server> server;
    std::thread listener;
    int port = 0;
};

}  // namespace thermocline::server
