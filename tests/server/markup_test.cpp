// Whatever the model emits, in whatever pieces: no tool markup comes out as text or as the name of a tool, arguments
// are JSON objects, pieces make no difference, and all four answers of a chat say the same. Random, seeded.
#include "src/server/anthropic.h"
#include "src/server/responses.h"
#include "src/text/prompt_deepseek_v4.h"
#include "tests/server/replay_model.h"

#include <gtest/gtest.h>
#include <random>

namespace thermocline::server {
namespace {

using text::OutputEvent;
using Random = std::mt19937;

size_t below(Random& random, size_t limit) { return random() % limit; }

/// An answer as it should be: perhaps a thought, text, calls with hostile values.
std::string valid_answer(Random& random, const text::ToolMarkup& markup) {
    static const std::vector<std::string> kValues = {
        "Rome", "2>&1", "a < b && c > d", "<div class=\"x\">é</div>", "line\n\nline", "\"quoted\\\"", "<｜User｜>", ""};
    static const std::vector<std::string> kJson = {"1",    "true",     "[1, 2]", "{\"k\": \"v\"}",
                                                   "null", "not json", "-0.5e3"};
    std::string out;
    if (below(random, 2) != 0) out += "I think" + std::string(below(random, 2) != 0 ? " so\n" : "") + "</think>";
    if (below(random, 2) != 0) out += "Some text, 1 < 2.";
    for (size_t block = below(random, 3); block > 0; --block) {
        out += "\n\n<" + markup.block + ">\n";
        for (size_t call = below(random, 3); call > 0; --call) {
            out += "<" + markup.invoke + " name=\"" + (below(random, 2) != 0 ? "get_weather" : "天気") + "\">\n";
            for (size_t parameter = below(random, 3); parameter > 0; --parameter) {
                const bool is_string = below(random, 2) != 0;
                const auto& values = is_string ? kValues : kJson;
                out += "<" + markup.parameter + " name=\"k" + std::to_string(parameter) + "\" string=\"" +
                       (is_string ? "true" : "false") + "\">" + values[below(random, values.size())] + "</" +
                       markup.parameter + ">\n";
            }
            out += "</" + markup.invoke + ">\n";
        }
        out += "</" + markup.block + ">";
    }
    return out + (below(random, 4) == 0 ? "The end." : "");
}

/// Breaks it: pieces cut out, doubled, moved, tags and single characters thrown in. Stays UTF-8.
std::string mutated(Random& random, std::string text, const text::ToolMarkup& markup) {
    const std::vector<std::string> scraps = {"<",
                                             ">",
                                             "</",
                                             "\"",
                                             "\n\n",
                                             "<think>",
                                             "</think>",
                                             "｜DSML｜",
                                             "<｜DSML｜",
                                             "</｜DSML｜",
                                             "<" + markup.block + ">",
                                             "</" + markup.block + ">",
                                             "<" + markup.invoke + " name=\"",
                                             "</" + markup.invoke + ">",
                                             "<" + markup.parameter + " name=\"x\" string=\"true\">",
                                             "</" + markup.parameter + ">",
                                             "<｜DSML｜tool_cals>",
                                             "\">",
                                             "{",
                                             "}",
                                             " "};
    const auto boundary = [&](size_t at) {
        while (at < text.size() && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) ++at;
        return std::min(at, text.size());
    };
    for (size_t edits = below(random, 5); edits > 0; --edits) {
        const size_t from = boundary(below(random, text.size() + 1));
        const size_t to = std::max(from, boundary(from + below(random, 30)));
        const std::string piece = text.substr(from, to - from);
        switch (below(random, 4)) {
            case 0:
                text.erase(from, to - from);
                break;
            case 1:
                text.insert(from, piece);
                break;
            case 2:
                text.erase(from, to - from);
                text.insert(boundary(below(random, text.size() + 1)), piece);
                break;
            default:
                text.insert(from, scraps[below(random, scraps.size())]);
        }
    }
    return text;
}

std::vector<std::string> pieces_of(Random& random, const std::string& text) {
    std::vector<std::string> pieces;
    const size_t longest = 1 + below(random, 20);
    for (size_t at = 0; at < text.size();) {
        size_t end = std::min(text.size(), at + 1 + below(random, longest));
        while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) ++end;
        pieces.push_back(text.substr(at, end - at));
        at = end;
    }
    return pieces;
}

/// The deltas that a choice would get.
std::vector<Delta> deltas_of(const std::vector<std::string>& pieces, const text::ParserOptions& options,
                             text::Ending ending) {
    text::OutputParser parser(options);
    std::vector<Delta> deltas;
    for (const std::string& piece : pieces) {
        deltas.emplace_back().events = parser.feed(piece);
        deltas.back().tokens.emplace_back().id = kFirstByte;
        if (parser.stopped_by()) break;
    }
    Delta& last = deltas.emplace_back();
    last.events = parser.finish(ending);
    last.ending.emplace().reason = last.events.back().reason;
    last.events.pop_back();
    return deltas;
}

/// Reasoning, content and calls in one text, to compare answers of different shapes.
std::string spelled(const std::string& reasoning, const std::string& content, const Json& calls) {
    return "R " + reasoning + "\nC " + content + "\nT " + dump_json(calls);
}

std::string from_events(const std::vector<Delta>& deltas) {
    std::vector<OutputEvent> events;
    for (const Delta& delta : deltas) events.insert(events.end(), delta.events.begin(), delta.events.end());
    const text::ParsedOutput output = text::join_events(events);
    Json calls = Json::array();
    for (const text::ToolCall& call : output.tool_calls) calls.push_back({call.name, call.arguments});
    return spelled(output.reasoning, output.content, calls);
}

std::vector<Json> sent(EventStream& stream, const std::vector<Delta>& deltas) {
    std::string text;
    for (const Delta& delta : deltas) text += stream.on(delta);
    text += stream.end();
    std::vector<Json> events;
    for (size_t at = 0; (at = text.find("data: {", at)) != std::string::npos;) {
        const size_t end = text.find("\n\n", at);
        events.push_back(parse_json(text.substr(at + 6, end - at - 6), "event"));
        at = end;
    }
    return events;
}

std::string from_chunks(const std::vector<Json>& events) {
    std::string reasoning, content;
    Json calls = Json::array();
    for (const Json& event : events) {
        const Json& delta = event["choices"][0]["delta"];
        reasoning += delta.value("reasoning_content", "");
        content += delta.value("content", "");
        if (!delta.contains("tool_calls")) continue;
        const Json& function = delta["tool_calls"][0]["function"];
        if (function.contains("name")) calls.push_back({function["name"], ""});
        calls.back()[1] = calls.back()[1].get<std::string>() + function["arguments"].get<std::string>();
        EXPECT_EQ(delta["tool_calls"][0]["index"], calls.size() - 1);
    }
    return spelled(reasoning, content, calls);
}

std::string from_blocks(const std::vector<Json>& events) {
    std::string reasoning, content;
    Json calls = Json::array();
    for (const Json& event : events) {
        if (event["type"] == "content_block_start" && event["content_block"]["type"] == "tool_use")
            calls.push_back({event["content_block"]["name"], ""});
        if (event["type"] != "content_block_delta") continue;
        const Json& delta = event["delta"];
        reasoning += delta.value("thinking", "");
        content += delta.value("text", "");
        if (delta.contains("partial_json"))
            calls.back()[1] = calls.back()[1].get<std::string>() + delta["partial_json"].get<std::string>();
    }
    return spelled(reasoning, content, calls);
}

std::string from_items(const Json& response) {
    std::string reasoning, content;
    Json calls = Json::array();
    for (const Json& item : response["output"]) {
        if (item["type"] == "reasoning") reasoning += item["content"][0]["text"].get<std::string>();
        if (item["type"] == "message") content += item["content"][0]["text"].get<std::string>();
        if (item["type"] == "function_call") calls.push_back({item["name"], item["arguments"]});
    }
    return spelled(reasoning, content, calls);
}

class Markup : public ::testing::Test {
protected:
    Markup() { model.name = "tiny"; }

