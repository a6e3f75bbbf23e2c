#include "src/server/stream.h"

#include "tests/engine/fake_model.h"

#include <gtest/gtest.h>

namespace thermocline::server {
namespace {

using namespace thermocline::testing;
using Kind = text::OutputEvent::Kind;

/// The JSON events of SSE text; "[DONE]" is left as a string.
std::vector<Json> events_of(const std::string& text) {
    std::vector<Json> events;
    size_t at = 0;
    while (at < text.size()) {
        const size_t end = text.find("\n\n", at);
        EXPECT_NE(end, std::string::npos);
        EXPECT_EQ(text.compare(at, 6, "data: "), 0);
        const std::string data = text.substr(at + 6, end - at - 6);
        EXPECT_EQ(data.find('\n'), std::string::npos);
        events.push_back(data == "[DONE]" ? Json(data) : parse_json(data, "event"));
        at = end + 2;
    }
    return events;
}

class StreamTest : public ::testing::Test {
protected:
    StreamTest() { model.name = "tiny", model.fingerprint = "b1"; }

    ReplyHead head() const { return {"chatcmpl-x", 7, &model, &tokenizer}; }
    static Delta token(int32_t id, engine::TextEvents events, int32_t choice = 0) {
        Delta delta;
        delta.choice = choice;
        delta.events = std::move(events);
        engine::Token drawn;
        drawn.id = id;
        drawn.logprob = -0.5f;
        drawn.top = {{id, -0.5f}};
        delta.tokens = {drawn};
        return delta;
    }
    static Delta end(text::FinishReason reason, int32_t choice = 0) {
        Delta delta;
        delta.choice = choice;
        delta.ending.emplace();
        delta.ending->reason = reason;
        return delta;
    }
    static text::OutputEvent event(Kind kind, const std::string& text, int call = -1) { return {kind, text, call}; }

