// The server on loopback, with a model that is a table: routes, errors, streams, cancellation, shutdown.
#include "tests/server/server_fixture.h"

#include <future>

namespace thermocline::server {
namespace {

const std::string kThinkingOff = R"(, "thinking": {"type": "disabled"})";

TEST_F(ServerTest, LoadingIsSaidUntilTheModelIsThere) {
    EXPECT_EQ(get_json("/health", 503)["error"]["message"], "Loading model");
    EXPECT_EQ(post_json("/v1/chat/completions", chat_body(""), 503)["error"]["type"], "unavailable_error");
    serve();
    EXPECT_EQ(get_json("/health")["status"], "ok");
    EXPECT_EQ(get_json("/v1/models")["data"][0]["id"], "tiny");
    EXPECT_EQ(get_json("/v1/models/tiny")["max_model_len"], 200);
    EXPECT_EQ(get_json("/v1/models/other", 404)["error"]["type"], "not_found_error");
    EXPECT_EQ(get_json("/version")["version"], "test");
    EXPECT_EQ(get_json("/props")["chat_encoding"], "v4");
    EXPECT_EQ(get_json("/props")["total_slots"], engine->max_sequences());
}

TEST_F(ServerTest, ChatSplitsReasoningAndContent) {
    serve();
    const Json reply = post_json("/v1/chat/completions", chat_body(R"(, "logprobs": true, "top_logprobs": 2)"));
    const Json choice = reply["choices"][0];
    EXPECT_EQ(choice["message"]["reasoning_content"], "hm");
    EXPECT_EQ(choice["message"]["content"], "abcdefgijklnopqrstuvwxyz");
    EXPECT_EQ(choice["message"]["role"], "assistant");
    EXPECT_EQ(choice["finish_reason"], "stop");
    EXPECT_EQ(reply["object"], "chat.completion");
    EXPECT_EQ(reply["id"].get<std::string>().substr(0, 9), "chatcmpl-");
    EXPECT_EQ(reply["usage"]["completion_tokens"], 28) << "h m </think> 24 letters EOS";
    EXPECT_EQ(reply["usage"]["completion_tokens_details"]["reasoning_tokens"], 3);
    EXPECT_EQ(choice["logprobs"]["content"].size(), 27u) << "all but EOS";
    EXPECT_EQ(choice["logprobs"]["content"][0]["top_logprobs"].size(), 2u);
    EXPECT_EQ(reply["system_fingerprint"], "btest");

    const Json quiet = post_json("/v1/chat/completions", chat_body(kThinkingOff + R"(, "max_tokens": 3)"));
    EXPECT_EQ(quiet["choices"][0]["message"]["content"], "abc");
    EXPECT_FALSE(quiet["choices"][0]["message"].contains("reasoning_content"));
    EXPECT_EQ(quiet["choices"][0]["finish_reason"], "length");
}

TEST_F(ServerTest, StreamEqualsNoStream) {
    serve();
    for (const std::string& more : {std::string(), kThinkingOff, kThinkingOff + R"(, "stop": ["ijk"])",
                                    std::string(R"(, "max_tokens": 1)"), std::string(R"(, "n": 3)")}) {
        const Json whole = post_json("/v1/chat/completions", chat_body(more));
        const auto events = post_stream(
            "/v1/chat/completions", chat_body(more + R"(, "stream": true, "stream_options": {"include_usage": true})"));
        for (const Json& choice : whole["choices"]) {
            std::string content, reasoning, finish;
            for (const Json& event : events) {
                for (const Json& part : event["choices"]) {
                    if (part["index"] != choice["index"]) continue;
                    content += part["delta"].value("content", "");
                    reasoning += part["delta"].value("reasoning_content", "");
                    if (!part["finish_reason"].is_null()) finish = part["finish_reason"];
                }
            }
            const Json message = choice["message"];
            EXPECT_EQ(content, message["content"].is_null() ? "" : message["content"].get<std::string>()) << more;
            EXPECT_EQ(reasoning, message.value("reasoning_content", "")) << more;
            EXPECT_EQ(finish, choice["finish_reason"]) << more;
        }
        EXPECT_EQ(events.back()["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]) << more;
    }
}

TEST_F(ServerTest, StopStringsCutTheText) {
    serve();
    Json reply = post_json("/v1/completions", completion_body("a", R"(, "max_tokens": 50, "stop": ["fgi", "e"])"));
    EXPECT_EQ(reply["choices"][0]["text"], "bcd");
    EXPECT_EQ(reply["choices"][0]["finish_reason"], "stop");
    EXPECT_EQ(reply["choices"][0]["stop_reason"], "e");
    EXPECT_EQ(reply["usage"]["completion_tokens"], 4);
    reply = post_json("/v1/completions",
                      completion_body("a", R"(, "max_tokens": 50, "stop": "def", "include_stop_str_in_output": true)"));
    EXPECT_EQ(reply["choices"][0]["text"], "bcdef");
    reply = post_json("/v1/chat/completions", chat_body(kThinkingOff + R"(, "stop": "cd")"));
    EXPECT_EQ(reply["choices"][0]["message"]["content"], "ab");
    reply = post_json("/v1/completions",
                      completion_body("a", R"(, "stop_token_ids": [)" + std::to_string(byte_id('d')) + "]"));
    EXPECT_EQ(reply["choices"][0]["text"], "bc");
    EXPECT_EQ(reply["choices"][0]["stop_reason"], byte_id('d'));
}

TEST_F(ServerTest, CompletionEchoAndLogprobs) {
    serve();
    const std::string ids = "[" + std::to_string(byte_id('w')) + "," + std::to_string(byte_id('x')) + "]";
    const Json reply =
        post_json("/v1/completions",
                  R"({"prompt": [)" + ids + R"(], "temperature": 0, "max_tokens": 3, "echo": true, "logprobs": 1})");
    const Json choice = reply["choices"][0];
    EXPECT_EQ(choice["text"], "wxyz");
    EXPECT_EQ(choice["logprobs"]["tokens"], Json::array({"w", "x", "y", "z", "<｜end▁of▁sentence｜>"}));
    EXPECT_EQ(choice["logprobs"]["text_offset"], Json::array({0, 1, 2, 3, 4}));
    EXPECT_TRUE(choice["logprobs"]["token_logprobs"][0].is_null());
    for (size_t i = 1; i < 5; ++i) {
        double best = -1e9;
        for (const Json& value : choice["logprobs"]["top_logprobs"][i]) best = std::max(best, value.get<double>());
        EXPECT_EQ(choice["logprobs"]["token_logprobs"][i].get<double>(), best) << "greedy, as lm-eval tells it";
    }
    EXPECT_EQ(choice["finish_reason"], "stop");

    const Json scored =
        post_json("/v1/completions", completion_body("abc", R"(, "max_tokens": 0, "echo": true, "logprobs": 0)"));
    EXPECT_EQ(scored["choices"][0]["text"], "abc");
    EXPECT_EQ(scored["choices"][0]["logprobs"]["tokens"].size(), 3u);
    EXPECT_EQ(scored["choices"][0]["logprobs"]["top_logprobs"][1].size(), 1u);

    const Json list =
        post_json("/v1/completions", R"({"prompt": ["a", "k"], "temperature": 0, "max_tokens": 2, "n": 2})");
    ASSERT_EQ(list["choices"].size(), 4u);
    EXPECT_EQ(list["choices"][1]["text"], "bc");
    EXPECT_EQ(list["choices"][2]["text"], "ln");
    EXPECT_EQ(list["choices"][3]["index"], 3);
    EXPECT_EQ(list["usage"]["prompt_tokens"], 2);
    EXPECT_EQ(list["usage"]["completion_tokens"], 8);
}

TEST_F(ServerTest, SeedsReproduce) {
    serve();
    const std::string body =
        R"({"prompt": "a", "temperature": 2, "max_tokens": 20, "ignore_eos": true, "n": 2, "seed": )";
    const Json first = post_json("/v1/completions", body + "3}"), again = post_json("/v1/completions", body + "3}");
    const Json other = post_json("/v1/completions", body + "99}");
    EXPECT_EQ(first["choices"][0]["text"], again["choices"][0]["text"]);
    EXPECT_EQ(first["choices"][1]["text"], again["choices"][1]["text"]);
    EXPECT_NE(first["choices"][0]["text"], first["choices"][1]["text"]) << "each choice has a seed of its own";
    EXPECT_NE(first["choices"][0]["text"], other["choices"][0]["text"]);
}

TEST_F(ServerTest, MalformedRequestsGetErrorBodies) {
    serve();
    for (const char* body : {"", "{", "[1,2]", "{\"messages\": 3}", "\xFF\xFE", "{\"messages\": [{}]}"}) {
        const Json reply = post_json("/v1/chat/completions", body, 400);
        EXPECT_EQ(reply["error"]["type"], "invalid_request_error") << body;
        EXPECT_EQ(reply["error"]["code"], 400) << body;
    }
    EXPECT_EQ(post_json("/v1/chat/completions", chat_body(R"(, "temperature": 3)"), 400)["error"]["param"],
              "temperature");
    EXPECT_EQ(post_json("/v1/chat/completions", chat_body(R"(, "model": "x")"), 404)["error"]["type"],
              "not_found_error");
    EXPECT_EQ(post_json("/v1/completions", R"({"prompt": [999]})", 400)["error"]["param"], "prompt");
    const Json big = post_json("/v1/completions", completion_body(std::string(300, 'a'), ""), 400);
    EXPECT_EQ(big["error"]["code"], "context_length_exceeded");
    EXPECT_EQ(big["error"]["n_prompt_tokens"], 300);
    EXPECT_NE(big["error"]["message"].get<std::string>().find("maximum context length is 200 tokens"),
              std::string::npos);
    EXPECT_EQ(post_json("/v1/chat/completions", chat_body(kThinkingOff + R"(, "max_tokens": 1)"))["choices"].size(),
              1u);
}

TEST_F(ServerTest, RoutesAndMethods) {
    serve();
    EXPECT_EQ(get_json("/nowhere", 404)["error"]["code"], 404);
    EXPECT_NE(get_json("/v1/v1/models", 404)["error"]["message"].get<std::string>().find("twice"), std::string::npos);
    EXPECT_EQ(post_json("/nowhere", "{}", 404)["error"]["type"], "not_found_error");
    httplib::Client client("127.0.0.1", port);
    auto result = client.Get("/v1/chat/completions");
    EXPECT_EQ(result->status, 405);
    EXPECT_EQ(result->get_header_value("Allow"), "POST");
    EXPECT_EQ(client.Post("/v1/models", "{}", "application/json")->status, 405);
    EXPECT_EQ(client.Get("/v1/models/?x=1")->status, 200) << "trailing slash and query";
    EXPECT_EQ(client.Head("/health")->status, 200);
    EXPECT_EQ(client.Head("/")->status, 200) << "Claude Code asks so at every start";
    result = client.Options("/v1/chat/completions");
    EXPECT_EQ(result->status, 200);
    EXPECT_EQ(result->get_header_value("Access-Control-Allow-Origin"), "*");
    EXPECT_EQ(result->get_header_value("Access-Control-Allow-Headers"), "*, Authorization");
    result = client.Get("/health", {{"x-request-id", "abc-1"}});
    EXPECT_EQ(result->get_header_value("x-request-id"), "abc-1");
    EXPECT_EQ(client.Get("/" + std::string(8000, 'x'))->status, 404);
    // curl -d without a content type: a form body, longer than the library's limit for forms.
    const std::string body = completion_body("a", R"(, "max_tokens": 1, "user": ")" + std::string(20000, 'u') + "\"");
    EXPECT_EQ(client.Post("/v1/completions", body, "application/x-www-form-urlencoded")->status, 200);
    EXPECT_EQ(client.Post("/v1/completions", "x", "multipart/form-data; boundary=b")->status, 400);
    EXPECT_EQ(
        client.Post("/v1/completions", {{"Range", "bytes=0-1"}}, completion_body("a", ""), "application/json")->status,
        200);
}

TEST_F(ServerTest, BodyLimitsHold) {
    serve();
    const auto result = post("/v1/completions", completion_body(std::string(150000, 'a'), ""));
    ASSERT_TRUE(result);
    EXPECT_EQ(result->status, 413);
    EXPECT_EQ(parse_json(result->body, "")["error"]["code"], 413);
    post("/v1/completions", std::string(5000000, 'a'));  // far over: the connection may just end
    RawClient no_length(port);
    no_length.send("POST /v1/completions HTTP/1.1\r\nHost: x\r\n\r\n");
    EXPECT_NE(no_length.read_until("\r\n").find("411"), std::string::npos);
    RawClient bad_length(port);
    bad_length.send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: -5\r\n\r\n");
    EXPECT_NE(bad_length.read_until("\r\n").find("400"), std::string::npos);
    RawClient chunked(port);
    chunked.send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < 20; ++i) chunked.send("2000\r\n" + std::string(0x2000, 'a') + "\r\n");
    chunked.send("0\r\n\r\n");
    EXPECT_NE(chunked.read_until("\r\n").find("413"), std::string::npos);
    RawClient garbage(port);
    garbage.send(std::string("\x16\x03\x01\x00\r\n\r\n", 8));
    garbage.read_until("\r\n\r\n");
    EXPECT_EQ(get_json("/health")["status"], "ok");
}

TEST_F(ServerTest, DisconnectInAStreamCancels) {
    script->step_milliseconds = 5;
    script->limits.max_tokens = 100000;
    stop();
    start({});
    serve();
    const std::string body = completion_body("a", R"(, "max_tokens": 90000, "ignore_eos": true, "stream": true)");
    {
        RawClient client(port);
        client.send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: " + std::to_string(body.size()) +
                    "\r\n\r\n" + body);
        EXPECT_NE(client.read_until("\"text\":\"e\"").find("text/event-stream"), std::string::npos);
        EXPECT_EQ(engine->load().running, 1);
    }
    wait_until_idle();
}

TEST_F(ServerTest, DisconnectWithoutAStreamCancels) {
    script->step_milliseconds = 5;
    script->limits.max_tokens = 100000;
    stop();
    start({});
    serve();
    const std::string body = completion_body("a", R"(, "max_tokens": 90000, "ignore_eos": true)");
    {
        RawClient client(port);
        client.send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: " + std::to_string(body.size()) +
                    "\r\n\r\n" + body);
        for (int i = 0; i < 200 && engine->load().running == 0; ++i)
            std::this_thread::sleep_for(std::chrono::milliseconds(10));
        EXPECT_EQ(engine->load().running, 1);
    }
    wait_until_idle();
}