    /// Checks one answer; `is_whole`: it is the mutated text itself that came, nothing cut.
    void check(const std::string& text, const text::ParserOptions& options, text::Ending ending, Random& random) {
        const text::ParsedOutput whole = text::parse_output(text, options, ending);
        EXPECT_EQ(whole.reasoning.find("｜DSML｜"), std::string::npos) << whole.reasoning << "\nfrom: " << text;
        EXPECT_EQ(whole.content.find("｜DSML｜"), std::string::npos) << whole.content << "\nfrom: " << text;
        for (const text::ToolCall& one : whole.tool_calls) {
            EXPECT_EQ(one.name.find("｜DSML｜"), std::string::npos) << text;
            EXPECT_TRUE(parse_json(one.arguments, "arguments").is_object()) << one.arguments << "\nfrom: " << text;
        }
        const std::vector<Delta> deltas = deltas_of(pieces_of(random, text), options, ending);
        const std::string expected = from_events(deltas_of({text}, options, ending));
        EXPECT_EQ(from_events(deltas), expected) << "pieces make a difference: " << text;
        EXPECT_EQ(from_chunks(sent(
                      *std::make_unique<ChatStream>(head(), call, Tally(1, 1), false, std::vector<int32_t>()), deltas)),
                  expected);
        MessageStream message(head(), call, Tally(1, 1));
        EXPECT_EQ(from_blocks(sent(message, deltas)), expected);
        ResponseStream response(head(), call, Tally(1, 1), request);
        sent(response, deltas);
        EXPECT_EQ(from_items(response.response()), expected);
    }
    ReplyHead head() const { return {"x", 7, &model, &tokenizer}; }

