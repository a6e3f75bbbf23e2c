// /v1/messages: the request as a chat body, blocks and events of the answer, errors, counts.
#include "src/server/anthropic.h"

#include "tests/server/replay_model.h"

#include <gtest/gtest.h>

namespace thermocline::server {
namespace {

Json chat_of(const std::string& body, bool thinks = false) {
    return chat_body_from_messages(parse_json(body, "test"), thinks);
}

TEST(MessagesRequest, BecomesAChatBody) {
    const Json chat = chat_of(R"({"model": "m", "max_tokens": 9, "stop_sequences": ["x"], "temperature": 0.5,
        "system": [{"type": "text", "text": "x-anthropic-billing-header: 1"}, {"type": "text", "text": "A"},
                   {"type": "text", "text": "B", "cache_control": {"type": "ephemeral"}}],
        "thinking": {"type": "adaptive"}, "output_config": {"effort": "max"},
        "messages": [
          {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": "there"}]},
          {"role": "system", "content": "later"},
          {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm", "signature": ""},
             {"type": "redacted_thinking", "data": "?"}, {"type": "text", "text": "I look."},
             {"type": "tool_use", "id": "t1", "name": "f", "input": {"b": 1, "a": [2]}}]},
          {"role": "user", "content": [{"type": "text", "text": "go on"},
             {"type": "tool_result", "tool_use_id": "t1", "is_error": true,
              "content": [{"type": "text", "text": "r1"}, {"type": "text", "text": "r2"}]}]}],
        "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}},
                  {"type": "web_search_20250305", "name": "web_search"}],
        "tool_choice": {"type": "auto", "disable_parallel_tool_use": true}})");
    EXPECT_EQ(chat["messages"], parse_json(R"([
        {"role": "system", "content": "A\n\nB"},
        {"role": "user", "content": [{"type": "text", "text": "hi"}, {"type": "text", "text": "there"}]},
        {"role": "system", "content": "later"},
        {"role": "assistant", "content": "I look.", "reasoning_content": "hm", "tool_calls": [{"id": "t1",
          "type": "function", "function": {"name": "f", "arguments": "{\"b\":1,\"a\":[2]}"}}]},
        {"role": "tool", "tool_call_id": "t1", "content": "r1\nr2"},
        {"role": "user", "content": [{"type": "text", "text": "go on"}]}])",
                                           ""));
    EXPECT_EQ(chat["tools"], parse_json(R"([{"type": "function", "function":
        {"name": "f", "description": "d", "parameters": {"type": "object"}}}])",
                                        ""));
    EXPECT_EQ(chat["tool_choice"], "auto");
    EXPECT_EQ(chat["parallel_tool_calls"], false);
    EXPECT_EQ(chat["thinking"]["type"], "enabled");
    EXPECT_EQ(chat["reasoning_effort"], "max");
    EXPECT_EQ(chat["stop"], Json::array({"x"}));
    EXPECT_EQ(chat["max_tokens"], 9);
}

TEST(MessagesRequest, ThinksOnlyWhenAsked) {
    const std::string body = R"({"messages": [{"role": "user", "content": "x"}])";
    EXPECT_EQ(chat_of(body + "}")["thinking"]["type"], "disabled");
    EXPECT_EQ(chat_of(body + "}")["max_tokens"], 4096);
    EXPECT_EQ(chat_of(body + "}", true)["thinking"]["type"], "enabled");
    const Json titled = chat_of(body + R"(, "output_config": {"effort": "high", "format": {"type": "json_schema",
                                             "schema": {"type": "object"}}}})");
    EXPECT_FALSE(titled.contains("reasoning_effort")) << "it would turn reasoning on";
    EXPECT_EQ(titled["response_format"]["json_schema"]["schema"]["type"], "object");
}

TEST(MessagesRequest, ChoicesOfTools) {
    const std::string body =
        R"({"messages": [{"role": "user", "content": "x"}], "tools": [{"name": "f"}], "tool_choice": )";
    EXPECT_EQ(chat_of(body + R"({"type": "any"}})")["tool_choice"], "required");
    EXPECT_EQ(chat_of(body + R"({"type": "none"}})")["tool_choice"], "none");
    EXPECT_EQ(chat_of(body + R"({"type": "tool", "name": "f"}})")["tool_choice"]["function"]["name"], "f");
}

