// Stop strings over streamed text: passes text on as soon as it can be no part of a stop string, and cuts at the first
// one. The result does not depend on how the text is cut into pieces. One object per stream, one thread; linear time
// whatever the stop strings are (one prefix automaton each). Source: serving-api.md section 8.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace thermocline::text {

class StopMatcher {
public:
    /// Empty stop strings are ignored (the API refuses them). `include_match` leaves the match itself in the text.
    explicit StopMatcher(std::vector<std::string> stops = {}, bool include_match = false);

    /// Takes the next piece and returns what may be shown now. Of several matches the one that ends first wins, ties
    /// go to the first in the list. After a match everything is swallowed.
    std::string feed(std::string_view piece);

    /// Returns what was held back, and forgets it: a stop string does not reach across this border.
    std::string flush();

    /// The stop string that matched.
    const std::optional<std::string>& matched() const { return matched_; }

private:
    struct Automaton {
        std::string stop;
        std::vector<size_t> border;  // [stop.size()] longest proper prefix of stop[..i] that is its suffix too
        size_t progress = 0;         // bytes of `stop` that the text ends with

        explicit Automaton(std::string text);
        bool advance(char next);
    };

    std::string cut_at(size_t end, const Automaton& winner);

    std::vector<Automaton> automata_;
    bool include_match_;
    std::string held_;  // bytes taken and not returned
    std::optional<std::string> matched_;
};

}  // namespace thermocline::text
