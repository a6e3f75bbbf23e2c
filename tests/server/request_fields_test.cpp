// Fields of completions and chats that ask for more than an answer: what the prompt was worth, what stands in a gap,
// what is said again, how long it may think. And what refusals call a field, and what the log calls a request.
#include "src/base/log.h"
#include "tests/server/server_fixture.h"

namespace thermocline::server {
namespace {

const std::string kThinkingOff = R"(, "thinking": {"type": "disabled"})";

std::string id_key(char c) { return std::to_string(byte_id(c)); }

TEST_F(ServerTest, PromptLogprobsAreThoseOfVllm) {
    serve();
    const Json choice =
        post_json("/v1/completions",
                  completion_body("abz", R"(, "max_tokens": 1, "prompt_logprobs": 2, "logprobs": 1)"))["choices"][0];
    const Json scores = choice["prompt_logprobs"];
    ASSERT_EQ(scores.size(), 3u);
    EXPECT_TRUE(scores[0].is_null());
    EXPECT_EQ(scores[1].size(), 2u) << "the token is one of the two best";
    EXPECT_EQ(scores[1][id_key('b')]["rank"], 1);
    EXPECT_EQ(scores[1][id_key('b')]["decoded_token"], "b");
    EXPECT_EQ(scores[2].size(), 3u) << "the two best, and the token";
    EXPECT_EQ(scores[2].begin().key(), id_key('z')) << "the token comes first";
    EXPECT_GT(scores[2][id_key('z')]["rank"], 2);
    EXPECT_EQ(scores[2][id_key('c')]["rank"], 1);
    EXPECT_LT(scores[2][id_key('z')]["logprob"], scores[2][id_key('c')]["logprob"]);
    EXPECT_EQ(choice["logprobs"]["tokens"].size(), 1u) << "without echo these are of the output";

    const Json chat =
        post_json("/v1/chat/completions", chat_body(R"(, "max_tokens": 1, "n": 2, "prompt_logprobs": 0)"));
    EXPECT_EQ(chat["prompt_logprobs"].size(), chat["usage"]["prompt_tokens"].get<size_t>());
    EXPECT_EQ(chat["prompt_logprobs"][1].size(), 1u);
    EXPECT_FALSE(post_json("/v1/chat/completions", chat_body(R"(, "max_tokens": 1)")).contains("prompt_logprobs"));

    // With echo: each field has its own number of candidates.
    const Json both =
        post_json("/v1/completions",
                  completion_body("abz", R"(, "max_tokens": 0, "echo": true, "logprobs": 0, "prompt_logprobs": 3)"));
    EXPECT_EQ(both["choices"][0]["logprobs"]["top_logprobs"][2].size(), 1u);
    EXPECT_EQ(both["choices"][0]["prompt_logprobs"][2].size(), 4u);
}

TEST_F(ServerTest, PromptLogprobsHaveALimit) {
    script->limits.max_tokens = 20000;
    stop();
    options.http.max_body = 1000000;
    start({});
    serve();
    const std::string body = completion_body(std::string(15000, 'a'), R"(, "max_tokens": 1, "prompt_logprobs": 20)");
    const Json error = post_json("/v1/completions", body, 400)["error"];
    EXPECT_EQ(error["param"], "prompt_logprobs");
    EXPECT_NE(error["message"].get<std::string>().find("315000 entries, expected at most 262144"), std::string::npos);
}

TEST_F(ServerTest, SuffixAsksForWhatFillsTheGap) {
    serve();
    const std::string body = completion_body("ab", R"(, "max_tokens": 3, "return_token_ids": true, "suffix": "yz")");
    const Json error = post_json("/v1/completions", body, 501)["error"];
    EXPECT_EQ(error["param"], "suffix");
    EXPECT_NE(error["message"].get<std::string>().find("<｜fim▁begin｜>"), std::string::npos);

    stop();
    start({});
    // Tokens that a completion does not need stand in for those that this small vocabulary has not.
    constexpr int32_t begin = kUser, hole = kAssistant, end = kDsml;
    tokenizer = std::make_unique<text::Tokenizer>(
        fake_tokenizer({{begin, "<｜fim▁begin｜>"}, {hole, "<｜fim▁hole｜>"}, {end, "<｜fim▁end｜>"}}));
    serve();
    const Json choice = post_json("/v1/completions", body)["choices"][0];
    EXPECT_EQ(choice["text"], "abc");
    EXPECT_EQ(choice["prompt_token_ids"],
              Json::array({kBos, begin, byte_id('a'), byte_id('b'), hole, byte_id('y'), byte_id('z'), end}));
}

TEST_F(ServerTest, ThinkingEndsWithItsBudget) {
    serve();
    const auto message = [this](const std::string& more) {
        return post_json("/v1/chat/completions", chat_body(R"(, "max_tokens": 5)" + more))["choices"][0]["message"];
    };
    EXPECT_EQ(message(R"(, "thinking_token_budget": 1)")["reasoning_content"], "h");
    EXPECT_EQ(message(R"(, "thinking_token_budget": 1)")["content"], "abc");
    EXPECT_FALSE(message(R"(, "thinking_token_budget": 0)").contains("reasoning_content"));
    EXPECT_EQ(message(R"(, "thinking_token_budget": 0)")["content"], "abcd");
    EXPECT_EQ(message(R"(, "thinking_token_budget": 9)")["reasoning_content"], "hm") << "it may think less";
    EXPECT_EQ(message(kThinkingOff + R"(, "thinking_token_budget": 0)")["content"], "abcde") << "nothing to end";
    EXPECT_EQ(message(R"(, "thinking_token_budget": 1, "guided_choice": ["xyz"])")["content"], "xyz");
    const Json reply =
        post_json("/v1/messages", R"({"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4,
                                     "temperature": 0, "thinking": {"type": "enabled", "budget_tokens": 1}})");
    EXPECT_EQ(reply["content"][0]["thinking"], "h");
    EXPECT_EQ(reply["content"][1]["text"], "ab");
}

TEST_F(ServerTest, EchoSaysAgainWhatIsContinued) {
    serve();
    const std::string body = R"({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "abc",
        "prefix": true}], "temperature": 0, "max_tokens": 2, "thinking": {"type": "disabled"})";
    EXPECT_EQ(post_json("/v1/chat/completions", body + "}")["choices"][0]["message"]["content"], "de");
    EXPECT_EQ(post_json("/v1/chat/completions", body + R"(, "echo": true})")["choices"][0]["message"]["content"],
              "abcde");
    std::string text;
    for (const Json& event : post_stream("/v1/chat/completions", body + R"(, "echo": true, "stream": true})"))
        for (const Json& choice : event["choices"]) text += choice["delta"].value("content", "");
    EXPECT_EQ(text, "abcde");
    EXPECT_EQ(
        post_json("/v1/chat/completions",
                  chat_body(kThinkingOff + R"(, "echo": true, "max_tokens": 2)"))["choices"][0]["message"]["content"],
        "ab")
        << "a question is not said again";
}

