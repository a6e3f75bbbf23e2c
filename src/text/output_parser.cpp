#include "src/text/output_parser.h"

#include "src/text/prompt_deepseek_v4.h"

#include <algorithm>
#include <random>
#include <utility>

namespace thermocline::text {

namespace {

constexpr std::string_view kEos = "<｜end▁of▁sentence｜>";
constexpr std::string_view kDsml = "｜DSML｜", kBar = "｜";
constexpr std::string_view kSpace = " \t\r\n";
constexpr size_t kSlice = 4096;  // bytes looked at together: bounds the repeated searches over long pieces

// Places in text_marks_.
constexpr size_t kThinkEnd = 0;
constexpr size_t kThinkStart = 1;
constexpr size_t kBlankLineAndDsml = 2;
constexpr size_t kLongestTag = 96;  // bytes behind a DSML token that are looked at for the end of its tag

// The name of the block in V3.2. What is in it is text: the model quotes, it does not call (rule 9).
constexpr std::string_view kForeignTag = "function_calls>";
// Place in foreign_marks_.
constexpr size_t kForeignEnd = 0;
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
    const std::string block_close = "</" + markup.block + ">";
    const std::string invoke_open = "<" + markup.invoke + " name=\"";
    const std::string invoke_close = "</" + markup.invoke + ">";
    text_marks_ = {"</think>", "<think>"};
    const std::string dsml(kDsml);
    text_marks_.insert(text_marks_.end(), {"\n\n<" + dsml, "</" + dsml, "<" + dsml, dsml});
    block_tag_ = (markup.block + ">").substr(kDsml.size());
    invoke_tag_ = (markup.invoke + " name=\"").substr(kDsml.size());
    foreign_marks_ = {"</" + dsml + std::string(kForeignTag), "\n\n<" + markup.block + ">", "<" + markup.block + ">",
                      text_marks_[kThinkEnd]};
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
    if (is_foreign_) return step_foreign();
    const auto found = find(text_marks_);
    if (!found) {
        show(take_front(pending_.size() - unfinished_mark(text_marks_)));
        return false;
    }
    if (found->mark != kThinkEnd && found->mark != kThinkStart) return step_tag(found->position, found->mark);
    show(take_until(*found, text_marks_));
    if (!stops_.matched()) handle_think_mark(found->mark == kThinkEnd);
    return !stops_.matched();
}

/// A DSML token in text: the block opens, or a call without its block; V3.2's block is text; every other tag is
/// broken markup and comes out nowhere.
bool OutputParser::step_tag(size_t position, size_t mark) {
    show(take_front(position));
    if (stops_.matched()) return false;
    const std::string& opener = text_marks_[mark];
    const bool opens = opener.find("<｜") != std::string::npos;
    const std::string_view tag = std::string_view(pending_).substr(opener.size(), kLongestTag);
    const size_t end = tag.find_first_of("<>\n");
    const bool is_invoke = opens && tag.starts_with(invoke_tag_);
    if (end == std::string_view::npos && tag.size() < kLongestTag && !is_invoke) return false;
    if (opens && tag.starts_with(block_tag_)) {
        take_front(opener.size() + block_tag_.size());
        leave_section(State::kBlock);
    } else if (is_invoke) {
        take_front(opener.size() + invoke_tag_.size());
        leave_section(State::kName);
    } else if (opens && tag.starts_with(kForeignTag)) {
        is_foreign_ = true;
        show(take_front(opener.size() + kForeignTag.size()));
    } else {
        const size_t size = end == std::string_view::npos ? 0 : end + (tag[end] == '>' ? 1 : 0);
        take_front(opener.size() + size);
        if (mark == kBlankLineAndDsml) show("\n\n");
    }
    return true;
}

/// V3.2's block, up to its end. Where it was left open, this model's own block and the end of reasoning count again.
bool OutputParser::step_foreign() {
    const auto found = find(foreign_marks_);
    size_t shown = pending_.size() - unfinished_mark(foreign_marks_);
    if (found) shown = found->position + (found->mark == kForeignEnd ? foreign_marks_[kForeignEnd].size() : 0);
    show(take_front(shown));
    is_foreign_ = !found;
    return found && !stops_.matched();
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

/// Where a broken tag was taken out, what stood around it may read as a mark: it loses its last bar then.
std::string OutputParser::without_joined_mark(std::string text) {
    const std::string joined = shown_tail_ + text;
    const size_t at = joined.find(kDsml);
    if (at < shown_tail_.size() && !is_foreign_) {
        const size_t end = at + kDsml.size() - shown_tail_.size(), bar = std::min(end, kBar.size());
        text.erase(end - bar, bar);
    }
    shown_tail_ += text;
    shown_tail_.erase(0, shown_tail_.size() - std::min(shown_tail_.size(), kDsml.size() - 1));
    return text;
}

void OutputParser::emit_text(const std::string& text) {
    std::string shown = without_joined_mark(text);
    if (looks_for_stops_) shown = stops_.feed(shown);
    const auto kind = state_ == State::kReasoning ? OutputEvent::Kind::kReasoning : OutputEvent::Kind::kContent;
    if (!shown.empty()) events_.push_back({kind, std::move(shown)});
}

void OutputParser::leave_section(State next) {
    blank_.clear();
    shown_tail_.clear();
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
    // A name over several lines or with markup in it: its tag was broken, and what follows is no call.
    const bool is_broken =
        name.empty() || name.find_first_of("\n<>") != std::string::npos || name.find(kDsml) != std::string::npos;
    is_muted_ = is_broken || !options_.parse_tool_calls || (!options_.parallel_tool_calls && calls_begun_ > 0);
    if (!is_muted_) ++calls_begun_;
    const auto tool = std::find_if(options_.tools.begin(), options_.tools.end(),
                                   [&name](const Tool& candidate) { return candidate.name == name; });
    arguments_ = CallArguments(tool == options_.tools.end() ? nullptr : &*tool);
    is_body_decided_ = false;
    unsaid_name_ = name;
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
    std::string rest = arguments_.end();
    if (!is_complete && !unsaid_name_.empty() && arguments_.parameters() == 0 && rest == "{}") {
        // Cut before its first argument: "{}" would read as a whole call, so there is none.
        if (!is_muted_) --calls_begun_;
    } else {
        emit_call(OutputEvent::Kind::kCallArguments, std::move(rest));
        emit_call(OutputEvent::Kind::kCallEnd, "");
    }
    unsaid_name_.clear();
    if (is_complete && !is_muted_) ++calls_complete_;
    if (!is_complete) call_was_cut_ = true;
}

void OutputParser::emit_call(OutputEvent::Kind kind, std::string text) {
    if (is_muted_ || (kind == OutputEvent::Kind::kCallArguments && text.empty())) return;
    if (std::string name = std::exchange(unsaid_name_, ""); !name.empty())
        events_.push_back({OutputEvent::Kind::kCallBegin, std::move(name), calls_begun_ - 1});
    events_.push_back({kind, std::move(text), calls_begun_ - 1});
}

// The end.

std::vector<OutputEvent> OutputParser::finish(Ending ending) {
    if (eos_tail_ != kEos) take(eos_tail_);
    if (!stops_.matched()) {
        if (state_ == State::kReasoning || state_ == State::kContent) {
            // A held "<" is text; behind the DSML token there is no doubt that a tag had begun.
            if (is_foreign_ || pending_.find(kDsml) == std::string::npos) show(pending_);
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