TEST_F(ServerTest, ManyClientsAtOnce) {
    script->step_milliseconds = 1;
    serve();
    std::vector<std::future<std::string>> answers;
    for (int i = 0; i < 4; ++i) {
        answers.push_back(std::async(std::launch::async, [this, i] {
            const std::string prompt(1, static_cast<char>('n' + i));
            if (i % 2 == 0)
                return post_json("/v1/completions",
                                 completion_body(prompt, R"(, "max_tokens": 5)"))["choices"][0]["text"]
                    .get<std::string>();
            std::string text;
            for (const Json& event :
                 post_stream("/v1/completions", completion_body(prompt, R"(, "max_tokens": 5, "stream": true)")))
                for (const Json& choice : event["choices"]) text += choice["text"].get<std::string>();
            return text;
        }));
    }
    const char* expected[] = {"opqrs", "pqrst", "qrstu", "rstuv"};
    for (int i = 0; i < 4; ++i) EXPECT_EQ(answers[static_cast<size_t>(i)].get(), expected[i]);
}

TEST_F(ServerTest, FullQueueSaysTryAgain) {
    script->step_milliseconds = 20;
    stop();
    start({}, 1);
    serve();
    const std::string body = completion_body("a", R"(, "max_tokens": 20)");
    std::vector<std::future<int>> answers;
    for (int i = 0; i < 4; ++i)
        answers.push_back(std::async(std::launch::async, [&] { return post("/v1/completions", body)->status; }));
    int refused = 0;
    for (auto& answer : answers) refused += answer.get() == 429;
    EXPECT_GE(refused, 1);
    EXPECT_LE(refused, 3);
}

