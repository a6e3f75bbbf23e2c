#include "src/text/stop_matcher.h"

#include <algorithm>
#include <utility>

namespace thermocline::text {

StopMatcher::Automaton::Automaton(std::string text) : stop(std::move(text)), border(stop.size(), 0) {
    for (size_t i = 1, length = 0; i < stop.size(); ++i) {
        while (length > 0 && stop[i] != stop[length]) length = border[length - 1];
        if (stop[i] == stop[length]) ++length;
        border[i] = length;
    }
}

bool StopMatcher::Automaton::advance(char next) {
    while (progress > 0 && stop[progress] != next) progress = border[progress - 1];
    if (stop[progress] == next) ++progress;
    return progress == stop.size();
}

StopMatcher::StopMatcher(std::vector<std::string> stops, bool include_match) : include_match_(include_match) {
    for (std::string& stop : stops)
        if (!stop.empty()) automata_.emplace_back(std::move(stop));
}

std::string StopMatcher::feed(std::string_view piece) {
    if (matched_) return "";
    const size_t already_seen = held_.size();
    held_ += piece;
    for (size_t i = already_seen; i < held_.size(); ++i) {
        const Automaton* winner = nullptr;
        for (Automaton& automaton : automata_)
            if (automaton.advance(held_[i]) && winner == nullptr) winner = &automaton;
        if (winner != nullptr) return cut_at(i + 1, *winner);
    }
    size_t keep = 0;
    for (const Automaton& automaton : automata_) keep = std::max(keep, automaton.progress);
    std::string shown = held_.substr(0, held_.size() - keep);
    held_.erase(0, shown.size());
    return shown;
}

std::string StopMatcher::cut_at(size_t end, const Automaton& winner) {
    matched_ = winner.stop;
    std::string shown = held_.substr(0, include_match_ ? end : end - winner.stop.size());
    held_.clear();
    return shown;
}

std::string StopMatcher::flush() {
    for (Automaton& automaton : automata_) automaton.progress = 0;
    return std::exchange(held_, std::string());
}

}  // namespace thermocline::text
