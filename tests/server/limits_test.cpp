// What the server refuses or limits: time, origins, keys, features it does not have.
#include "tests/server/server_fixture.h"

#include <future>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <thread>
#include <unistd.h>

namespace thermocline::server {
namespace {

TEST_F(ServerTest, RequestsThatTakeTooLongAreBrokenOff) {
    script->step_milliseconds = 20;
    stop();
    options.request_seconds = 1;
    start({});
    serve();
    const std::string body = completion_body("a", R"(, "max_tokens": 190, "ignore_eos": true)");
    const auto late = post("/v1/completions", body);
    EXPECT_EQ(late->status, 408);
    EXPECT_EQ(late->get_header_value("x-should-retry"), "false");
    wait_until_idle();
}

TEST_F(ServerTest, RequestsThatWaitTooLongAreRefused) {
    script->step_milliseconds = 20;
    stop();
    options.queue_seconds = 1;
    start({});
    serve();
    const std::string body = completion_body("a", R"(, "max_tokens": 150, "ignore_eos": true)");
    std::vector<std::future<int>> answers;
    for (int i = 0; i < 6; ++i)
        answers.push_back(std::async(std::launch::async, [&] { return post("/v1/completions", body)->status; }));
    int served = 0;
    for (auto& answer : answers) {
        const int status = answer.get();
        EXPECT_TRUE(status == 200 || status == 503) << status;
        served += status == 200;
    }
    EXPECT_GE(served, 1) << "what has begun is not touched";
}

TEST_F(ServerTest, NamedOriginsAreReflected) {
    stop();
    options.http.cors_origins = {"https://a.example", "https://b.example"};
    start({});
    serve();
    httplib::Client client("127.0.0.1", port);
    auto result = client.Get("/health", {{"Origin", "https://b.example"}});
    EXPECT_EQ(result->get_header_value("Access-Control-Allow-Origin"), "https://b.example");
    EXPECT_EQ(result->get_header_value("Vary"), "Origin");
    result = client.Get("/health", {{"Origin", "https://evil.example"}});
    EXPECT_FALSE(result->has_header("Access-Control-Allow-Origin"));
    const std::string asked = "authorization, x-stainless-os";
    result =
        client.Options("/v1/messages", {{"Origin", "https://b.example"}, {"Access-Control-Request-Headers", asked}});
    EXPECT_EQ(result->get_header_value("Access-Control-Allow-Credentials"), "true");
    EXPECT_EQ(result->get_header_value("Access-Control-Allow-Headers"), asked);
}

TEST_F(ServerTest, BodiesWithoutAKeyAreNotKept) {
    stop();
    start({"secret"});
    serve();
    httplib::Client client("127.0.0.1", port);
    client.set_keep_alive(true);
    for (const size_t size : {10, 150000}) {
        const auto result = client.Post("/v1/completions", std::string(size, 'a'), "application/json");
        ASSERT_TRUE(result) << size;
        EXPECT_EQ(result->status, 401) << "before its size is looked at";
        EXPECT_EQ(result->get_header_value("Connection"), "close");
        EXPECT_EQ(result->get_header_value("WWW-Authenticate"), "Bearer");
        EXPECT_EQ(result->get_header_value("Access-Control-Allow-Origin"), "*");
        EXPECT_EQ(parse_json(result->body, "")["error"]["code"], 401);
    }
}

/// They come before anybody accepts them.
TEST(HttpServer, ManyMayComeAtOnce) {
    HttpOptions http;
    http.port = 0;
    HttpServer server(http, [](const HttpRequest&, int, const std::string&) { return HttpReply(); });
    server.route("GET", "/", [](const HttpRequest&) { return HttpReply(); });
    const int port = server.bind();
    std::vector<int> visitors;
    const std::string request = "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    for (int i = 0; i < 100; ++i) {
        visitors.push_back(::socket(AF_INET, SOCK_STREAM, 0));
        const timeval patience{20, 0};
        ::setsockopt(visitors.back(), SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
        ::setsockopt(visitors.back(), SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(static_cast<uint16_t>(port));
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        ASSERT_EQ(::connect(visitors.back(), reinterpret_cast<sockaddr*>(&address), sizeof address), 0) << i;
        ASSERT_EQ(::send(visitors.back(), request.data(), request.size(), 0), std::ssize(request));
    }
    std::thread listener([&] { server.listen(); });
    for (const int visitor : visitors) {
        char reply[16] = {};
        EXPECT_EQ(::recv(visitor, reply, 12, MSG_WAITALL), 12);
        EXPECT_EQ(std::string(reply), "HTTP/1.1 200");
        ::close(visitor);
    }
    server.stop();
    listener.join();
}

TEST_F(ServerTest, AnyOfSeveralKeysOpensAndDeniedFeaturesSaySo) {
    stop();
    options.shows_slots = true;
    start({"first", "second"});
    serve();
    httplib::Client client("127.0.0.1", port);
    for (const char* key : {"first", "second"})
        EXPECT_EQ(client.Get("/slots", {{"Authorization", std::string("Bearer ") + key}})->status, 200);
    for (const char* key : {"", "firs", "firstx", "secondsecond"})
        EXPECT_EQ(client.Get("/slots", {{"Authorization", std::string("Bearer ") + key}})->status, 401) << key;
    const auto embeddings =
        client.Post("/v1/embeddings", {{"x-api-key", "first"}}, R"({"input": "x"})", "application/json");
    EXPECT_EQ(embeddings->status, 501);
    EXPECT_EQ(embeddings->get_header_value("x-should-retry"), "false");
    EXPECT_EQ(client.Get("/ready")->status, 200);
    stop();
    options.shows_slots = false;
    start({});
    EXPECT_EQ(get_json("/ready", 503)["error"]["type"], "unavailable_error");
    serve();
    EXPECT_EQ(get_json("/slots", 501)["error"]["type"], "not_supported_error");
}

}  // namespace
}  // namespace thermocline::server