TEST(MessagesRequest, RefusalsNameTheField) {
    const auto refusal = [](const std::string& body) {
        try {
            chat_of(body);
        } catch (const RequestError& error) {
            EXPECT_EQ(error.status(), 400);
            return std::string(error.what());
        }
        return std::string("accepted");
    };
    EXPECT_NE(refusal(R"({"messages": []})").find("messages"), std::string::npos);
    EXPECT_NE(refusal(R"({"messages": [{"role": "x", "content": "y"}]})").find("messages[0].role"), std::string::npos);
    EXPECT_NE(refusal(R"({"messages": [{"role": "user", "content": [{"type": "image"}]}]})")
                  .find("messages[0].content[0]: image input is not supported"),
              std::string::npos);
    EXPECT_NE(refusal(R"({"messages": [{"role": "user", "content": [3]}]})").find("not an object"), std::string::npos);
    EXPECT_NE(refusal(R"({"messages": [{"role": "user", "content": "x"}], "max_tokens": 0})").find("max_tokens"),
              std::string::npos);
    EXPECT_NE(
        refusal(R"({"messages": [{"role": "user", "content": "x"}], "thinking": {"type": "on"}})").find("thinking"),
        std::string::npos);
    EXPECT_NE(refusal(R"({"messages": [{"role": "user", "content": "x"}], "tools": [{}]})").find("tools[0].name"),
              std::string::npos);
}

const std::string kAsk = R"({"model": "tiny", "max_tokens": 400, "messages": [{"role": "user", "content": "hello"}])";
const std::string kThink = R"(, "thinking": {"type": "enabled", "budget_tokens": 2000})";
const std::string kTools =
    R"(, "tools": [{"name": "get_weather", "input_schema": {"type": "object"}}, {"name": "ping"}])";

TEST_F(ReplayServerTest, MessageBlocks) {
    answer("why not</think>Let me look." + kTwoCalls);
    const Json reply = post_json("/v1/messages", kAsk + kThink + kTools + "}");
    EXPECT_EQ(reply["type"], "message");
    EXPECT_EQ(reply["role"], "assistant");
    EXPECT_EQ(reply["model"], "tiny");
    EXPECT_TRUE(reply["id"].get<std::string>().starts_with("msg_"));
    ASSERT_EQ(reply["content"].size(), 4u) << reply;
    EXPECT_EQ(reply["content"][0]["thinking"], "why not");
    EXPECT_NE(reply["content"][0]["signature"], "");
    EXPECT_EQ(reply["content"][1], parse_json(R"({"type": "text", "text": "Let me look."})", ""));
    EXPECT_EQ(reply["content"][2]["name"], "get_weather");
    EXPECT_EQ(reply["content"][2]["input"], parse_json(R"({"city": "Rome", "days": 2})", ""));
    EXPECT_TRUE(reply["content"][2]["id"].get<std::string>().starts_with("toolu_"));
    EXPECT_EQ(reply["content"][3]["input"], Json::object());
    EXPECT_EQ(reply["stop_reason"], "tool_use");
    EXPECT_TRUE(reply["stop_sequence"].is_null());
    EXPECT_EQ(reply["usage"]["output_tokens"], replay->answer.size() + 1);
}

TEST_F(ReplayServerTest, MessageStopReasons) {
    answer("abcdef");
    Json reply = post_json("/v1/messages", kAsk + "}");
    EXPECT_EQ(reply["stop_reason"], "end_turn");
    EXPECT_EQ(reply["content"][0]["text"], "abcdef");
    reply = post_json("/messages", kAsk + R"(, "stop_sequences": ["zz", "cd"]})");
    EXPECT_EQ(reply["stop_reason"], "stop_sequence");
    EXPECT_EQ(reply["stop_sequence"], "cd");
    EXPECT_EQ(reply["content"][0]["text"], "ab");
    reply = post_json("/v1/messages", R"({"max_tokens": 2, "messages": [{"role": "user", "content": "x"}]})");
    EXPECT_EQ(reply["stop_reason"], "max_tokens");
    answer("");
    reply = post_json("/v1/messages", kAsk + "}");
    EXPECT_EQ(reply["content"], parse_json(R"([{"type": "text", "text": ""}])", ""));
}

/// Puts a message together from its events as a client does, and checks their order.
Json message_of(const std::vector<Json>& events) {
    Json message;
    int64_t open = -1;
    for (const Json& event : events) {
        const std::string type = event["type"];
        if (type == "ping") continue;
        EXPECT_EQ(type == "message_start", message.is_null()) << "first, and once";
        if (type == "message_start") {
            message = event["message"];
            EXPECT_EQ(message["content"], Json::array());
            EXPECT_TRUE(message["stop_reason"].is_null());
        } else if (type == "content_block_start") {
            EXPECT_EQ(open, -1);
            open = event["index"];
            EXPECT_EQ(static_cast<size_t>(open), message["content"].size());
            message["content"].push_back(event["content_block"]);
            if (event["content_block"]["type"] == "tool_use") message["content"].back()["input"] = "";
        } else if (type == "content_block_delta") {
            EXPECT_EQ(event["index"], open);
            const Json& delta = event["delta"];
            Json& block = message["content"].back();
            const std::string kind = delta["type"];
            const char* from = kind == "thinking_delta"    ? "thinking"
                               : kind == "text_delta"      ? "text"
                               : kind == "signature_delta" ? "signature"
                                                           : "partial_json";
            const char* to = kind == "input_json_delta" ? "input" : from;
            block[to] = block[to].get<std::string>() + delta[from].get<std::string>();
        } else if (type == "content_block_stop") {
            EXPECT_EQ(event["index"], open);
            open = -1;
            Json& block = message["content"].back();
            if (block["type"] == "tool_use") block["input"] = parse_json(block["input"].get<std::string>(), "input");
        } else if (type == "message_delta") {
            EXPECT_EQ(open, -1);
            message["stop_reason"] = event["delta"]["stop_reason"];
            message["stop_sequence"] = event["delta"]["stop_sequence"];
            message["usage"] = event["usage"];
        }
    }
    EXPECT_EQ(events.back()["type"], "message_stop");
    return message;
}

