#include "src/server/recorded_output.h"

#include <algorithm>
#include <utility>

namespace thermocline::server {
namespace {

/// Added tokens that belong to an answer; any other one in it (a model that writes <｜User｜>) is not for a history.
bool is_markup(const std::string& token) { return token == "</think>" || token == "｜DSML｜"; }

}  // namespace

RecordedOutput::RecordedOutput(std::unique_ptr<engine::Output> output, const text::Tokenizer& tokenizer,
                               TurnRecord record)
    : output_(std::move(output)), tokenizer_(tokenizer), record_(std::move(record)) {}

engine::TextEvents RecordedOutput::push(int32_t id) {
    turn_.ids.push_back(id);
    turn_.text += tokenizer_.token_bytes(id);
    engine::TextEvents events = output_->push(id);
    events_.insert(events_.end(), events.begin(), events.end());
    return events;
}

engine::TextEvents RecordedOutput::finish(text::Ending ending) {
    engine::TextEvents events = output_->finish(ending);
    events_.insert(events_.end(), events.begin(), events.end());
    turn_.said = text::join_events(events_);
    const bool is_plain = std::all_of(turn_.ids.begin(), turn_.ids.end(), [&](int32_t id) {
        return !tokenizer_.is_added(id) || is_markup(tokenizer_.token_bytes(id));
    });
    // What a stop string cut off is in the tokens, not in what the client saw.
    if (is_plain && !output_->stopped_by() &&
        text::is_well_formed(turn_, record_.revision, record_.starts_in_reasoning))
        record_.turns->keep(record_.context, std::move(turn_));
    return events;
}

}  // namespace thermocline::server
