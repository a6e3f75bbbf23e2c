// Conversations that go on show the model the tokens that it drew: the next turn finds all of them in the prefix cache,
// however the client and the encoder would spell them. And what must not be shared is not.
#include "tests/server/replay_model.h"

#include <gtest/gtest.h>

namespace thermocline::server {
namespace {

/// Spelled as no encoder would: the mark in single bytes, the array without a space, a number with a point.
const std::string kOddCall =
    "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"add\">\n"
    "<｜DSML｜parameter name=\"numbers\" string=\"false\">[1,2.0]</｜DSML｜parameter>\n"
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls>";

class WrittenTurnsTest : public ReplayServerTest {
protected:
    WrittenTurnsTest() { restart(1 << 20); }

    void restart(int64_t replay_bytes) {
        stop();
        options.replay_bytes = replay_bytes;
        start({});
        serve();
    }
    static std::vector<int32_t> odd_answer() {
        std::vector<int32_t> ids = byte_ids("so");
        ids.push_back(kThinkEnd);
        for (const int32_t id : byte_ids("Let me add." + kOddCall)) ids.push_back(id);
        return ids;
    }
    static Json body(const Json& messages) {
        return {{"messages", messages},
                {"temperature", 0},
                {"thinking", {{"type", "enabled"}}},
                {"tools", {{{"type", "function"}, {"function", {{"name", "add"}, {"parameters", Json::object()}}}}}}};
    }
    Json ask(const Json& messages, const Json& more = Json::object()) const {
        Json whole = body(messages);
        for (const auto& [key, value] : more.items()) whole[key] = value;
        return post_json("/v1/chat/completions", dump_json(whole));
    }
    static Json first_question() { return Json::array({{{"role", "user"}, {"content", "Add one and two."}}}); }
    static int64_t cached(const Json& reply) {
        return reply["usage"]["prompt_tokens_details"]["cached_tokens"].get<int64_t>();
    }
    static int64_t prompt_tokens(const Json& reply) { return reply["usage"]["prompt_tokens"].get<int64_t>(); }
    /// The conversation after the tool has answered.
    static Json with_result(const Json& message) {
        Json messages = first_question();
        messages.push_back(message);
        messages.push_back({{"role", "tool"}, {"tool_call_id", message["tool_calls"][0]["id"]}, {"content", "3"}});
        return messages;
    }
};

TEST_F(WrittenTurnsTest, ToolTurnsHitThePrefixCacheInFull) {
    replay->answer = odd_answer();
    const Json first = ask(first_question());
    const Json message = first["choices"][0]["message"];
    ASSERT_EQ(message["tool_calls"].size(), 1u) << first;
    EXPECT_EQ(message["reasoning_content"], "so");
    answer("right</think>It is 3.");
    const Json second = ask(with_result(message));
    EXPECT_EQ(second["choices"][0]["message"]["content"], "It is 3.");
    const int64_t all = prompt_tokens(first) + std::ssize(odd_answer());
    EXPECT_EQ(cached(second), all) << "the prompt and every token that was drawn";
    EXPECT_GT(prompt_tokens(second), all);

    Json messages = with_result(message);
    messages.push_back(second["choices"][0]["message"]);
    messages.push_back({{"role", "user"}, {"content", "Thanks."}});
    answer("bye</think>Bye.");
    const Json third = ask(messages);
    EXPECT_EQ(cached(third), prompt_tokens(second) + std::ssize(tokenizer->encode("right</think>It is 3.")))
        << "and so for the turns that follow";
}

TEST_F(WrittenTurnsTest, WithoutThemTheSpellingOfTheClientCounts) {
    restart(0);
    replay->answer = odd_answer();
    const Json first = ask(first_question());
    EXPECT_EQ(cached(ask(with_result(first["choices"][0]["message"]))), prompt_tokens(first) - 1);
}

TEST_F(WrittenTurnsTest, ClientsMayTrimAndRespellButNotChange) {
    replay->answer = odd_answer();
    const Json first = ask(first_question());
    const int64_t all = prompt_tokens(first) + std::ssize(odd_answer());
    Json message = first["choices"][0]["message"];
    message["content"] = "Let me add.\n";
    message["tool_calls"][0]["function"]["arguments"] = "{ \"numbers\" : [1, 2] }";
    EXPECT_EQ(cached(ask(with_result(message))), all);
    message["tool_calls"][0]["function"]["arguments"] = "{\"numbers\": [1, 3]}";
    EXPECT_LT(cached(ask(with_result(message))), all);
}

TEST_F(WrittenTurnsTest, StreamsAndOtherRoutesAreTheSame) {
    replay->answer = odd_answer();
    Json question = body(first_question());
    question["stream"] = true;
    question["stream_options"] = {{"include_usage", true}};
    const std::vector<Json> events = post_stream("/v1/chat/completions", dump_json(question));
    const int64_t all = prompt_tokens(events.back()) + std::ssize(odd_answer());
    const Json message = {{"role", "assistant"},
                          {"content", "Let me add."},
                          {"reasoning_content", "so"},
                          {"tool_calls",
                           {{{"id", "any"},
                             {"type", "function"},
                             {"function", {{"name", "add"}, {"arguments", "{\"numbers\": [1, 2]}"}}}}}}};
    EXPECT_EQ(cached(ask(with_result(message))), all);
}

TEST_F(WrittenTurnsTest, WhatIsNotToBeSharedIsNot) {
    replay->answer = odd_answer();
    const Json salt = {{"cache_salt", "mine"}}, scratch = {{"cache_prompt", false}};
    const Json first = ask(first_question(), salt);
    const Json messages = with_result(first["choices"][0]["message"]);
    const int64_t all = prompt_tokens(first) + std::ssize(odd_answer());
    const int64_t as_written = prompt_tokens(ask(messages, salt)), as_sent = prompt_tokens(ask(messages));
    EXPECT_NE(as_written, as_sent) << "other tokens: the mark in one";
    EXPECT_EQ(prompt_tokens(ask(messages, scratch)), as_sent);
    EXPECT_EQ(cached(ask(messages, scratch)), 0);
    EXPECT_GE(cached(ask(messages, salt)), all);
}

/// A stop string cuts what the client sees, not what was drawn.
TEST_F(WrittenTurnsTest, CutTurnsAreNotShownWhole) {
    answer("so</think>It is 3. And more.");
    const Json first = ask(first_question(), {{"stop", " And"}});
    EXPECT_EQ(first["choices"][0]["message"]["content"], "It is 3.");
    Json messages = first_question();
    messages.push_back(first["choices"][0]["message"]);
    messages.push_back({{"role", "user"}, {"content", "Thanks."}});
    const Json second = ask(messages);
    const int64_t shown = prompt_tokens(first) + std::ssize(tokenizer->encode("so</think>It is 3."));
    EXPECT_EQ(prompt_tokens(second),
              shown + std::ssize(tokenizer->encode("<｜end▁of▁sentence｜><｜User｜>Thanks.<｜Assistant｜><think>")));
}

TEST_F(WrittenTurnsTest, KeysShareNothingWhenTheyAreIsolated) {
    stop();
    options.isolates_keys = true;
    start({"one", "two"});
    serve();
    answer("so</think>It is 3.");
    const auto cached_for = [&](const std::string& key) {
        httplib::Client client("127.0.0.1", port);
        const auto result = client.Post("/v1/chat/completions", {{"Authorization", "Bearer " + key}},
                                        dump_json(body(first_question())), "application/json");
        EXPECT_EQ(result->status, 200) << result->body;
        return cached(parse_json(result->body, "reply"));
    };
    EXPECT_EQ(cached_for("one"), 0);
    EXPECT_GT(cached_for("one"), 0);
    EXPECT_EQ(cached_for("two"), 0);
    EXPECT_GT(cached_for("two"), 0);
}

}  // namespace
}  // namespace thermocline::server