TEST_F(ServerTest, StopStringsWaitForMinTokens) {
    serve();
    const std::string more = kThinkingOff + R"(, "stop": ["cd", "ij"], "min_tokens": )";
    for (const auto& [least, text] : {std::pair{"0", "ab"}, {"2", "ab"}, {"6", "abcdefg"}}) {
        const Json choice = post_json("/v1/chat/completions", chat_body(more + least))["choices"][0];
        EXPECT_EQ(choice["message"]["content"], text) << least;
        EXPECT_EQ(choice["finish_reason"], "stop");
    }
}

TEST_F(ServerTest, RefusalsSpeakTheWordsOfTheirApi) {
    serve();
    const std::string schema = R"({"type": "object", "properties": {"a": {"not": {}}}, "required": ["a"]})";
    const auto begins = [](const Json& error, const std::string& start) {
        EXPECT_TRUE(error["message"].get<std::string>().starts_with(start)) << error;
        EXPECT_EQ(error["message"].get<std::string>().find("schema: schema"), std::string::npos) << error;
    };
    begins(post_json(
               "/v1/chat/completions",
               chat_body(R"(, "response_format": {"type": "json_schema", "json_schema": {"schema": )" + schema + "}}"),
               400)["error"],
           "response_format: schema: keyword not ");
    const Json responses = post_json(
        "/v1/responses",
        R"({"input": "x", "text": {"format": {"type": "json_schema", "name": "n", "schema": )" + schema + "}}}",
        400)["error"];
    begins(responses, "text.format: schema: keyword not ");
    EXPECT_EQ(responses["param"], "text");
    begins(post_json("/v1/responses", R"({"input": "x", "reasoning": {"effort": "extreme"}})", 400)["error"],
           "reasoning.effort is ");
    const std::string messages = R"({"messages": [{"role": "user", "content": "x"}], "max_tokens": 5, )";
    begins(post_json("/v1/messages",
                     messages + R"("output_config": {"format": {"type": "json_schema", "schema": )" + schema + "}}}",
                     400)["error"],
           "output_config.format: schema: keyword not ");
    begins(post_json("/v1/messages", messages + R"("stop_sequences": [""]})", 400)["error"], "stop_sequences is ");
}

TEST_F(ServerTest, TheLogCallsARequestAsItsClientDoes) {
    serve();
    log::start("debug", "json");
    ::testing::internal::CaptureStderr();
    httplib::Client client("127.0.0.1", port);
    EXPECT_EQ(client
                  .Post("/v1/completions", {{"x-request-id", "mine-7"}}, completion_body("a", R"(, "max_tokens": 2)"),
                        "application/json")
                  ->status,
              200);
    wait_until_idle();
    const std::string seen = ::testing::internal::GetCapturedStderr();
    log::start("warn", "text");
    bool begins = false, ends = false, answered = false;
    for (size_t at = 0, end; (end = seen.find('\n', at)) != std::string::npos; at = end + 1) {
        const Json line = parse_json(seen.substr(at, end - at), "log line");
        if (line.value("request_id", "") != "mine-7") continue;
        const std::string message = line["message"];
        begins |= message.starts_with("begins after ");
        ends |= message.starts_with("reached its length: 2 output tokens");
        answered |= message.starts_with("POST /v1/completions 200");
    }
    EXPECT_TRUE(begins && ends && answered) << seen;
}

}  // namespace
}  // namespace thermocline::server
