// /v1/responses: items to a chat body, output items and events of the answer, what is refused.
#include "src/server/responses.h"

#include "tests/server/replay_model.h"

#include <gtest/gtest.h>

namespace thermocline::server {
namespace {

TEST(ResponsesRequest, BecomesAChatBody) {
    const ResponseRequest request = read_response_request(parse_json(R"({"model": "m", "instructions": "I",
        "max_output_tokens": 7, "reasoning": {"effort": "low", "summary": "auto"}, "temperature": 0.5, "store": false,
        "input": [
          {"role": "developer", "content": [{"type": "input_text", "text": "D"}]},
          {"type": "message", "role": "user", "content": "u"},
          {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": null,
           "content": [{"type": "reasoning_text", "text": "why"}]},
          {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "look"}]},
          {"type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"a\":1}"},
          {"type": "function_call", "call_id": "c2", "name": "g", "namespace": "ns", "arguments": "{}"},
          {"type": "function_call_output", "call_id": "c1", "output": "r1"},
          {"type": "function_call_output", "call_id": "c2", "output": [{"type": "input_text", "text": "r2"}]}],
        "tools": [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": false},
                  {"type": "namespace", "name": "ns", "tools": [{"type": "function", "name": "g"}]},
                  {"type": "web_search"}],
        "tool_choice": {"type": "function", "name": "f"},
        "text": {"format": {"type": "json_schema", "name": "n", "schema": {}, "strict": true}}})",
                                                                     ""));
    EXPECT_EQ(request.chat["messages"], parse_json(R"([
        {"role": "system", "content": "I"}, {"role": "developer", "content": "D"}, {"role": "user", "content": "u"},
        {"role": "assistant", "content": "look", "reasoning_content": "why", "tool_calls": [
          {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\":1}"}},
          {"id": "c2", "type": "function", "function": {"name": "ns__g", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "c1", "content": "r1"},
        {"role": "tool", "tool_call_id": "c2", "content": "r2"}])",
                                                   ""));
    EXPECT_EQ(request.chat["tools"], parse_json(R"([
        {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}, "strict": false}},
        {"type": "function", "function": {"name": "ns__g"}}])",
                                                ""));
    EXPECT_EQ(request.namespaced.at("ns__g").name, "g");
    EXPECT_EQ(request.chat["tool_choice"]["function"]["name"], "f");
    EXPECT_EQ(request.chat["reasoning_effort"], "low");
    EXPECT_EQ(request.chat["max_tokens"], 7);
    EXPECT_EQ(request.chat["response_format"]["json_schema"]["name"], "n");
    EXPECT_EQ(request.echo["text"]["format"]["type"], "json_schema");
    EXPECT_EQ(request.echo["reasoning"]["effort"], "low");
}

TEST(ResponsesRequest, RefusalsNameTheField) {
    const auto refusal = [](const std::string& body) -> std::string {
        try {
            read_response_request(parse_json(body, ""));
        } catch (const RequestError& error) {
            return error.param() + ": " + error.what();
        }
        return "accepted";
    };
    EXPECT_TRUE(refusal(R"({})").starts_with("input: "));
    EXPECT_TRUE(refusal(R"({"input": "x", "previous_response_id": "r"})").starts_with("previous_response_id: "));
    EXPECT_TRUE(refusal(R"({"input": "x", "background": true})").starts_with("background: "));
    EXPECT_TRUE(refusal(R"({"input": [{"type": "item_reference", "id": "x"}]})").starts_with("input: input[0].type"));
    EXPECT_TRUE(refusal(R"({"input": [{"role": "user", "content": [{"type": "input_image"}]}]})")
                    .starts_with("input: input[0].content[0]: input_image is not supported"));
    EXPECT_TRUE(refusal(R"({"input": "x", "tools": [{"type": "web_search"}]})").starts_with("tools: "));
    EXPECT_TRUE(refusal(R"({"input": "x", "tools": [{"type": "namespace", "name": "n", "tools": [1]}]})")
                    .starts_with("tools: tools[0].tools[0]"));
    EXPECT_EQ(refusal(R"({"input": "x", "background": null, "previous_response_id": null})"), "accepted");
}

const std::string kAsk = R"({"input": "hello", "max_output_tokens": 500,
    "tools": [{"type": "function", "name": "get_weather"}, {"type": "namespace", "name": "net",
               "tools": [{"type": "function", "name": "ping"}]}])";

std::string two_calls() {
    std::string text = kTwoCalls;
    return text.replace(text.find("\"ping\""), 6, "\"net__ping\"");
}

