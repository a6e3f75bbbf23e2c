// Counters and histograms, /metrics, /v1/stats, and the page.
#include "src/server/metrics.h"

#include "src/server/page.h"
#include "tests/server/server_fixture.h"

#include <filesystem>
#include <gtest/gtest.h>

namespace thermocline::server {
namespace {

TEST(Histogram, BucketsAreCumulativeAndBoundsInclusive) {
    Histogram histogram({1, 2.5});
    for (const double value : {0.5, 1.0, 2.0, 9.0}) histogram.observe(value);
    std::string text;
    histogram.write(text, "h", "a=\"b\"");
    EXPECT_EQ(text,
              "h_bucket{a=\"b\",le=\"1.0\"} 2.0\nh_bucket{a=\"b\",le=\"2.5\"} 3.0\nh_bucket{a=\"b\",le=\"+Inf\"} 4.0\n"
              "h_count{a=\"b\"} 4.0\nh_sum{a=\"b\"} 12.5\n");
}

TEST(Histogram, QuantilesAreOfWhatWasSeenLately) {
    Histogram histogram({100});
    EXPECT_EQ(histogram.quantile(0.5), 0);
    for (const double value : {0.5, 9.0, 2.0, 1.0}) histogram.observe(value);
    EXPECT_EQ(histogram.quantile(0), 0.5);
    EXPECT_EQ(histogram.quantile(0.5), 1.0);
    EXPECT_EQ(histogram.quantile(0.75), 2.0);
    EXPECT_EQ(histogram.quantile(0.95), 9.0);
    for (size_t i = 0; i < Histogram::kRecent; ++i) histogram.observe(3.0);
    EXPECT_EQ(histogram.quantile(1), 3.0);
    EXPECT_EQ(histogram.count(), 4 + Histogram::kRecent);
}

/// The value of a sample in Prometheus' text; -1 if it is not there.
double sample(const std::string& text, const std::string& name, const std::string& label = "") {
    for (size_t at = 0; (at = text.find("\n" + name + "{", at)) != std::string::npos; ++at) {
        const std::string line = text.substr(at + 1, text.find('\n', at + 1) - at - 1);
        if (line.find(label) != std::string::npos) return std::stod(line.substr(line.rfind(' ') + 1));
    }
    return -1;
}

TEST_F(ServerTest, MetricsCountWhatWasServed) {
    httplib::Client client("127.0.0.1", port);
    EXPECT_EQ(client.Get("/metrics")->status, 503) << "loading";
    serve();
    post_json("/v1/completions", completion_body("abc", R"(, "max_tokens": 5)"));
    post_json("/v1/completions", completion_body("abc", R"(, "max_tokens": 5)"));
    post_stream("/v1/completions", completion_body("w", R"(, "max_tokens": 50, "stream": true)"));
    post_json("/v1/completions", completion_body("a!", ""), 500);
    post_json("/v1/completions", "{", 400);
    const auto result = client.Get("/metrics");
    EXPECT_EQ(result->get_header_value("Content-Type"), "text/plain; version=0.0.4; charset=utf-8");
    const std::string& text = result->body;
    EXPECT_EQ(sample(text, "vllm:request_success_total", "\"length\""), 2);
    EXPECT_EQ(sample(text, "vllm:request_success_total", "\"stop\""), 1);
    EXPECT_EQ(sample(text, "vllm:request_success_total", "\"error\""), 1);
    EXPECT_EQ(sample(text, "vllm:request_success_total", "\"abort\""), 0);
    EXPECT_EQ(sample(text, "vllm:prompt_tokens_total"), 7);
    EXPECT_EQ(sample(text, "vllm:generation_tokens_total"), 5 + 5 + 4) << "w is followed by x y z EOS";
    EXPECT_GT(sample(text, "vllm:prefix_cache_hits_total"), 0) << "the second request has the prompt of the first";
    EXPECT_EQ(sample(text, "vllm:time_to_first_token_seconds_count"), 3);
    EXPECT_EQ(sample(text, "vllm:inter_token_latency_seconds_count"), 4 + 4 + 3);
    EXPECT_EQ(sample(text, "vllm:num_requests_running"), 0);
    EXPECT_EQ(sample(text, "vllm:kv_cache_usage_perc"), 0) << "nothing runs";
    EXPECT_EQ(sample(text, "engine_http_responses_total", "\"400\""), 1);
    EXPECT_EQ(sample(text, "engine_http_responses_total", "\"500\""), 1);
    EXPECT_NE(text.find("model_name=\"tiny\""), std::string::npos);

    const Json stats = get_json("/v1/stats");
    EXPECT_EQ(stats["finished"]["length"], 2);
    EXPECT_EQ(stats["tokens"]["generated"], 14);
    EXPECT_EQ(stats["seconds"]["time_to_first_token"]["count"], 3);
    EXPECT_EQ(stats["requests"]["running"], 0);
    EXPECT_EQ(stats["model"], "tiny");
    EXPECT_EQ(stats["memory_gb_per_second"], 20.0);
}

TEST_F(ServerTest, ExpertsAreShownAsTheEngineKnowsThem) {
    stop();
    start({});
    serve();
    EXPECT_EQ(get_json("/v1/experts", 404)["error"]["message"], "this model has no routed experts");
    stop();
    experts = [] {
        return engine::ExpertUse{.tokens = 2,
                                 .chosen = {{1, 2, 1}, {1, 1, 2}},
                                 .on_card = {{1}, {0, 2}},
                                 .layers_of_cards = {1, 1},
                                 .core = 1,
                                 .choices = 8,
                                 .hits = 3,
                                 .moved_experts = 1,
                                 .moved_bytes = 100,
                                 .card_reads = 3,
                                 .cpu_reads = 5,
                                 .expert_bytes = 100,
                                 .streamed_experts = 2,
                                 .layers_played = 4,
                                 .exposed_seconds = 0.5,
                                 .link_seconds = 0.25,
                                 .prefetch_on = true,
                                 .foretold = 6,
                                 .foretold_right = 4,
                                 .warmed_bytes = 77};
    };
    start({});
    serve();
    const Json atlas = get_json("/v1/experts");
    EXPECT_EQ(atlas["tokens"], 2);
    EXPECT_EQ(atlas["chosen"], parse_json("[[1, 2, 1], [1, 1, 2]]", "expected"));
    EXPECT_EQ(atlas["on_card"], parse_json("[[1], [0, 2]]", "expected"));
    EXPECT_EQ(atlas["layers_of_cards"], parse_json("[1, 1]", "expected"));
    EXPECT_EQ(atlas["hits"], 3);
    EXPECT_EQ(atlas["card_only_experts"], 1);
    const std::string text = httplib::Client("127.0.0.1", port).Get("/metrics")->body;
    EXPECT_EQ(sample(text, "engine_expert_choices_total"), 8);
    EXPECT_EQ(sample(text, "engine_expert_transfer_bytes_total"), 100);
    EXPECT_EQ(sample(text, "engine_expert_card_bytes_total"), 300);
    EXPECT_EQ(sample(text, "engine_expert_host_bytes_total"), 500);
    EXPECT_EQ(sample(text, "engine_expert_link_bytes_total"), 300);
    EXPECT_EQ(sample(text, "engine_expert_link_seconds_total"), 0.25);
    EXPECT_EQ(sample(text, "engine_expert_layers_total"), 4);
    EXPECT_EQ(sample(text, "engine_expert_exposed_seconds_total"), 0.5);
    EXPECT_EQ(atlas["read_bytes"], parse_json(R"({"card": 300, "host": 500, "link": 300})", "expected"));
    EXPECT_EQ(sample(text, "engine_expert_decode_uses_card"), 1);
    EXPECT_EQ(sample(text, "engine_expert_prompt_gain"), 0);
    EXPECT_EQ(sample(text, "engine_expert_prefetch_on"), 1);
    EXPECT_EQ(sample(text, "engine_expert_foretold_right_total"), 4);
    EXPECT_EQ(sample(text, "engine_expert_warmed_bytes_total"), 77);
    EXPECT_EQ(atlas["prefetch"]["foretold"], 6);
}

TEST_F(ServerTest, ExpertsAreMovedAndRecordedIfThatIsOn) {
    serve();
    const auto message = [&](const char* path, const std::string& body, int status) {
        return post_json(path, body, status)["error"]["message"].get<std::string>();
    };
    EXPECT_NE(message("/v1/experts/pin", R"({"pin": [[0, 1]]})", 403).find("--admin DIR"), std::string::npos);
    stop();
    const auto folder = std::filesystem::path(::testing::TempDir()) / "server_admin";
    std::filesystem::remove_all(folder);
    std::filesystem::create_directories(folder);
    scheduler::RoutingWatch routing("tiny", {{4, 2}, {4, 2}});
    engine::ExpertAdmin real(folder, "tiny", routing, 2);
    admin = &real;
    start({});
    serve();
    EXPECT_EQ(post_json("/v1/experts/pin", R"({"pin": [[1, 3], [0, 2]]})")["pinned"], Json({{0, 2}, {1, 3}}));
    EXPECT_EQ(post_json("/v1/experts/pin", R"({"release": [[1, 3]]})")["pinned"], Json::array({Json::array({0, 2})}));
    EXPECT_EQ(real.take()->pinned.size(), 1u);
    EXPECT_NE(message("/v1/experts/pin", R"({"pin": [[0, 4]]})", 400).find("expert 0:4"), std::string::npos);
    for (const char* wrong : {R"({"pin": 3})", R"({"pin": [3]})", R"({"pin": [[0]]})", R"({"pin": [[0, "a"]]})"})
        EXPECT_NE(message("/v1/experts/pin", wrong, 400).find("array of [layer, expert]"), std::string::npos) << wrong;
    EXPECT_EQ(post_json("/v1/experts/record", R"({"file": "t.jsonl"})")["recording"], "t.jsonl");
    EXPECT_EQ(post_json("/v1/experts/record", R"({"file": null})")["tokens"], 0);
    EXPECT_TRUE(std::filesystem::exists(folder / "t.jsonl"));
    message("/v1/experts/record", R"({"file": "../t"})", 400);
    message("/v1/experts/record", "{}", 400);
    EXPECT_NE(message("/v1/experts/place", R"({"profile": "none.json"})", 400).find("none.json"), std::string::npos);
    message("/v1/experts/place", "{}", 400);
    stop();
    admin = nullptr;
}

TEST_F(ServerTest, ThePageIsServedWithoutKeyAndLoadsNothingFromElsewhere) {
    stop();
    start({"secret"});
    httplib::Client client("127.0.0.1", port);
    for (const PageFile& file : page_files()) {
        const auto result = client.Get(std::string(file.path));
        EXPECT_EQ(result->status, 200);
        EXPECT_EQ(result->get_header_value("Content-Type"), file.content_type);
        EXPECT_EQ(result->body, file.content);
        const std::string policy = result->get_header_value("Content-Security-Policy");
        EXPECT_TRUE(policy.starts_with("default-src 'none';")) << policy;
        EXPECT_EQ(policy.find("http"), std::string::npos) << "no other origin";
        EXPECT_EQ(policy.find("unsafe"), std::string::npos);
        EXPECT_EQ(result->get_header_value("X-Content-Type-Options"), "nosniff");
        EXPECT_EQ(result->body.find("http://"), std::string::npos) << file.path;
        EXPECT_EQ(result->body.find("https://"), std::string::npos) << file.path;
    }
    EXPECT_EQ(client.Get("/v1/stats")->status, 401);
    EXPECT_NE(client.Get("/")->body.find("<script src=\"/app.js\">"), std::string::npos);
}

}  // namespace
}  // namespace thermocline::server
