// Output parser and python JSON: the first bytes of the input choose the options and the places where the rest is cut.
// Parsing the text whole and in these pieces must give the same; no markup may come out; arguments must be JSON.
// Text that is JSON is taken as a chat request too: it renders in every revision or is refused with an Error.
#include "src/base/error.h"
#include "src/text/chat_request.h"
#include "src/text/output_parser.h"
#include "src/text/prompt_deepseek_v4.h"
#include "src/text/python_json.h"

#include <cstddef>
#include <cstdint>
#include <cstdlib>

using namespace thermocline;
using namespace thermocline::text;

namespace {

void require(bool condition) {
    if (!condition) std::abort();
}

bool contains(const std::string& text, const std::string& part) { return text.find(part) != std::string::npos; }

ParserOptions options_from(uint8_t bits) {
    ParserOptions options;
    options.starts_in_reasoning = bits & 1;
    if (bits & 2) options.revision = PromptRevision::kV4_1;
    options.parallel_tool_calls = !(bits & 4);
    if (bits & 8) options.stop = {"\n\n", "STOP", "<think>x"};
    options.include_stop = bits & 16;
    if (bits & 32)
        options.tools = {{"f", parse_json(R"({"name":"f","parameters":{"properties":{"a":{},"input":{}}}})", "tool")}};
    return options;
}

/// JSON apart from its encoding: the parser passes bytes on as they come.
std::string as_ascii(std::string text) {
    for (char& c : text)
        if (static_cast<unsigned char>(c) >= 0x80) c = 'x';
    return text;
}

void check_events(const std::vector<OutputEvent>& events, const ParserOptions& options) {
    const std::string opener = "<" + tool_markup(options.revision).block + ">";
    int open_call = -1;
    for (const OutputEvent& event : events) {
        const bool is_text = event.kind == OutputEvent::Kind::kReasoning || event.kind == OutputEvent::Kind::kContent;
        if (is_text) require(!contains(event.text, opener) && open_call == -1 && !event.text.empty());
        if (event.kind == OutputEvent::Kind::kReasoning) require(!contains(event.text, "</think>"));
        if (event.kind == OutputEvent::Kind::kCallBegin) {
            require(open_call == -1);
            open_call = event.call_index;
        }
        if (event.kind == OutputEvent::Kind::kCallArguments) require(event.call_index == open_call);
        if (event.kind == OutputEvent::Kind::kCallEnd) open_call = -1;
    }
    require(open_call == -1 && events.back().kind == OutputEvent::Kind::kFinish);
}

bool same(const ParsedOutput& a, const ParsedOutput& b) {
    if (a.reasoning != b.reasoning || a.content != b.content || a.reason != b.reason) return false;
    if (a.tool_calls.size() != b.tool_calls.size()) return false;
    for (size_t i = 0; i < a.tool_calls.size(); ++i)
        if (a.tool_calls[i].name != b.tool_calls[i].name || a.tool_calls[i].arguments != b.tool_calls[i].arguments)
            return false;
    return true;
}

void append(std::vector<OutputEvent>& to, std::vector<OutputEvent> from) {
    for (OutputEvent& event : from) to.push_back(std::move(event));
}

void check_request(const std::string& text) {
    for (const auto revision : {PromptRevision::kV4, PromptRevision::kV4_0731, PromptRevision::kV4_1}) {
        try {
            const Chat chat = chat_from_openai(parse_json(text, "request"), revision, {});
            require(render_deepseek_v4(chat.messages, chat.options).text.starts_with("<｜begin▁of▁sentence｜>"));
        } catch (const Error&) {
        }
    }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
    constexpr size_t kHead = 9;  // options, then eight piece lengths used in turn
    if (size < kHead) return 0;
    const ParserOptions options = options_from(data[0]);
    const Ending ending = data[0] & 64 ? Ending::kLength : Ending::kStop;
    const std::string text(reinterpret_cast<const char*>(data) + kHead, size - kHead);

    std::vector<OutputEvent> whole;
    OutputParser at_once(options);
    append(whole, at_once.feed(text));
    append(whole, at_once.finish(ending));
    check_events(whole, options);

    std::vector<OutputEvent> split;
    OutputParser in_pieces(options);
    for (size_t at = 0, turn = 0; at < text.size(); ++turn) {
        const size_t length = 1 + data[1 + turn % 8] % 64;
        append(split, in_pieces.feed(std::string_view(text).substr(at, length)));
        at += length;
    }
    append(split, in_pieces.finish(ending));

    const ParsedOutput output = join_events(whole);
    require(same(output, join_events(split)));
    require(at_once.stopped_by() == in_pieces.stopped_by());
    for (const ToolCall& call : output.tool_calls) require(Json::accept(as_ascii(call.arguments)));

    check_request(text);
    if (const auto spelled = python_json_text(text)) require(python_json_text(*spelled) == spelled);
    return 0;
}