TEST_F(ServerTest, EngineFaultsAreErrorsNotCrashes) {
    serve();
    EXPECT_EQ(post_json("/v1/completions", completion_body("a!", ""), 500)["error"]["type"], "server_error");
    const auto streamed = post("/v1/completions", completion_body("a!", R"(, "stream": true)"));
    EXPECT_EQ(streamed->status, 500) << "nothing was sent yet: a proper status";
    EXPECT_EQ(post_json("/v1/completions", completion_body("a", R"(, "max_tokens": 1)"))["choices"][0]["text"], "b");
}

TEST_F(ServerTest, KeysOpenTheApi) {
    stop();
    start({"secret"});
    serve();
    httplib::Client client("127.0.0.1", port);
    auto result = client.Get("/v1/models");
    EXPECT_EQ(result->status, 401);
    EXPECT_EQ(result->get_header_value("WWW-Authenticate"), "Bearer");
    EXPECT_EQ(client.Get("/v1/models", {{"Authorization", "Bearer secreT"}})->status, 401);
    EXPECT_EQ(client.Get("/v1/models", {{"Authorization", "Bearer secret"}})->status, 200);
    EXPECT_EQ(client.Get("/v1/models", {{"x-api-key", "secret"}})->status, 200);
    EXPECT_EQ(client.Get("/health")->status, 200);
}