TEST_F(ReplayServerTest, ResponseItems) {
    answer("why</think>Let me look." + two_calls());
    const Json reply = post_json("/v1/responses", kAsk + "}");
    EXPECT_EQ(reply["object"], "response");
    EXPECT_EQ(reply["status"], "completed");
    EXPECT_TRUE(reply["id"].get<std::string>().starts_with("resp_"));
    ASSERT_EQ(reply["output"].size(), 4u) << reply;
    EXPECT_EQ(reply["output"][0]["content"][0], parse_json(R"({"type": "reasoning_text", "text": "why"})", ""));
    EXPECT_EQ(reply["output"][1]["content"][0]["text"], "Let me look.");
    EXPECT_EQ(reply["output"][1]["status"], "completed");
    EXPECT_EQ(reply["output"][2]["arguments"], R"({"city": "Rome", "days": 2})");
    EXPECT_TRUE(reply["output"][2]["call_id"].get<std::string>().starts_with("call_"));
    EXPECT_EQ(reply["output"][3]["name"], "ping");
    EXPECT_EQ(reply["output"][3]["namespace"], "net");
    EXPECT_EQ(reply["usage"]["output_tokens"], replay->answer.size() + 1);
    EXPECT_EQ(reply["usage"]["output_tokens_details"]["reasoning_tokens"], 4);
    EXPECT_EQ(reply["tools"].size(), 2u);
    EXPECT_EQ(reply["max_output_tokens"], 500);

    const Json cut = post_json("/responses", R"({"input": "hello", "max_output_tokens": 2})");
    EXPECT_EQ(cut["status"], "incomplete");
    EXPECT_EQ(cut["incomplete_details"]["reason"], "max_output_tokens");
}

TEST_F(ReplayServerTest, ResponseStreamEqualsNoStream) {
    for (const std::string& text : {"why</think>Let me look." + two_calls(), std::string("never closed"),
                                    std::string(""), "x</think>" + two_calls() + "and more text"}) {
        answer(text);
        const Json events = post_named_stream("/v1/responses", kAsk + R"(, "stream": true})");
        Json items = Json::array();
        int64_t number = 0;
        for (const Json& event : events) {
            const std::string type = event["type"];
            EXPECT_EQ(event["sequence_number"], number++);
            if (type == "response.output_item.added") {
                EXPECT_EQ(event["output_index"], items.size());
                items.push_back({{"id", event["item"]["id"]}, {"text", ""}});
            } else if (type.ends_with(".delta")) {
                EXPECT_EQ(event["item_id"], items.back()["id"]);
                EXPECT_EQ(event["output_index"], items.size() - 1);
                items.back()["text"] = items.back()["text"].get<std::string>() + event["delta"].get<std::string>();
            } else if (type == "response.output_item.done") {
                const Json& item = event["item"];
                const std::string whole = item["type"] == "function_call"
                                              ? item["arguments"].get<std::string>()
                                              : item["content"][0]["text"].get<std::string>();
                EXPECT_EQ(items.back()["text"], whole) << "joined deltas";
            }
        }
        EXPECT_EQ(events[0]["type"], "response.created");
        EXPECT_EQ(events[1]["type"], "response.in_progress");
        EXPECT_EQ(events.back()["type"], "response.completed");
        Json streamed = events.back()["response"], whole = post_json("/v1/responses", kAsk + "}");
        EXPECT_EQ(streamed["usage"]["output_tokens"], whole["usage"]["output_tokens"]);
        for (Json* response : {&streamed, &whole}) {
            for (const char* key : {"id", "created_at", "usage"}) response->erase(key);
            for (Json& item : (*response)["output"])
                for (const char* key : {"id", "call_id"}) item.erase(key);
        }
        EXPECT_EQ(streamed, whole) << text;
    }
}

TEST_F(ReplayServerTest, ResponseCountsAndErrors) {
    answer("ok");
    const Json counted = post_json("/v1/responses/input_tokens", kAsk + "}");
    EXPECT_EQ(counted["object"], "response.input_tokens");
    EXPECT_EQ(counted["input_tokens"], post_json("/v1/responses", kAsk + "}")["usage"]["input_tokens"]);
    const Json error = post_json("/v1/responses", R"({"input": ")" + std::string(25000, 'a') + "\"}", 400);
    EXPECT_EQ(error["error"]["code"], "context_length_exceeded");
    EXPECT_EQ(get_json("/v1/responses/resp_1", 404)["error"]["type"], "not_found_error");
}

TEST_F(ReplayServerTest, BrokenResponseStreamsSayWhy) {
    const ResponseRequest request = read_response_request(parse_json(R"({"input": "x"})", ""));
    ChatCall call;
    ResponseStream stream({"resp_x", 7, &model, tokenizer.get()}, call, Tally(1, 1), request);
    const std::string text = stream.failure({503, "the server is shutting down"}, "id");
    EXPECT_TRUE(text.starts_with("event: error\ndata: {\"type\":\"error\",\"sequence_number\":0,")) << text;
    EXPECT_NE(text.find("event: response.failed\n"), std::string::npos);
    EXPECT_NE(text.find("\"status\":\"failed\""), std::string::npos);
}

}  // namespace
}  // namespace thermocline::server
