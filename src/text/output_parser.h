// Takes the text that a DeepSeek-V4 model generates apart, while it streams: reasoning, content, tool calls.
//
// Feed it decoded text (special tokens kept, end-of-sentence removed by id or left at the very end, never half a
// UTF-8 character) in pieces of any size: the events, joined, do not depend on where the pieces are cut. Markup
// never comes out; text that could still turn out to be markup or a stop string is held back, at most one mark's
// length (white space in front of content, tags and JSON values are held until it is clear what they are).
// One object per generated sequence, one thread. Never fails: bad markup is read by the tolerant rules.
// Source: prompt-encoding.md section 7; stop strings: serving-api.md section 8.
#pragma once

#include "src/text/call_arguments.h"
#include "src/text/chat.h"
#include "src/text/stop_matcher.h"

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace thermocline::text {

enum class FinishReason { kStop, kLength, kToolCalls };

struct OutputEvent {
    enum class Kind { kReasoning, kContent, kCallBegin, kCallArguments, kCallEnd, kFinish };
    Kind kind;
    std::string text;                           // the delta; of kCallBegin the tool's whole name
    int call_index = -1;                        // call events only; counts from 0 over the whole output
    FinishReason reason = FinishReason::kStop;  // kFinish only
};

struct ParserOptions {
    PromptRevision revision = PromptRevision::kV4;
    bool starts_in_reasoning = false;  // Prompt::starts_in_reasoning
    std::vector<Tool> tools;           // their schemas decide about wrapped arguments
    bool parse_tool_calls = true;      // false: none was asked for, and none comes out
    bool parallel_tool_calls = true;   // false: only the first call comes out
    std::vector<std::string> stop;     // cut reasoning and content, never a call
    bool include_stop = false;
};

/// Why the engine ended the sequence: the model or a stop id did, or the token limit.
enum class Ending { kStop, kLength };

class OutputParser {
public:
    explicit OutputParser(ParserOptions options);
    OutputParser(const OutputParser&) = delete;  // the open call points into the tools
    OutputParser& operator=(const OutputParser&) = delete;
    OutputParser(OutputParser&&) = default;
    OutputParser& operator=(OutputParser&&) = default;

    /// Takes the next piece. Empty after a stop string matched.
    std::vector<OutputEvent> feed(std::string_view piece);

    /// Ends the output: releases what was held, closes a call that was cut, says the reason. Call it once.
    std::vector<OutputEvent> finish(Ending ending);

    /// While false, stop strings are ordinary text.
    void look_for_stops(bool looks) { looks_for_stops_ = looks; }

    /// The stop string that ended the output, if one did: the engine should stop the sequence.
    const std::optional<std::string>& stopped_by() const { return stops_.matched(); }

private:
    enum class State { kReasoning, kContent, kBlock, kName, kArguments, kObjectBody, kKey, kKind, kString, kJson };
    using Marks = std::vector<std::string>;
    struct Found {
        size_t position;
        size_t mark;  // index into the list that was searched
    };

    // Each step_* understands the front of pending_; false: it needs more text.
    bool step();
    bool step_text();
    bool step_tag(size_t position, size_t mark);
    bool step_foreign();
    bool step_block();
    bool step_name();
    bool step_arguments();
    bool step_object_body();
    bool step_key();
    bool step_kind();
    bool step_string();
    bool step_json();

    void take(std::string_view piece);
    std::optional<Found> find(const Marks& marks);
    size_t unfinished_mark(const Marks& marks) const;
    std::string take_front(size_t size);
    /// Takes everything up to the mark, and drops the mark.
    std::string take_until(const Found& found, const Marks& marks);

    void handle_think_mark(bool closes);
    void show(const std::string& text);
    std::string without_joined_mark(std::string text);
    void emit_text(const std::string& text);
    void leave_section(State next);

    void begin_call(const std::string& name);
    void emit_call(OutputEvent::Kind kind, std::string text);
    void end_call(bool is_complete);
    /// Closes the call and goes on behind the mark: </invoke>, the next <invoke or </tool_calls> (rule 4).
    void close_call_at(size_t closer);
    void close_cut_call(Ending ending);

    ParserOptions options_;
    StopMatcher stops_;
    std::string block_tag_, invoke_tag_;  // what stands behind the DSML token of an opening tag
    Marks text_marks_, foreign_marks_, block_marks_, argument_marks_, closer_marks_, value_marks_;

    State state_;
    bool looks_for_stops_ = true;
    std::string eos_tail_;  // end of the input that may be the end-of-sentence text
    std::string pending_;   // bytes not yet understood
    size_t scanned_ = 0;    // front of pending_ in which no mark begins
    std::vector<OutputEvent> events_;

    std::string shown_tail_;  // end of the section's text so far, a little less than a mark
    std::string blank_;       // white space in front of content, until it is known what follows
    bool is_blank_ = true;    // only white space in this section yet
    bool reasoning_closed_ = false;
    bool is_foreign_ = false;  // inside a block of V3.2's name, which is text

    int calls_begun_ = 0;
    int calls_complete_ = 0;
    bool call_was_cut_ = false;
    std::string unsaid_name_;       // of a call that has begun, until there is something of its arguments
    bool is_muted_ = false;         // a call beyond the one that parallel_tool_calls = false allows
    bool is_body_decided_ = false;  // whether the invoke holds parameters or one JSON object
    CallArguments arguments_;
    std::string key_;
};

struct ParsedOutput {
    std::string reasoning;
    std::string content;
    std::vector<ToolCall> tool_calls;  // without ids
    FinishReason reason = FinishReason::kStop;
};

/// Joins events, in their order, into whole texts.
ParsedOutput join_events(const std::vector<OutputEvent>& events);

/// Parses a whole output at once.
ParsedOutput parse_output(std::string_view text, const ParserOptions& options, Ending ending = Ending::kStop);

/// A new id for a call: `prefix` and 24 random letters and digits.
std::string make_call_id(std::string_view prefix = "call_");

}  // namespace thermocline::text