    ServedModel model;
    text::Tokenizer tokenizer = fake_tokenizer();
    ChatCall call;
    ResponseRequest request = read_response_request(parse_json(R"({"input": "x"})", ""));
};

TEST_F(Markup, NeverLeaksWhateverTheModelEmits) {
    Random random(20261122);
    for (int i = 0; i < 12000 && !HasFailure(); ++i) {
        text::ParserOptions options;
        options.revision = i % 3 == 0 ? text::PromptRevision::kV4_1 : text::PromptRevision::kV4;
        options.starts_in_reasoning = below(random, 2) != 0;
        options.parallel_tool_calls = below(random, 4) != 0;
        if (below(random, 4) == 0) options.stop = {"text, 1", "so\n"};
        const text::ToolMarkup& markup = text::tool_markup(options.revision);
        const std::string valid = valid_answer(random, markup);
        const std::string broken = i % 4 == 0 ? valid : mutated(random, valid, markup);
        check(broken, options, below(random, 2) != 0 ? text::Ending::kStop : text::Ending::kLength, random);
    }
}

TEST_F(Markup, StrayTagsAreDroppedAndTheTextAroundThemStays) {
    text::ParserOptions options;
    const auto content = [&](const std::string& text) { return text::parse_output(text, options).content; };
    EXPECT_EQ(content("a</｜DSML｜tool_calls>b"), "ab");
    EXPECT_EQ(content("a\n\n<｜DSML｜tool_cals>b"), "a\n\nb");
    EXPECT_EQ(content("a｜DSML｜ b"), "a") << "it ended inside of what may be a tag";
    EXPECT_EQ(content("a｜DSML｜ b\nc"), "a\nc");
    EXPECT_EQ(content("a<｜DSML｜" + std::string(100, 'x')), "a" + std::string(100, 'x')) << "no tag is that long";
    const text::ParsedOutput bare = text::parse_output(
        "hi\n\n<｜DSML｜invoke name=\"f\">\n<｜DSML｜parameter name=\"a\" string=\"true\">b</｜DSML｜parameter>\n"
        "</｜DSML｜invoke>\n",
        options);
    EXPECT_EQ(bare.content, "hi");
    ASSERT_EQ(bare.tool_calls.size(), 1u) << "a call without its block is a call";
    EXPECT_EQ(bare.tool_calls[0].arguments, R"({"a": "b"})");
    EXPECT_EQ(bare.reason, text::FinishReason::kToolCalls);
}

const std::string kTools =
    R"(, "tools": [{"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object",
                   "properties": {"city": {"type": "string"}}}}},
                   {"type": "function", "function": {"name": "ping"}}], "tool_choice": )";

TEST_F(ReplayServerTest, ForcedChoicesAreFollowed) {
    const std::string named = kTools + R"({"type": "function", "function": {"name": "get_weather"}})";
    const std::string call =
        "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"get_weather\">\n"
        "<｜DSML｜parameter name=\"city\" string=\"true\">Rome</｜DSML｜parameter>\n</｜DSML｜invoke>\n"
        "</｜DSML｜tool_calls>";
    for (const std::string thought : {"", "It asks for Rome.</think>"}) {
        const std::string thinking = thought.empty() ? R"(, "thinking": {"type": "disabled"})" : "";
        answer(thought + call);
        const Json choice = post_json("/v1/chat/completions", chat_body(named + thinking))["choices"][0];
        EXPECT_EQ(choice["finish_reason"], "tool_calls");
        EXPECT_TRUE(choice["message"]["content"].is_null());
        EXPECT_EQ(choice["message"]["tool_calls"][0]["function"]["name"], "get_weather");
        EXPECT_EQ(choice["message"]["tool_calls"][0]["function"]["arguments"], R"({"city": "Rome"})");
        EXPECT_TRUE(thought.empty() || choice["message"]["reasoning_content"] == "It asks for Rome.");
        const auto events =
            post_stream("/v1/chat/completions", chat_body(kTools + R"("required", "stream": true)" + thinking));
        EXPECT_EQ(events.back()["choices"][0]["finish_reason"], "tool_calls");
    }
    answer("plain" + kTwoCalls);
    const Json none =
        post_json("/v1/chat/completions", chat_body(kTools + R"("none", "thinking": {"type": "disabled"})"));
    EXPECT_EQ(none["choices"][0]["message"]["content"], "plain") << "nothing was offered: no markup";
    EXPECT_EQ(none["choices"][0]["finish_reason"], "stop");
    const Json one =
        post_json("/v1/chat/completions",
                  chat_body(kTools + R"("auto", "parallel_tool_calls": false, "thinking": {"type": "disabled"})"));
    EXPECT_EQ(one["choices"][0]["message"]["tool_calls"].size(), 1u);
}

}  // namespace
}  // namespace thermocline::server
