#include "src/engine/output.h"

#include <algorithm>
#include <utility>

namespace thermocline::engine {
namespace {

TextEvents content_event(std::string text) {
    TextEvents events;
    if (!text.empty()) events.push_back({text::OutputEvent::Kind::kContent, std::move(text)});
    return events;
}

void append(TextEvents& to, TextEvents from) {
    to.insert(to.end(), std::make_move_iterator(from.begin()), std::make_move_iterator(from.end()));
}

}  // namespace

ChatOutput::ChatOutput(const text::Tokenizer& tokenizer, text::ParserOptions options, bool skip_special,
                       int64_t min_tokens)
    : tokenizer_(tokenizer),
      detokenizer_(tokenizer),
      parser_(options),
      skip_special_(skip_special),
      min_tokens_(min_tokens),
      think_end_(tokenizer.token_id("</think>")),
      in_reasoning_(options.starts_in_reasoning) {
    for (const char* mark : {"<think>", "</think>", "｜DSML｜"})
        if (const auto id = tokenizer.token_id(mark)) marks_.push_back(*id);
}

bool ChatOutput::is_hidden(int32_t id) const {
    return skip_special_ && tokenizer_.is_special(id) && std::find(marks_.begin(), marks_.end(), id) == marks_.end();
}

TextEvents ChatOutput::push(int32_t id) {
    if (in_reasoning_) ++reasoning_tokens_;
    parser_.look_for_stops(++tokens_ > min_tokens_);
    if (id == think_end_) in_reasoning_ = false;
    if (is_hidden(id)) return {};
    TextEvents events = parser_.feed(detokenizer_.push(id));
    for (const text::OutputEvent& event : events)
        if (event.kind == text::OutputEvent::Kind::kCallBegin) in_reasoning_ = false;
    return events;
}

TextEvents ChatOutput::finish(text::Ending ending) {
    TextEvents events = parser_.feed(detokenizer_.flush());
    append(events, parser_.finish(ending));
    return events;
}

PlainOutput::PlainOutput(const text::Tokenizer& tokenizer, std::vector<std::string> stop, bool include_stop,
                         bool skip_special, int64_t min_tokens)
    : detokenizer_(tokenizer, skip_special), stops_(std::move(stop), include_stop), min_tokens_(min_tokens) {}

TextEvents PlainOutput::push(int32_t id) {
    const std::string text = detokenizer_.push(id);
    return content_event(++tokens_ <= min_tokens_ ? text : stops_.feed(text));
}

TextEvents PlainOutput::finish(text::Ending ending) {
    // An unfinished character becomes U+FFFD, which no stop string can want: it goes out unless a match came before.
    const std::string rest = detokenizer_.flush();
    TextEvents events = content_event(stops_.matched() ? "" : stops_.feed(rest) + stops_.flush());
    text::OutputEvent end{text::OutputEvent::Kind::kFinish, ""};
    const bool by_length = ending == text::Ending::kLength && !stops_.matched();
    end.reason = by_length ? text::FinishReason::kLength : text::FinishReason::kStop;
    events.push_back(std::move(end));
    return events;
}

}  // namespace thermocline::engine
