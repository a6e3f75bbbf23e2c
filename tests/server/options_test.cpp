// What the flags of `serve` change, and what clients see of the engine's state.
#include "tests/server/server_fixture.h"

#include <future>
#include <optional>

namespace thermocline::server {
namespace {

class OptionsTest : public ServerTest {
protected:
    /// Starts anew, with the options and the model as they are set now.
    void restart(std::vector<std::string> keys = {}) {
        stop();
        start(std::move(keys));
        serve();
    }
    std::string metrics() const { return httplib::Client("127.0.0.1", port).Get("/metrics")->body; }
    static bool has(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }
};

TEST_F(OptionsTest, ReasoningHasTheNameThatWasChosen) {
    using Keys = std::vector<std::string>;
    const std::pair<ReasoningField, Keys> cases[] = {{ReasoningField::kReasoningContent, Keys{"reasoning_content"}},
                                                     {ReasoningField::kReasoning, Keys{"reasoning"}},
                                                     {ReasoningField::kBoth, Keys{"reasoning_content", "reasoning"}}};
    for (const auto& [field, keys] : cases) {
        model.reasoning_field = field;
        restart();
        const Json message = post_json("/v1/chat/completions", chat_body(""))["choices"][0]["message"];
        const auto events = post_stream("/v1/chat/completions", chat_body(R"(, "stream": true)"));
        for (const std::string key : {"reasoning_content", "reasoning"}) {
            const bool is_wanted = std::find(keys.begin(), keys.end(), key) != keys.end();
            EXPECT_EQ(message.value(key, "none"), is_wanted ? "hm" : "none");
            std::string streamed;
            for (const Json& event : events)
                for (const Json& choice : event["choices"]) streamed += choice["delta"].value(key, "");
            EXPECT_EQ(streamed, is_wanted ? "hm" : "");
        }
    }
}

TEST_F(OptionsTest, LogprobsAreOfTheModelOrOfWhatWasDrawnFrom) {
    const auto ask = [this](const std::string& more) {
        const Json reply =
            post_json("/v1/completions", R"({"prompt": "a", "max_tokens": 1, "logprobs": 2)" + more + "}");
        return reply["choices"][0]["logprobs"];
    };
    const std::string masked = R"(, "temperature": 0, "guided_choice": ["x"])",
                      sharp = R"(, "temperature": 1, "top_k": 1)";
    restart();
    EXPECT_LT(ask(masked)["token_logprobs"][0], -5.0) << "unlikely, but nothing else was allowed";
    EXPECT_LT(ask(sharp)["token_logprobs"][0], 0.0);
    const Json raw_top = ask(masked)["top_logprobs"][0];
    EXPECT_TRUE(raw_top.contains("b")) << "the model's own choice";
    model.processed_logprobs = true;
    restart();
    const Json only = ask(masked);
    EXPECT_EQ(only["tokens"], Json::array({"x"}));
    EXPECT_EQ(only["token_logprobs"][0], 0.0);
    EXPECT_EQ(only["top_logprobs"][0]["x"], 0.0);
    for (const auto& [token, logprob] : only["top_logprobs"][0].items())
        EXPECT_EQ(logprob, token == "x" ? 0.0 : -9999.0) << token;
    EXPECT_EQ(ask(sharp)["token_logprobs"][0], 0.0);
}

TEST_F(OptionsTest, MetricsHaveTheNamesOfLlamaServerIfAskedFor) {
    restart();
    EXPECT_FALSE(has(metrics(), "llamacpp:"));
    options.has_llama_metrics = true;
    restart();
    post_json("/v1/completions", completion_body("abc", R"(, "max_tokens": 5)"));
    post_json("/v1/completions", completion_body("abc", R"(, "max_tokens": 5)"));
    const std::string text = metrics();
    EXPECT_TRUE(has(text, "vllm:prompt_tokens_total{"));
    const auto value = [&text](const std::string& name) {
        const size_t at = text.find("\nllamacpp:" + name + "{");
        EXPECT_NE(at, std::string::npos) << name;
        return at == std::string::npos ? -1.0 : std::stod(text.substr(text.find("} ", at) + 2));
    };
    EXPECT_EQ(value("prompt_tokens_total"), 3 + 1) << "the caches had the rest";
    EXPECT_EQ(value("tokens_predicted_total"), 10);
    EXPECT_EQ(value("n_decode_total"), 5 + 5);
    EXPECT_EQ(value("n_busy_slots_per_decode"), 1);
    EXPECT_EQ(value("n_tokens_max"), 3 + 4) << "the last token drawn is in no cache";
    EXPECT_EQ(value("requests_processing"), 0);
    EXPECT_EQ(value("requests_deferred"), 0);
    for (const char* name : {"prompt_seconds_total", "tokens_predicted_seconds_total", "prompt_tokens_seconds",
                             "predicted_tokens_seconds"})
        EXPECT_GT(value(name), 0) << name;
}

TEST_F(OptionsTest, MetricsTellTheSizesOfPasses) {
    script->limits.max_rows = 64;
    restart();
    post_json("/v1/completions", completion_body(std::string(20, 'a'), R"(, "max_tokens": 3)"));
    const std::string text = metrics();
    EXPECT_TRUE(has(text, R"(vllm:iteration_tokens_total_bucket{engine="0",model_name="tiny",le="1.0"} 2.0)")) << text;
    EXPECT_TRUE(has(text, R"(vllm:iteration_tokens_total_bucket{engine="0",model_name="tiny",le="16.0"} 2.0)"));
    EXPECT_TRUE(has(text, R"(vllm:iteration_tokens_total_bucket{engine="0",model_name="tiny",le="32.0"} 3.0)"));
    EXPECT_TRUE(has(text, R"(vllm:iteration_tokens_total_bucket{engine="0",model_name="tiny",le="16384.0"} 3.0)"));
    EXPECT_TRUE(has(text, R"(vllm:iteration_tokens_total_sum{engine="0",model_name="tiny"} 22.0)"));
    EXPECT_TRUE(
        has(text, "vllm:cache_config_info{engine=\"0\",model_name=\"tiny\",block_size=\"200\",num_gpu_blocks="));
}

TEST_F(OptionsTest, SlotsTellWhatRuns) {
    script->step_milliseconds = 5;
    script->limits.max_tokens = 100000;
    restart();
    const std::string body = completion_body("abc", R"(, "max_tokens": 90000, "ignore_eos": true, "stream": true)");
    {
        RawClient client(port);
        client.send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: " + std::to_string(body.size()) +
                    "\r\n\r\n" + body);
        client.read_until("\"text\":\"d\"");
        // Counted a little after it is sent.
        const auto slots_behind = [this](int64_t decoded) {
            Json slots = get_json("/slots");
            for (int i = 0; i < 1000 && slots[0]["n_decoded"] <= decoded; ++i) {
                std::this_thread::sleep_for(std::chrono::milliseconds(10));
                slots = get_json("/slots");
            }
            return slots;
        };
        const Json slots = slots_behind(3);
        ASSERT_EQ(std::ssize(slots), engine->max_sequences());
        EXPECT_EQ(slots[0]["id"], 0);
        EXPECT_GE(slots[0]["id_task"], 0);
        EXPECT_EQ(slots[0]["n_ctx"], 100000);
        EXPECT_EQ(slots[0]["is_processing"], true);
        EXPECT_EQ(slots[0]["n_prompt_tokens"], 3);
        const int64_t decoded = slots[0]["n_decoded"];
        EXPECT_GE(decoded, 4);
        const Json later = slots_behind(decoded)[0];
        EXPECT_GT(later["n_decoded"], decoded);
        EXPECT_EQ(later["id_task"], slots[0]["id_task"]);
        for (size_t i = 1; i < slots.size(); ++i) EXPECT_EQ(slots[i]["is_processing"], false);
    }
    wait_until_idle();
    EXPECT_EQ(get_json("/slots")[0]["id_task"], -1);
    EXPECT_EQ(get_json("/slots")[0]["is_processing"], false);
}

TEST_F(OptionsTest, KeysGuardWhatTheyAreToldTo) {
    restart({"secret"});
    const auto status = [this](const char* path) { return httplib::Client("127.0.0.1", port).Get(path)->status; };
    EXPECT_EQ(status("/v1/models"), 401);
    EXPECT_EQ(status("/metrics"), 200);
    options.opens_models = options.guards_metrics = true;
    restart({"secret"});
    EXPECT_EQ(status("/v1/models"), 200);
    EXPECT_EQ(status("/v1/models/tiny"), 200);
    EXPECT_EQ(status("/metrics"), 401);
    EXPECT_EQ(status("/v1/stats"), 401);
}

TEST_F(OptionsTest, AsManyLogprobsAsTheServerAllows) {
    model.max_logprobs = 30;
    restart();
    const Json entry = post_json("/v1/chat/completions",
                                 chat_body(R"(, "logprobs": true, "top_logprobs": 30)"))["choices"][0]["logprobs"];
    EXPECT_EQ(entry["content"][0]["top_logprobs"].size(), 30u);
    const Json refused = post_json("/v1/chat/completions", chat_body(R"(, "logprobs": true, "top_logprobs": 31)"), 400);
    EXPECT_EQ(refused["error"]["param"], "top_logprobs");
    const Json all = post_json("/v1/completions", completion_body("ab", R"(, "max_tokens": 1, "prompt_logprobs": -1)"));
    EXPECT_EQ(all["choices"][0]["prompt_logprobs"][1].size(), static_cast<size_t>(kVocab));
}

TEST_F(OptionsTest, TheLastTextCarriesTheReason) {
    restart();
    for (const auto& [more, text, reason] :
         {std::tuple{R"(, "max_tokens": 3)", "d", "length"}, std::tuple{R"(, "stop": "e")", "", "stop"},
          std::tuple{R"(, "stop": "ef", "include_stop_str_in_output": true)", "ef", "stop"}}) {
        const auto events =
            post_stream("/v1/completions", completion_body("a", std::string(more) + R"(, "stream": true)"));
        EXPECT_EQ(events.back()["choices"][0]["text"], text) << more;
        EXPECT_EQ(events.back()["choices"][0]["finish_reason"], reason) << more;
        for (size_t i = 0; i + 1 < events.size(); ++i)
            EXPECT_TRUE(events[i]["choices"][0]["finish_reason"].is_null()) << more;
    }
}

TEST_F(OptionsTest, AnEngineThatFailsEveryPassIsGivenUp) {
    restart();
    script->failures = 1000;
    for (int i = 0; i < 8; ++i) post_json("/v1/completions", completion_body("a", ""), 500);
    EXPECT_TRUE(engine->broken());
    EXPECT_EQ(get_json("/health", 503)["error"]["type"], "unavailable_error");
    EXPECT_EQ(post_json("/v1/completions", completion_body("a", ""), 503)["error"]["message"], kBroken);
}

TEST_F(OptionsTest, OneSuccessForgivesEarlierFailures) {
    restart();
    for (int round = 0; round < 3; ++round) {
        script->failures = 7;
        for (int i = 0; i < 7; ++i) post_json("/v1/completions", completion_body("a", ""), 500);
        post_json("/v1/completions", completion_body("a", R"(, "max_tokens": 1)"));
    }
    EXPECT_FALSE(engine->broken());
}

TEST_F(OptionsTest, ADrainingServerClosesConnections) {
    script->step_milliseconds = 10;
    script->limits.max_tokens = 100000;
    options.drain_seconds = 10;
    restart();
    const std::string body = completion_body("a", R"(, "max_tokens": 90000, "ignore_eos": true)");
    std::optional<RawClient> running(port);
    running->send("POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: " + std::to_string(body.size()) +
                  "\r\n\r\n" + body);
    while (engine->counters().output_tokens < 3) std::this_thread::yield();
    auto ended = std::async(std::launch::async, [&] { server->shut_down(); });
    httplib::Client client("127.0.0.1", port);
    auto health = client.Get("/health");
    while (health && health->status == 200) health = client.Get("/health");
    ASSERT_TRUE(health);
    EXPECT_EQ(health->status, 503);
    EXPECT_EQ(health->get_header_value("Connection"), "close");
    EXPECT_EQ(health->get_header_value("Retry-After"), "5");
    running.reset();
    ended.get();
    listener.join();
    server.reset();
}

TEST_F(OptionsTest, OtherCharsetsAndLargeHeadersAreRefused) {
    restart();
    httplib::Client client("127.0.0.1", port);
    const std::string body = completion_body("a", R"(, "max_tokens": 1)");
    EXPECT_EQ(client.Post("/v1/completions", body, "application/json; charset=UTF-8")->status, 200);
    const auto refused = client.Post("/v1/completions", body, "application/json; charset=\"latin1\"");
    EXPECT_EQ(refused->status, 415);
    EXPECT_EQ(parse_json(refused->body, "")["error"]["type"], "invalid_request_error");
    httplib::Headers many;
    for (int i = 0; i < 20; ++i) many.emplace("X-Many-" + std::to_string(i), std::string(4000, 'x'));
    EXPECT_EQ(client.Get("/health", many)->status, 431);
    EXPECT_EQ(client.Post("/v1/completions", many, body, "application/json")->status, 431);
    EXPECT_EQ(get_json("/health")["status"], "ok");
}

TEST_F(OptionsTest, IdleConnectionsKeepNobodyWaiting) {
    restart();
    std::vector<std::unique_ptr<RawClient>> idle;
    for (int i = 0; i < 100; ++i) {
        idle.push_back(std::make_unique<RawClient>(port));
        idle.back()->send("GET /health HTTP/1.1\r\nHost: x\r\n\r\n");
        EXPECT_NE(idle.back()->read_until("\"ok\"").find("200"), std::string::npos) << i;
    }
    httplib::Client client("127.0.0.1", port);
    client.set_read_timeout(5);
    ASSERT_TRUE(client.Get("/health"));
}

/// openapi.json describes the routes that there are.
TEST_F(OptionsTest, DescribedRoutesExist) {
    restart();
    const Json description = get_json("/openapi.json");
    EXPECT_TRUE(description["openapi"].get<std::string>().starts_with("3."));
    httplib::Client client("127.0.0.1", port);
    int routes = 0;
    for (const auto& [path, methods] : description["paths"].items()) {
        std::string at = path;
        if (const size_t brace = at.find('{'); brace != std::string::npos) at = at.substr(0, brace) + "tiny";
        for (const auto& [method, operation] : methods.items()) {
            const auto result = method == "get" ? client.Get(at) : client.Post(at, "{}", "application/json");
            ASSERT_TRUE(result) << path;
            EXPECT_NE(result->status, 405) << method << " " << path;
            EXPECT_FALSE(has(result->body, "does not exist")) << method << " " << path;
            EXPECT_TRUE(operation.contains("summary") && operation.contains("responses")) << path;
            ++routes;
        }
    }
    EXPECT_GT(routes, 25);
    for (const char* path : {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"})
        EXPECT_TRUE(description["paths"].contains(path));
}

}  // namespace
}  // namespace thermocline::server
