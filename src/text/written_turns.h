// Answers as the model wrote them, so that later prompts show them so again: clients send them back parsed, and
// rendered or tokenized anew they may become other tokens than those that were drawn, behind which the prefix cache has
// nothing (prompt-encoding.md section 11). An answer is found by the text in front of it and by what it says. Bounded:
// the one that was not used for the longest time goes first. Any thread.
#pragma once

#include "src/text/output_parser.h"

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <unordered_map>
#include <vector>

namespace thermocline::text {

struct WrittenTurn {
    std::string text;          // from behind the assistant header to the end-of-sentence token
    std::vector<int32_t> ids;  // of the text
    ParsedOutput said;         // what a client was shown of it
};

class WrittenTurns {
public:
    /// Holds at most about `budget` bytes; 0: nothing.
    explicit WrittenTurns(int64_t budget) : budget_(budget) {}

    /// `context`: a hash of all text in front of the turn.
    void keep(uint64_t context, WrittenTurn turn);
    /// The turn of that context that says what the message says, but for white space at the ends of its texts and the
    /// spelling of JSON; null: none. Without `with_reasoning` the turn must have none, the message's does not count.
    std::shared_ptr<const WrittenTurn> find(uint64_t context, const Message& shown, bool with_reasoning);

    int64_t bytes() const;

private:
    struct Entry {
        uint64_t context;
        std::shared_ptr<const WrittenTurn> turn;
        int64_t bytes;
    };
    using Entries = std::list<Entry>;

    const int64_t budget_;
    mutable std::mutex mutex_;  // guards what follows
    Entries entries_;           // the last used first
    std::unordered_multimap<uint64_t, Entries::iterator> by_context_;
    int64_t bytes_ = 0;
};

/// Where a prompt's encoder finds turns. `seed` begins every context: turns of other seeds are not found.
struct WrittenHistory {
    WrittenTurns* turns = nullptr;  // null: nowhere
    uint64_t seed = 0;
};

/// A turn is fit to stand in a history as it is: calls and reasoning are closed, and nothing but they, the content and
/// the reasoning is in it.
bool is_well_formed(const WrittenTurn& turn, PromptRevision revision, bool starts_in_reasoning);

}  // namespace thermocline::text
