// The parse goldens, whole and cut at every place, the tolerant rules of prompt-encoding.md section 7.1 beyond them,
// the shape of the event stream, and stop strings.
#include "src/text/output_parser.h"

#include "src/base/error.h"
#include "src/base/file.h"
#include "src/base/json.h"

#include <gtest/gtest.h>
#include <set>

namespace thermocline::text {
namespace {

using Kind = OutputEvent::Kind;

const std::string kOpen = "\n\n<｜DSML｜tool_calls>\n";
const std::string kClose = "</｜DSML｜tool_calls>";
const std::string kInvokeEnd = "</｜DSML｜invoke>\n";

std::string invoke(const std::string& name) { return "<｜DSML｜invoke name=\"" + name + "\">\n"; }
std::string parameter(const std::string& key, const std::string& value, bool is_string = true) {
    return "<｜DSML｜parameter name=\"" + key + "\" string=\"" + (is_string ? "true" : "false") + "\">" + value +
           "</｜DSML｜parameter>\n";
}
std::string one_call(const std::string& name, const std::string& body) {
    return kOpen + invoke(name) + body + kInvokeEnd + kClose;
}

std::vector<OutputEvent> events_of(const std::vector<std::string>& pieces, const ParserOptions& options,
                                   Ending ending = Ending::kStop) {
    OutputParser parser(options);
    std::vector<OutputEvent> events;
    for (const std::string& piece : pieces)
        for (OutputEvent& event : parser.feed(piece)) events.push_back(std::move(event));
    for (OutputEvent& event : parser.finish(ending)) events.push_back(std::move(event));
    return events;
}

std::vector<std::string> slices(const std::string& text, size_t size) {
    std::vector<std::string> out;
    for (size_t i = 0; i < text.size(); i += size) out.push_back(text.substr(i, size));
    return out;
}

/// One line that holds everything a client would see.
std::string summary(const ParsedOutput& output) {
    Json out = {{"reasoning", output.reasoning}, {"content", output.content}, {"reason", int(output.reason)}};
    for (const ToolCall& call : output.tool_calls) out["calls"].push_back({call.name, call.arguments});
    return dump_json(out);
}

/// Parses the text whole, in pieces of every size and cut in two at every place; all must agree.
ParsedOutput parse(const std::string& text, const ParserOptions& options = {}, Ending ending = Ending::kStop) {
    const ParsedOutput whole = parse_output(text, options, ending);
    for (size_t size = 1; size <= text.size(); ++size)
        EXPECT_EQ(summary(join_events(events_of(slices(text, size), options, ending))), summary(whole)) << size;
    for (size_t cut = 0; cut <= text.size(); ++cut)
        EXPECT_EQ(summary(join_events(events_of({text.substr(0, cut), text.substr(cut)}, options, ending))),
                  summary(whole))
            << cut;
    return whole;
}

ParserOptions thinking() {
    ParserOptions options;
    options.starts_in_reasoning = true;
    return options;
}

TEST(OutputParser, EveryGoldenWholeAndInPieces) {
    const std::string path = THERMOCLINE_SOURCE_DIR "/tests/golden/parse-deepseek-v4.json";
    const Json cases = parse_json(read_text(path), path);
    ASSERT_EQ(cases.size(), 22u);
    for (const Json& c : cases) {
        SCOPED_TRACE(c["name"].get<std::string>());
        ParserOptions options;
        options.starts_in_reasoning = c["thinking_mode"] == "thinking";
        const ParsedOutput output = parse(c["text"], options);
        EXPECT_EQ(output.reasoning, c["reasoning"].get<std::string>());
        EXPECT_EQ(output.content, c["content"].get<std::string>());
        ASSERT_EQ(output.tool_calls.size(), c["tool_calls"].size());
        for (size_t i = 0; i < output.tool_calls.size(); ++i) {
            EXPECT_EQ(output.tool_calls[i].name, c["tool_calls"][i]["name"].get<std::string>());
            EXPECT_EQ(output.tool_calls[i].arguments, c["tool_calls"][i]["arguments"].get<std::string>());
        }
    }
}

TEST(OutputParser, SpacedMarkupOfV41) {
    ParserOptions options = thinking();
    options.revision = PromptRevision::kV4_1;
    const ParsedOutput output = parse(
        "why</think>Ok.\n\n<｜DSML｜ calls>\n<｜DSML｜ invoke name=\"f\">\n<｜DSML｜ parameter name=\"n\" "
        "string=\"false\">2</｜DSML｜ parameter>\n</｜DSML｜ invoke>\n</｜DSML｜ calls><｜end▁of▁sentence｜>",
        options);
    EXPECT_EQ(output.reasoning, "why");
    EXPECT_EQ(output.content, "Ok.");
    ASSERT_EQ(output.tool_calls.size(), 1u);
    EXPECT_EQ(output.tool_calls[0].arguments, "{\"n\": 2}");
    EXPECT_EQ(output.reason, FinishReason::kToolCalls);
}

TEST(OutputParser, ThinkMarksOutOfPlace) {
    EXPECT_EQ(parse("<think>a</think>b").reasoning, "a");
    EXPECT_EQ(parse("\n<think>a</think>b").content, "b");
    EXPECT_EQ(parse("x <think> y").content, "x <think> y");
    EXPECT_EQ(parse("x</think>y").content, "xy");
    EXPECT_EQ(parse("a</think></think>b", thinking()).content, "b");
    EXPECT_EQ(parse("a</think>the </think> mark", thinking()).content, "the </think> mark");
    EXPECT_EQ(parse("I see <think> here</think>b", thinking()).reasoning, "I see <think> here");
}

TEST(OutputParser, TwoBlocksAndTextBetweenAndAfter) {
    const std::string call = one_call("f", parameter("a", "b"));
    const ParsedOutput output = parse("one" + call + "\n\ntwo" + call + "\n three");
    EXPECT_EQ(output.content, "one\n\ntwo\n three");
    EXPECT_EQ(output.tool_calls.size(), 2u);
    EXPECT_EQ(parse(" \n" + call + "\n" + call + "\n").content, "");
    EXPECT_EQ(parse(" \n").content, " \n");
}

TEST(OutputParser, MissingInvokeEndBeforeTheNextInvoke) {
    const ParsedOutput output =
        parse(kOpen + invoke("f") + parameter("a", "b") + invoke("g") + parameter("c", "1", false) + kClose);
    ASSERT_EQ(output.tool_calls.size(), 2u);
    EXPECT_EQ(output.tool_calls[0].arguments, "{\"a\": \"b\"}");
    EXPECT_EQ(output.tool_calls[1].name, "g");
    EXPECT_EQ(output.tool_calls[1].arguments, "{\"c\": 1}");
}

TEST(OutputParser, BodyThatIsOneObject) {
    EXPECT_EQ(parse(one_call("f", "{\"a\": [1,2]}\n")).tool_calls.at(0).arguments, "{\"a\": [1,2]}");
    EXPECT_EQ(parse(one_call("f", "{nonsense}\n")).tool_calls.at(0).arguments, "{\"arguments\": \"{nonsense}\\n\"}");
}

TEST(OutputParser, BlockOfV32LeftOpenHidesNothing) {
    const std::string foreign = "So: <｜DSML｜function_calls>\n" + invoke("quoted");
    const ParsedOutput called = parse(foreign + one_call("ping", ""));
    EXPECT_EQ(called.content, foreign);
    ASSERT_EQ(called.tool_calls.size(), 1u);
    EXPECT_EQ(called.tool_calls[0].name, "ping");

    const ParsedOutput thought = parse(foreign + "</think>Done.", thinking());
    EXPECT_EQ(thought.reasoning, foreign);
    EXPECT_EQ(thought.content, "Done.");
}

TEST(OutputParser, WrappedArgumentsFollowTheSchema) {
    ParserOptions options;
    options.tools = {{"f", parse_json(R"({"name":"f","parameters":{"properties":{"city":{}}}})", "tool")},
                     {"g", parse_json(R"({"name":"g","parameters":{"properties":{"input":{}}}})", "tool")}};
    const std::string rome = "{\"city\": \"Rome\"}";
    EXPECT_EQ(parse(one_call("f", parameter("input", rome, false)), options).tool_calls.at(0).arguments, rome);
    EXPECT_EQ(parse(one_call("f", parameter("arguments", rome)), options).tool_calls.at(0).arguments, rome);
    EXPECT_EQ(parse(one_call("g", parameter("input", rome, false)), options).tool_calls.at(0).arguments,
              "{\"input\": " + rome + "}");
    EXPECT_EQ(parse(one_call("f", parameter("input", "{\"x\": 1}", false)), options).tool_calls.at(0).arguments,
              "{\"input\": {\"x\": 1}}");
    EXPECT_EQ(
        parse(one_call("f", parameter("input", rome, false) + parameter("b", "c")), options).tool_calls.at(0).arguments,
        "{\"input\": " + rome + ", \"b\": \"c\"}");
}

TEST(OutputParser, MissingStringAttribute) {
    const std::string bare = "<｜DSML｜parameter name=\"a\">5</｜DSML｜parameter>\n";
    EXPECT_EQ(parse(one_call("f", bare)).tool_calls.at(0).arguments, "{\"a\": 5}");
}

TEST(OutputParser, CutAtEveryByteGivesValidJsonAndNoMarkup) {
    const std::string text = "because</think>Let me look. 1 < 2" + kOpen + invoke("f") +
                             parameter("a", "x < y\n\"q\"") + parameter("n", "{\"k\": [1, 2]}", false) + kInvokeEnd +
                             invoke("g") + kInvokeEnd + kClose;
    for (size_t cut = 0; cut <= text.size(); ++cut) {
        const std::string head = text.substr(0, cut);
        if (cut < text.size() && (static_cast<unsigned char>(text[cut]) & 0xC0) == 0x80) continue;
        const ParsedOutput output = parse_output(head, thinking(), Ending::kLength);
        for (const ToolCall& call : output.tool_calls)
            EXPECT_TRUE(parse_json(call.arguments, "arguments").is_object()) << head;
        for (const std::string& seen : {output.reasoning, output.content})
            EXPECT_EQ(seen.find("DSML｜"), std::string::npos) << head;
    }
}

TEST(OutputParser, ACallCutBeforeItsFirstArgumentIsNone) {
    const std::string whole = kOpen + invoke("f") + parameter("a", "1", false) + kInvokeEnd;
    const std::string begun = invoke("g") + "<｜DSML｜parameter name=\"b\" string=\"false\">[1, ";
    for (const std::string& cut : {invoke("g"), begun}) {
        EXPECT_TRUE(parse(kOpen + cut, {}, Ending::kLength).tool_calls.empty()) << cut;
        const ParsedOutput two = parse(whole + cut, {}, Ending::kLength);
        ASSERT_EQ(two.tool_calls.size(), 1u) << "no {} that would read as a call without arguments";
        EXPECT_EQ(two.tool_calls[0].arguments, R"({"a": 1})");
        EXPECT_EQ(two.reason, FinishReason::kLength);
    }
    const ParsedOutput later =
        parse(kOpen + invoke("f") + parameter("a", "x") + begun.substr(invoke("g").size()), {}, Ending::kLength);
    EXPECT_EQ(later.tool_calls.at(0).arguments, R"({"a": "x"})") << "what came is whole JSON";
    EXPECT_EQ(parse(one_call("f", "\n")).tool_calls.at(0).arguments, "{}") << "a call may have no arguments";
}

TEST(OutputParser, FinishReasons) {
    const std::string whole = one_call("f", parameter("a", "b"));
    EXPECT_EQ(parse("x").reason, FinishReason::kStop);
    EXPECT_EQ(parse("x", {}, Ending::kLength).reason, FinishReason::kLength);
    EXPECT_EQ(parse(whole).reason, FinishReason::kToolCalls);
    EXPECT_EQ(parse(whole, {}, Ending::kLength).reason, FinishReason::kToolCalls);
    const std::string cut = kOpen + invoke("f") + "<｜DSML｜parameter name=\"a\" string=\"true\">par";
    EXPECT_EQ(parse(cut, {}, Ending::kLength).reason, FinishReason::kLength);
    EXPECT_EQ(parse(cut, {}, Ending::kLength).tool_calls.at(0).arguments, "{\"a\": \"par\"}");
    EXPECT_TRUE(parse(kOpen + "<｜DSML｜invoke name=\"ab", {}, Ending::kLength).tool_calls.empty());
    EXPECT_EQ(parse(kOpen + invoke("f") + parameter("a", "b")).reason, FinishReason::kToolCalls);
}

TEST(OutputParser, OnlyOneCallWhereParallelCallsAreOff) {
    ParserOptions options;
    options.parallel_tool_calls = false;
    const std::string call = one_call("f", parameter("a", "b"));
    EXPECT_EQ(parse(call + call, options).tool_calls.size(), 1u);
}

/// A model whose history shows calls may write one where none is offered: for a title, say.
TEST(OutputParser, CallsAreLeftOutWhereTheyAreOff) {
    ParserOptions options;
    options.parse_tool_calls = false;
    const ParsedOutput parsed = parse("A title" + one_call("f", parameter("a", "b")) + " or two", options);
    EXPECT_EQ(parsed.content, "A title or two");
    EXPECT_TRUE(parsed.tool_calls.empty());
    EXPECT_EQ(parsed.reason, FinishReason::kStop);
}

TEST(OutputParser, EndOfSentenceTextCountsOnlyAtTheEnd) {
    const std::string eos = "<｜end▁of▁sentence｜>";
    EXPECT_EQ(parse("the " + eos + " token" + eos).content, "the " + eos + " token");
    EXPECT_EQ(parse("half" + eos, thinking()).reasoning, "half");
    EXPECT_EQ(parse("a <").content, "a <");
    EXPECT_EQ(parse("a <｜").content, "a <｜");
}

TEST(OutputParser, EventsComeInOrderAndEarly) {
    const std::string text = "why</think>Ok." + one_call("f", parameter("a", "bc") + parameter("n", "1", false));
    const std::vector<OutputEvent> events = events_of({text}, thinking());
    std::vector<Kind> kinds;
    for (const OutputEvent& event : events)
        if (kinds.empty() || kinds.back() != event.kind) kinds.push_back(event.kind);
    EXPECT_EQ(kinds, (std::vector<Kind>{Kind::kReasoning, Kind::kContent, Kind::kCallBegin, Kind::kCallArguments,
                                        Kind::kCallEnd, Kind::kFinish}));
    EXPECT_EQ(events[2].text, "f");
    EXPECT_EQ(events[2].call_index, 0);

    OutputParser parser(thinking());
    EXPECT_EQ(join_events(parser.feed("wh")).reasoning, "wh");
    EXPECT_TRUE(parser.feed("</thi").empty());
    EXPECT_EQ(join_events(parser.feed("nk>Hi\n")).content, "Hi");
    EXPECT_EQ(join_events(parser.feed("there")).content, "\nthere");
    parser.feed(kOpen + invoke("f") + "<｜DSML｜parameter name=\"a\" string=\"true\">");
    const auto value = parser.feed("2>&1 \"");
    ASSERT_EQ(value.size(), 1u);
    EXPECT_EQ(value[0].text, "2>&1 \\\"");
}

TEST(OutputParser, StopStringsCutTextButNoCalls) {
    ParserOptions options = thinking();
    options.stop = {"STOP", "b</x>"};
    EXPECT_EQ(parse("why</think>abcSTOPdef", options).content, "abc");
    EXPECT_EQ(parse("wSTOPhy</think>abc", options).reasoning, "w");
    EXPECT_EQ(parse("wST</think>OP", options).content, "OP");
    EXPECT_EQ(parse("wST</think>OP", options).reasoning, "wST");
    const ParsedOutput call = parse("</think>ST" + one_call("f", parameter("a", "STOP")), options);
    EXPECT_EQ(call.content, "ST");
    EXPECT_EQ(call.tool_calls.at(0).arguments, "{\"a\": \"STOP\"}");

    OutputParser parser(options);
    parser.feed("</think>a b</x> c");
    EXPECT_EQ(parser.stopped_by(), "b</x>");
    EXPECT_TRUE(parser.feed("more").empty());
    EXPECT_EQ(join_events(parser.finish(Ending::kLength)).reason, FinishReason::kStop);
}

std::string shown_until_stop(const std::vector<std::string>& stops, const std::vector<std::string>& pieces,
                             bool include = false) {
    StopMatcher matcher(stops, include);
    std::string shown;
    for (const std::string& piece : pieces) shown += matcher.feed(piece);
    return shown + (matcher.matched() ? "[" + *matcher.matched() + "]" : matcher.flush());
}

TEST(StopMatcher, EarliestEndWinsThenTheListOrder) {
    EXPECT_EQ(shown_until_stop({"abcd", "bc"}, {"xabcdx"}), "xa[bc]");
    EXPECT_EQ(shown_until_stop({"abc", "bc"}, {"xabcx"}), "x[abc]");
    EXPECT_EQ(shown_until_stop({"bc", "abc"}, {"xabcx"}), "xa[bc]");
    EXPECT_EQ(shown_until_stop({"bc"}, {"xabcx"}, true), "xabc[bc]");
    EXPECT_EQ(shown_until_stop({"aab"}, {"aaab"}), "a[aab]");
    EXPECT_EQ(shown_until_stop({"", "zz"}, {"azbz"}), "azbz");
}

TEST(StopMatcher, HoldsBackOnlyWhatCouldBegin) {
    StopMatcher matcher({"</tool>"});
    EXPECT_EQ(matcher.feed("a </to"), "a ");
    EXPECT_EQ(matcher.feed("p <"), "</top ");
    EXPECT_EQ(matcher.flush(), "<");
}

TEST(StopMatcher, AnyCutGivesTheSame) {
    const std::vector<std::string> stops = {"abab", "baa\n", "é"};
    for (const std::string text : {"aababaab", "abaaba\nbaa\n", "caf\xC3\xA8 caf\xC3\xA9 x", "ababab"})
        for (size_t size = 1; size <= text.size(); ++size)
            EXPECT_EQ(shown_until_stop(stops, slices(text, size)), shown_until_stop(stops, {text})) << text;
}

TEST(CallId, IsFreshAndWellFormed) {
    std::set<std::string> ids;
    for (int i = 0; i < 100; ++i) {
        const std::string id = make_call_id();
        EXPECT_EQ(id.size(), 29u);
        EXPECT_EQ(id.substr(0, 5), "call_");
        ids.insert(id);
    }
    EXPECT_EQ(ids.size(), 100u);
}

}  // namespace
}  // namespace thermocline::text
