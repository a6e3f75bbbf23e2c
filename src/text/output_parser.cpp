#include "src/text/output_parser.h"

#include "src/text/prompt_deepseek_v4.h"

#include <algorithm>
#include <random>
#include <utility>

namespace thermocline::text {

namespace {

constexpr std::string_view kEos = "<｜end▁of▁sentence｜>";
constexpr std::string_view kDsml = "｜DSML｜";
constexpr std::string_view kSpace = " \t\r\n";
constexpr size_t kSlice = 4096;  // bytes looked at together: bounds the repeated searches over long pieces

// Places in text_marks_; the block openers stand last because parse_tool_calls leaves them out.
constexpr size_t kThinkEnd = 0;
constexpr size_t kThinkStart = 1;
// Places in block_marks_.
constexpr size_t kInvokeOpen = 0;
// Places in closer_marks_; argument_marks_ has the same ones behind kParameterOpen.
constexpr size_t kCloseInvoke = 0;
constexpr size_t kNextInvoke = 1;
constexpr size_t kParameterOpen = 0;
// Places in kKeyMarks.
constexpr size_t kKindFollows = 0;

const std::vector<std::string> kNameMarks = {"\">"};
const std::vector<std::string> kKeyMarks = {"\" string=\"", "\">"};

/// Length of the longest end of `text` that is a beginning of `mark`, at most `longest` bytes of it.
size_t overlap(std::string_view text, std::string_view mark, size_t longest) {
    for (size_t length = std::min(longest, text.size()); length > 0; --length)
        if (text.substr(text.size() - length) == mark.substr(0, length)) return length;
    return 0;
}

bool is_blank(std::string_view text) { return text.find_first_not_of(kSpace) == std::string_view::npos; }

}  // namespace

OutputParser::OutputParser(ParserOptions options)
    : options_(std::move(options)),
      stops_(options_.stop, options_.include_stop),
      state_(options_.starts_in_reasoning ? State::kReasoning : State::kContent) {
    const ToolMarkup& markup = tool_markup(options_.revision);
    const std::string block_open = "<" + markup.block + ">";
    const std::string block_close = "</" + markup.block + ">";
    const std::string invoke_open = "<" + markup.invoke + " name=\"";
    const std::string invoke_close = "</" + markup.invoke + ">";
    text_marks_ = {"</think>", "<think>"};
    if (options_.parse_tool_calls) text_marks_.insert(text_marks_.end(), {"\n\n" + block_open, block_open});
    block_marks_ = {invoke_open, block_close};
    closer_marks_ = {invoke_close, invoke_open, block_close};
    argument_marks_ = {"<" + markup.parameter + " name=\"", invoke_close, invoke_open, block_close};
    value_marks_ = {"</" + markup.parameter + ">"};
}

std::vector<OutputEvent> OutputParser::feed(std::string_view piece) {
    // The end-of-sentence text counts only as the very last thing: in the middle somebody wrote about it.
    std::string input = std::exchange(eos_tail_, "") + std::string(piece);
    const size_t held = overlap(input, kEos, kEos.size());
    eos_tail_ = input.substr(input.size() - held);
    input.resize(input.size() - held);
    take(input);
    return std::exchange(events_, {});
}

void OutputParser::take(std::string_view piece) {
    for (size_t start = 0; start < piece.size() && !stops_.matched(); start += kSlice) {
        pending_ += piece.substr(start, kSlice);
        while (!stops_.matched() && step()) {
        }
    }
}

bool OutputParser::step() {
    switch (state_) {
        case State::kReasoning:
        case State::kContent:
            return step_text();
        case State::kBlock:
            return step_block();
        case State::kName:
            return step_name();
        case State::kArguments:
            return step_arguments();
        case State::kObjectBody:
            return step_object_body();
        case State::kKey:
            return step_key();
        case State::kKind:
            return step_kind();
        case State::kString:
            return step_string();
        case State::kJson:
            break;
    }
    return step_json();
}

std::optional<OutputParser::Found> OutputParser::find(const Marks& marks) {
    std::optional<Found> first;
    size_t longest = 0;
    for (size_t i = 0; i < marks.size(); ++i) {
        longest = std::max(longest, marks[i].size());
        const size_t position = pending_.find(marks[i], scanned_);
        if (position != std::string::npos && (!first || position < first->position)) first = Found{position, i};
    }
    if (!first && pending_.size() >= longest) scanned_ = pending_.size() - longest + 1;
    return first;
}

size_t OutputParser::unfinished_mark(const Marks& marks) const {
    size_t longest = 0;
    for (const std::string& mark : marks) longest = std::max(longest, overlap(pending_, mark, mark.size() - 1));
    return longest;
}

std::string OutputParser::take_front(size_t size) {
    std::string front = pending_.substr(0, size);
    pending_.erase(0, size);
    scanned_ = 0;
    return front;
}

std::string OutputParser::take_until(const Found& found, const Marks& marks) {
    std::string text = take_front(found.position);
    take_front(marks[found.mark].size());
    return text;
}

// Reasoning and content.

bool OutputParser::step_text() {
    const auto found = find(text_marks_);
    if (!found) {
        show(take_front(pending_.size() - unfinished_mark(text_marks_)));
        return false;
    }
    show(take_until(*found, text_marks_));
    if (stops_.matched()) return false;
    if (found->mark == kThinkEnd || found->mark == kThinkStart)
        handle_think_mark(found->mark == kThinkEnd);
    else
        leave_section(State::kBlock);
    return true;
}

/// Rule 3: an opening mark counts where nothing but white space precedes it. A closing one ends reasoning; in content
/// it is dropped, unless reasoning was closed before and the answer has begun: then the model writes about it.
void OutputParser::handle_think_mark(bool closes) {
    const bool in_reasoning = state_ == State::kReasoning;
    if (closes && in_reasoning) {
        leave_section(State::kContent);
        reasoning_closed_ = true;
    } else if (closes) {
        if (reasoning_closed_ && !is_blank_) show(text_marks_[kThinkEnd]);
    } else if (!is_blank_ || (!in_reasoning && calls_begun_ > 0)) {
        show(text_marks_[kThinkStart]);
    } else if (!in_reasoning) {
        leave_section(State::kReasoning);
    }
}

/// Text of the section. White space in front of content waits for something visible: in front of a tool call it is
/// not content (rule 10).
void OutputParser::show(const std::string& text) {
    is_blank_ = is_blank_ && is_blank(text);
    if (state_ == State::kReasoning) return emit_text(text);
    blank_ += text;
    if (!is_blank_) emit_text(std::exchange(blank_, ""));
}

void OutputParser::emit_text(const std::string& text) {
    std::string shown = stops_.feed(text);
    const auto kind = state_ == State::kReasoning ? OutputEvent::Kind::kReasoning : OutputEvent::Kind::kContent;
    if (!shown.empty()) events_.push_back({kind, std::move(shown)});
}

void OutputParser::leave_section(State next) {
    blank_.clear();
    const auto kind = state_ == State::kReasoning ? OutputEvent::Kind::kReasoning : OutputEvent::Kind::kContent;
    if (std::string rest = stops_.flush(); !rest.empty()) events_.push_back({kind, std::move(rest)});
    state_ = next;
    is_blank_ = true;
}

// Tool calls.

bool OutputParser::step_block() {
    const auto found = find(block_marks_);
    if (!found) {
        take_front(pending_.size() - unfinished_mark(block_marks_));
        return false;
    }
    take_until(*found, block_marks_);
    state_ = found->mark == kInvokeOpen ? State::kName : State::kContent;
    return true;
}

bool OutputParser::step_name() {
    const auto found = find(kNameMarks);
    if (!found) return false;
    begin_call(take_until(*found, kNameMarks));
    state_ = State::kArguments;
    return true;
}

void OutputParser::begin_call(const std::string& name) {
    is_muted_ = !options_.parallel_tool_calls && calls_begun_ > 0;
    if (!is_muted_) ++calls_begun_;
    const auto tool = std::find_if(options_.tools.begin(), options_.tools.end(),
                                   [&name](const Tool& candidate) { return candidate.name == name; });
    arguments_ = CallArguments(tool == options_.tools.end() ? nullptr : &*tool);
    is_body_decided_ = false;
    emit_call(OutputEvent::Kind::kCallBegin, name);
}

bool OutputParser::step_arguments() {
    if (!is_body_decided_) {
        take_front(std::min(pending_.find_first_not_of(kSpace), pending_.size()));
        if (pending_.empty()) return false;
        is_body_decided_ = true;
        if (pending_[0] == '{') {
            state_ = State::kObjectBody;
            return true;
        }
    }
    const auto found = find(argument_marks_);
    if (!found) {
        take_front(pending_.size() - unfinished_mark(argument_marks_));
        return false;
    }
    take_until(*found, argument_marks_);
    if (found->mark == kParameterOpen)
        state_ = State::kKey;
    else
        close_call_at(found->mark - 1);
    return true;
}

bool OutputParser::step_object_body() {
    const auto found = find(closer_marks_);
    if (!found) return false;
    const std::string body = take_until(*found, closer_marks_);
    // What is no object goes out as the prompt encoder would read it back: one raw parameter.
    if (!arguments_.whole_object(body))
        emit_call(OutputEvent::Kind::kCallArguments, arguments_.json_value("arguments", body));
    close_call_at(found->mark);
    return true;
}

bool OutputParser::step_key() {
    const auto found = find(kKeyMarks);
    if (!found) return false;
    key_ = take_until(*found, kKeyMarks);
    state_ = found->mark == kKindFollows ? State::kKind : State::kJson;
    return true;
}

bool OutputParser::step_kind() {
    const auto found = find(kNameMarks);
    if (!found) return false;
    const bool is_string = take_until(*found, kNameMarks) == "true";
    if (is_string) emit_call(OutputEvent::Kind::kCallArguments, arguments_.open_string(key_));
    state_ = is_string ? State::kString : State::kJson;
    return true;
}

bool OutputParser::step_string() {
    const auto found = find(value_marks_);
    const std::string piece =
        found ? take_until(*found, value_marks_) : take_front(pending_.size() - unfinished_mark(value_marks_));
    emit_call(OutputEvent::Kind::kCallArguments, arguments_.string_piece(piece));
    if (!found) return false;
    emit_call(OutputEvent::Kind::kCallArguments, arguments_.close_string());
    state_ = State::kArguments;
    return true;
}

bool OutputParser::step_json() {
    const auto found = find(value_marks_);
    if (!found) return false;
    const std::string value = take_until(*found, value_marks_);
    emit_call(OutputEvent::Kind::kCallArguments, arguments_.json_value(key_, value));
    state_ = State::kArguments;
    return true;
}

void OutputParser::close_call_at(size_t closer) {
    end_call(true);
    if (closer == kCloseInvoke)
        state_ = State::kBlock;
    else
        state_ = closer == kNextInvoke ? State::kName : State::kContent;
}

void OutputParser::end_call(bool is_complete) {
    emit_call(OutputEvent::Kind::kCallArguments, arguments_.end());
    emit_call(OutputEvent::Kind::kCallEnd, "");
    if (is_complete && !is_muted_) ++calls_complete_;
    if (!is_complete) call_was_cut_ = true;
}

void OutputParser::emit_call(OutputEvent::Kind kind, std::string text) {
    if (is_muted_ || (kind == OutputEvent::Kind::kCallArguments && text.empty())) return;
    events_.push_back({kind, std::move(text), calls_begun_ - 1});
}

// The end.

std::vector<OutputEvent> OutputParser::finish(Ending ending) {
    if (eos_tail_ != kEos) take(eos_tail_);
    if (!stops_.matched()) {
        if (state_ == State::kReasoning || state_ == State::kContent) {
            // A held "<" is text; behind the DSML token there is no doubt that a tag had begun.
            if (pending_.find(kDsml) == std::string::npos) show(pending_);
            if (calls_begun_ == 0 && !blank_.empty()) emit_text(std::exchange(blank_, ""));
            leave_section(state_);
        } else {
            close_cut_call(ending);
        }
    }
    FinishReason reason = ending == Ending::kLength ? FinishReason::kLength : FinishReason::kStop;
    if (stops_.matched()) reason = FinishReason::kStop;
    const bool was_cut_by_limit = reason == FinishReason::kLength && call_was_cut_;
    if (calls_complete_ > 0 && !was_cut_by_limit) reason = FinishReason::kToolCalls;
    events_.push_back({OutputEvent::Kind::kFinish, "", -1, reason});
    return std::exchange(events_, {});
}

/// Rule 11: the output ended inside tool markup.
void OutputParser::close_cut_call(Ending ending) {
    switch (state_) {
        case State::kName:
            call_was_cut_ = true;
            break;
        case State::kString:
            if (pending_.find(kDsml) == std::string::npos)
                emit_call(OutputEvent::Kind::kCallArguments, arguments_.string_piece(pending_));
            emit_call(OutputEvent::Kind::kCallArguments, arguments_.close_string());
            end_call(false);
            break;
        // Every parameter is whole: only closing tags are missing.
        case State::kArguments:
            end_call(ending == Ending::kStop);
            break;
        case State::kObjectBody:
            end_call(arguments_.whole_object(pending_) && ending == Ending::kStop);
            break;
        case State::kKey:
        case State::kKind:
        case State::kJson:
            end_call(false);
            break;
        case State::kReasoning:
        case State::kContent:
        case State::kBlock:
            break;
    }
}

ParsedOutput join_events(const std::vector<OutputEvent>& events) {
    ParsedOutput output;
    for (const OutputEvent& event : events) {
        switch (event.kind) {
            case OutputEvent::Kind::kReasoning:
                output.reasoning += event.text;
                break;
            case OutputEvent::Kind::kContent:
                output.content += event.text;
                break;
            case OutputEvent::Kind::kCallBegin:
                output.tool_calls.push_back({"", event.text, ""});
                break;
            case OutputEvent::Kind::kCallArguments:
                output.tool_calls.back().arguments += event.text;
                break;
            case OutputEvent::Kind::kCallEnd:
                break;
            case OutputEvent::Kind::kFinish:
                output.reason = event.reason;
                break;
        }
    }
    return output;
}

ParsedOutput parse_output(std::string_view text, const ParserOptions& options, Ending ending) {
    OutputParser parser(options);
    std::vector<OutputEvent> events = parser.feed(text);
    for (OutputEvent& event : parser.finish(ending)) events.push_back(std::move(event));
    return join_events(events);
}

std::string make_call_id(std::string_view prefix) {
    static constexpr std::string_view kLetters = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    thread_local std::random_device entropy;
    std::uniform_int_distribution<size_t> pick(0, kLetters.size() - 1);
    std::string id(prefix);
    for (int i = 0; i < 24; ++i) id += kLetters[pick(entropy)];
    return id;
}

}  // namespace thermocline::text