TEST_F(ReplayServerTest, MessageStreamEqualsNoStream) {
    for (const std::string& text :
         {"why not</think>Let me look." + kTwoCalls, std::string("never closed"), std::string(""),
          "x</think>" + kTwoCalls + "and more text", std::string("</think>only text")}) {
        answer(text);
        const Json events = post_named_stream("/v1/messages", kAsk + kThink + kTools + R"(, "stream": true})");
        Json streamed = message_of(events);
        Json whole = post_json("/v1/messages", kAsk + kThink + kTools + "}");
        EXPECT_EQ(streamed["usage"]["output_tokens"], whole["usage"]["output_tokens"]);
        for (Json* message : {&streamed, &whole}) {
            message->erase("id");
            message->erase("usage");
            for (Json& block : (*message)["content"]) block.erase("id");
        }
        EXPECT_EQ(streamed, whole) << text;
    }
}

TEST_F(ReplayServerTest, MessageCountsEqualUsage) {
    answer("ok");
    const std::string more = kTools + R"(, "system": "Be brief.")";
    const Json counted =
        post_json("/v1/messages/count_tokens", R"({"messages": [{"role": "user", "content": "hello"}])" + more + "}");
    for (int i = 0; i < 2; ++i) {
        const Json usage = post_json("/v1/messages", kAsk + more + "}")["usage"];
        EXPECT_EQ(counted["input_tokens"], usage["input_tokens"].get<int64_t>() +
                                               usage["cache_read_input_tokens"].get<int64_t>() +
                                               usage["cache_creation_input_tokens"].get<int64_t>());
        EXPECT_EQ(usage["cache_read_input_tokens"] > 0, i == 1) << "the second time the prompt is in the caches";
    }
    const Json start = post_named_stream("/v1/messages", kAsk + more + R"(, "stream": true})")[0]["message"]["usage"];
    EXPECT_GT(start["cache_read_input_tokens"], 0) << "said at the start of a stream already";
    const Json chat =
        post_json("/v1/chat/completions/input_tokens", chat_body(R"(, "thinking": {"type": "disabled"})"));
    EXPECT_EQ(chat["input_tokens"],
              post_json("/tokenize", chat_body(R"(, "thinking": {"type": "disabled"})"))["count"]);
}

TEST_F(ReplayServerTest, MessageErrors) {
    Json error = post_json("/v1/messages", R"({"messages": 3})", 400);
    EXPECT_EQ(error["type"], "error");
    EXPECT_EQ(error["error"]["type"], "invalid_request_error");
    EXPECT_FALSE(error["request_id"].get<std::string>().empty());
    EXPECT_EQ(post_json("/v1/messages", R"({"model": "x", "messages": [{"role": "user", "content": "x"}]})",
                        404)["error"]["type"],
              "not_found_error");
    error = post_json("/v1/messages",
                      R"({"messages": [{"role": "user", "content": ")" + std::string(25000, 'a') + "\"}]}", 400);
    EXPECT_TRUE(error["error"]["message"].get<std::string>().starts_with("prompt is too long: 250")) << error;
    EXPECT_TRUE(error["error"]["message"].get<std::string>().ends_with("tokens > 20000 maximum"));
    EXPECT_EQ(post_json("/v1/messages", std::string(150000, 'a'), 413)["error"]["type"], "request_too_large");
    EXPECT_EQ(get_json("/v1/messages", 405)["type"], "error");
    stop();
    start({"secret"});
    EXPECT_EQ(post_json("/v1/messages", kAsk + "}", 401)["error"]["type"], "authentication_error");
    httplib::Client client("127.0.0.1", port);
    const auto loading = client.Post("/v1/messages", {{"x-api-key", "secret"}}, kAsk + "}", "application/json");
    EXPECT_EQ(loading->status, 529);
    EXPECT_EQ(parse_json(loading->body, "")["error"]["type"], "overloaded_error");
    EXPECT_FALSE(loading->get_header_value("Retry-After").empty());
}

}  // namespace
}  // namespace thermocline::server