    ServedModel model;
    text::Tokenizer tokenizer = fake_tokenizer();
};

TEST_F(StreamTest, ChatSendsRoleReasoningContentFinishInOrder) {
    ChatCall call;
    ChatStream stream(head(), call, Tally(3, 1), true, {});
    EXPECT_EQ(stream.on(Delta()), "") << "no role before the first token";
    auto events = events_of(stream.on(token(byte_id('h'), {event(Kind::kReasoning, "h")})));
    ASSERT_EQ(events.size(), 2u);
    EXPECT_EQ(events[0]["choices"][0]["delta"], parse_json(R"({"role":"assistant","content":""})", ""));
    EXPECT_EQ(events[1]["choices"][0]["delta"], parse_json(R"({"reasoning_content":"h"})", ""));
    EXPECT_EQ(events[1]["object"], "chat.completion.chunk");
    EXPECT_EQ(events[1]["id"], "chatcmpl-x");
    EXPECT_TRUE(events[1]["choices"][0]["finish_reason"].is_null());
    EXPECT_FALSE(events[1].contains("usage"));
    EXPECT_EQ(stream.on(token(kThinkEnd, {})), "") << "held back or markup: no empty chunk";
    events = events_of(stream.on(token(byte_id('a'), {event(Kind::kReasoning, "x"), event(Kind::kContent, "a")})));
    ASSERT_EQ(events.size(), 2u) << "the end of one part and the begin of the next are two deltas";
    events = events_of(stream.on(end(text::FinishReason::kStop)));
    ASSERT_EQ(events.size(), 1u);
    EXPECT_EQ(events[0]["choices"][0]["delta"], Json::object());
    EXPECT_EQ(events[0]["choices"][0]["finish_reason"], "stop");
    EXPECT_TRUE(events[0]["choices"][0]["stop_reason"].is_null());
    EXPECT_TRUE(events[0].contains("timings"));
    EXPECT_EQ(stream.end(), "data: [DONE]\n\n");
}

TEST_F(StreamTest, UsageComesInAChunkWithoutChoices) {
    ChatCall call;
    call.stream = call.include_usage = true;
    ChatStream stream(head(), call, Tally(3, 1), false, {});
    stream.on(token(byte_id('a'), {event(Kind::kContent, "a")}));
    stream.on(end(text::FinishReason::kLength));
    const auto events = events_of(stream.end());
    ASSERT_EQ(events.size(), 2u);
    EXPECT_EQ(events[0]["choices"], Json::array());
    EXPECT_EQ(events[0]["usage"]["prompt_tokens"], 3);
    EXPECT_EQ(events[0]["usage"]["completion_tokens"], 1);
    EXPECT_EQ(events[0]["usage"]["total_tokens"], 4);
    EXPECT_EQ(events[1], "[DONE]");
}

TEST_F(StreamTest, ToolCallsBeginWithIdAndName) {
    ChatCall call;
    ChatStream stream(head(), call, Tally(1, 1), false, {});
    std::string text =
        stream.on(token(5, {event(Kind::kCallBegin, "f", 0), event(Kind::kCallArguments, "{\"a\": ", 0)}));
    text += stream.on(token(6, {event(Kind::kCallArguments, "1}", 0), event(Kind::kCallEnd, "", 0)}));
    text += stream.on(end(text::FinishReason::kToolCalls));
    const auto events = events_of(text);
    ASSERT_EQ(events.size(), 5u);
    const Json first = events[1]["choices"][0]["delta"]["tool_calls"][0];
    EXPECT_EQ(first["index"], 0);
    EXPECT_EQ(first["type"], "function");
    EXPECT_EQ(first["function"]["name"], "f");
    EXPECT_EQ(first["function"]["arguments"], "");
    EXPECT_EQ(first["id"].get<std::string>().substr(0, 5), "call_");
    const Json second = events[2]["choices"][0]["delta"]["tool_calls"][0];
    EXPECT_FALSE(second.contains("id"));
    EXPECT_FALSE(second["function"].contains("name"));
    EXPECT_EQ(second["function"]["arguments"], "{\"a\": ");
    EXPECT_EQ(events[4]["choices"][0]["finish_reason"], "tool_calls");
}

TEST_F(StreamTest, LogprobsOfHeldTextRideOnTheNextChunk) {
    ChatCall call;
    call.request.logprobs = 1;
    ChatStream stream(head(), call, Tally(1, 1), false, {});
    stream.on(token(byte_id('a'), {}));
    auto events = events_of(stream.on(token(byte_id('b'), {event(Kind::kContent, "ab")})));
    const Json entries = events[0]["choices"][0]["logprobs"]["content"];
    ASSERT_EQ(entries.size(), 2u);
    EXPECT_EQ(entries[0]["token"], "a");
    EXPECT_EQ(entries[0]["bytes"], Json::array({97}));
    EXPECT_EQ(entries[1]["top_logprobs"].size(), 1u);
    stream.on(token(byte_id('c'), {}));
    events = events_of(stream.on(end(text::FinishReason::kStop)));
    EXPECT_EQ(events[0]["choices"][0]["logprobs"]["content"].size(), 1u) << "at the latest on the finish chunk";
}

TEST_F(StreamTest, ReasoningCanBeHiddenOrLeftInTheContent) {
    ChatCall hidden;
    hidden.include_reasoning = false;
    ChatStream first(head(), hidden, Tally(1, 1), true, {});
    EXPECT_EQ(events_of(first.on(token(3, {event(Kind::kReasoning, "h")}))).size(), 1u) << "only the role";
    ChatCall joined;
    joined.split_reasoning = false;
    ChatStream second(head(), joined, Tally(1, 1), true, {});
    const auto events = events_of(
        second.on(token(3, {event(Kind::kReasoning, "h"), event(Kind::kContent, "a"), event(Kind::kContent, "b")})));
    std::string content;
    for (size_t i = 1; i < events.size(); ++i)
        content += events[i]["choices"][0]["delta"]["content"].get<std::string>();
    EXPECT_EQ(content, "h</think>ab");
}

TEST_F(StreamTest, CompletionChunksCarryTextAndOffsets) {
    CompletionCall call;
    call.request.logprobs = 1;
    call.echo = true;
    CompletionStream stream({"cmpl-x", 7, &model, &tokenizer}, call, Tally(2, 1), {"xy"}, {byte_ids("xy")});
    Delta scored;
    scored.prompt_tokens.resize(2);
    scored.prompt_tokens[0].id = byte_id('x');
    scored.prompt_tokens[1].id = byte_id('y');
    scored.prompt_tokens[1].logprob = -1;
    EXPECT_EQ(stream.on(scored), "");
    const auto events = events_of(stream.on(token(byte_id('a'), {event(Kind::kContent, "a")})));
    ASSERT_EQ(events.size(), 1u);
    EXPECT_EQ(events[0]["object"], "text_completion");
    const Json choice = events[0]["choices"][0];
    EXPECT_EQ(choice["text"], "xya");
    EXPECT_EQ(choice["logprobs"]["text_offset"], Json::array({0, 1, 2}));
    EXPECT_EQ(choice["logprobs"]["token_logprobs"], Json::array({nullptr, -1.0, -0.5}));
    EXPECT_TRUE(choice["logprobs"]["top_logprobs"][0].is_null());
    const auto last = events_of(stream.on(end(text::FinishReason::kLength)));
    EXPECT_EQ(last[0]["choices"][0]["text"], "");
    EXPECT_EQ(last[0]["choices"][0]["finish_reason"], "length");
}

TEST_F(StreamTest, BrokenStreamsSayWhyAndEnd) {
    ChatCall call;
    const auto events = events_of(ChatStream(head(), call, Tally(1, 1), false, {}).failure({500, "it broke"}, "id"));
    ASSERT_EQ(events.size(), 2u);
    EXPECT_EQ(events[0]["error"]["type"], "server_error");
    EXPECT_EQ(events[1], "[DONE]");
}

TEST_F(StreamTest, EqualTokenTextsKeepTheBetterLogprob) {
    CompletionCall call;
    CompletionLogprobs logprobs(tokenizer, call);
    Json arrays = CompletionLogprobs::empty();
    engine::Token drawn;
    drawn.id = kFirstByte + 0xC3;
    drawn.logprob = -3;
    drawn.top = {{kFirstByte + 0xE4, -0.25f}};  // both print as U+FFFD
    logprobs.append(arrays, {drawn}, false);
    EXPECT_EQ(arrays["top_logprobs"][0].size(), 1u);
    EXPECT_EQ(arrays["top_logprobs"][0].front(), -0.25);
    engine::Token never;
    never.id = byte_id('q');
    never.logprob = -std::numeric_limits<float>::infinity();
    logprobs.append(arrays, {never}, false);
    EXPECT_EQ(arrays["token_logprobs"][1], -9999.0);
}

}  // namespace
}  // namespace thermocline::server