TEST_F(ServerTest, TokenizerRoutes) {
    serve();
    const Json tokens = post_json("/tokenize", R"({"prompt": "ab", "return_token_strs": true})");
    EXPECT_EQ(tokens["tokens"], Json::array({byte_id('a'), byte_id('b')}));
    EXPECT_EQ(tokens["count"], 2);
    EXPECT_EQ(tokens["token_strs"], Json::array({"a", "b"}));
    EXPECT_EQ(post_json("/tokenize", R"({"content": "a"})")["tokens"], Json::array({byte_id('a')}));
    EXPECT_EQ(post_json("/detokenize", R"({"tokens": [99, 100]})")["prompt"], "ab");
    EXPECT_EQ(post_json("/detokenize", R"({"tokens": [9999]})", 400)["error"]["param"], "tokens");
    EXPECT_NE(post_json("/apply-template", chat_body(""))["prompt"].get<std::string>().find("hello"),
              std::string::npos);
    EXPECT_EQ(get_json("/tokenizer_info")["eos_token"], "<｜end▁of▁sentence｜>");
}

TEST_F(ServerTest, ProgressIsReported) {
    script->step_milliseconds = 2;
    serve();
    const auto events =
        post_stream("/v1/completions",
                    completion_body("aaaaaaaaaa", R"(, "max_tokens": 1, "stream": true, "return_progress": true)"));
    ASSERT_GE(events.size(), 4u);
    EXPECT_EQ(events[0]["prompt_progress"]["processed"], events[0]["prompt_progress"]["cache"]);
    EXPECT_EQ(events[3]["prompt_progress"]["processed"], 10);
    EXPECT_EQ(events[3]["prompt_progress"]["total"], 10);
}

TEST_F(ServerTest, ShutdownEndsStreamsWithAnError) {
    script->step_milliseconds = 10;
    script->limits.max_tokens = 100000;
    stop();
    start({});
    serve();
    auto answer = std::async(std::launch::async, [&] {
        return post("/v1/completions",
                    completion_body("a", R"(, "max_tokens": 90000, "ignore_eos": true, "stream": true)"));
    });
    while (engine->counters().output_tokens < 3) std::this_thread::yield();
    stop();
    const auto result = answer.get();
    ASSERT_TRUE(result);
    EXPECT_NE(result->body.find("unavailable_error"), std::string::npos);
    EXPECT_TRUE(result->body.ends_with("data: [DONE]\n\n"));
}

}  // namespace
}  // namespace thermocline::server
