// Which tokens of a vocabulary may follow where a text stands in a grammar, as a bit mask; and a matcher, one for every
// text that is being made.
//
// Nearly all tokens are judged without looking at what lies around a rule: for a set of states the tokens that stay
// inside the rule are found once, by a walk over the vocabulary, and kept; tokens that run over the end of the rule are
// kept as open ends and judged, once more only once, for the set in which the caller goes on, and so on outwards. Where
// something may be repeated a limited number of times, a walk also counts the repetitions that each token begins: one
// walk serves all places, however many are left there (not if there are too many ways through one repetition: then
// each place has walks of its own). After a while a mask is put together from a few kept ones, or is itself kept
// (bench/grammar_bench measures it). A walk that was not done before takes up to some milliseconds.
//
// TokenMasks and the matchers that share it belong to one thread at a time (constructing a matcher touches nothing).
// What is kept is bounded by kKeptBytes: over it everything is forgotten, and matchers find their place again by
// reading their text once more. Time is bounded too: a grammar that asks for more than kWorkAtOnce, or in the long run
// for more than kWorkPerMask, is given up with an Error (.*a.{2000}, which must remember every a, is such a one).
#pragma once

#include "src/text/grammar_machine.h"
#include "src/text/token_trie.h"

#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

namespace thermocline::text {

class TokenMasks {
public:
    static constexpr size_t kKeptBytes = size_t{32} << 20;
    /// In units of GrammarMachine::work(), a few nanoseconds each.
    static constexpr int64_t kWorkAtOnce = 100'000'000, kWorkPerMask = 1'000'000, kPreparingWork = 20'000'000;

    /// Throws Error if the vocabulary lacks a token that the grammar names.
    TokenMasks(std::shared_ptr<const Grammar> grammar, std::shared_ptr<const TokenTrie> trie,
               size_t kept_bytes = kKeptBytes);

    const TokenTrie& trie() const { return *trie_; }
    GrammarMachine& machine() { return machine_; }
    /// The tokens that may follow; valid until the next call of any function. [trie().words()] Throws Error where the
    /// grammar takes too long.
    std::span<const uint64_t> mask(int32_t config);
    /// Finds the masks of the beginnings of texts, shorter ones first, until about kPreparingWork is done: what the
    /// first answers would wait for otherwise. Throws Error as mask() does.
    void prepare();
    /// What a token adds to the text; nothing if it can be no part of one.
    std::optional<std::string> bytes(int32_t id) const;
    /// Forgets if too much is kept. Configurations are void when the epoch has changed.
    void make_room();
    uint64_t epoch() const { return epoch_; }

private:
    /// The tokens at and below `node` go on behind the rule from byte `depth` on.
    struct OpenEnd {
        uint32_t node;
        uint16_t depth;
    };
    struct Kept {
        std::vector<uint64_t> bits;
        std::vector<OpenEnd> open;
        std::vector<std::pair<int32_t, std::unique_ptr<Kept>>> behind;  // by the set that goes on
        // In a run: its tokens, those first that begin few copies; how many begin at most 0, 1, ... of them; and what
        // the open ends begin.
        std::vector<int32_t> tokens;
        std::vector<size_t> within;
        std::vector<uint16_t> open_copies;
        bool counts() const { return !within.empty(); }
    };

    Kept& inside(int32_t set);
    Kept* inside_run(const GrammarMachine::InRun& place);
    bool walk_run(const GrammarMachine::InRun& place, Kept& out);
    void count(Kept& kept, std::span<const int32_t> tokens, uint16_t copies);
    void sort_tokens(Kept& kept);
    void add(const Kept& kept, int32_t left, std::span<uint64_t> mask);
    Kept& behind(Kept& kept, int32_t set);
    std::unique_ptr<Kept> new_kept();
    size_t new_kept_bytes() const { return sizeof(Kept) + trie_->words() * sizeof(uint64_t); }
    void walk(uint32_t begin, uint32_t end, Kept& out, std::optional<uint16_t> copies);
    bool combine(Kept& kept, int32_t left, int32_t frame, std::span<uint64_t> mask, int& budget);
    void fill(int32_t config, std::span<uint64_t> mask);
    void fill_slowly(int32_t config, std::span<uint64_t> mask);
    int64_t work() const { return machine_.work() + nodes_walked_; }
    void check_work() const;

    std::shared_ptr<const TokenTrie> trie_;
    GrammarMachine machine_;
    size_t kept_bytes_, mask_bytes_ = 0;
    uint64_t epoch_ = 0;
    std::vector<int32_t> named_;  // ids of the tokens that the grammar names
    std::unordered_map<int32_t, std::unique_ptr<Kept>> inside_;
    std::map<std::pair<int32_t, int32_t>, std::unique_ptr<Kept>> inside_runs_;  // by run and state; null: not countable
    std::unordered_map<int32_t, std::vector<uint64_t>> whole_;                  // masks of configurations met lately
    std::vector<int32_t> whole_order_;                                          // a ring of their keys
    size_t oldest_ = 0;                                                         // in it
    std::vector<uint64_t> spare_;                                               // the next one
    int64_t nodes_walked_ = 0;
    int64_t work_allowed_ = kWorkAtOnce;  // the work at which the grammar is given up
    // Of a walk: the configuration at every depth of the way, and the depths at which the rule may have ended.
    std::vector<int32_t> way_;
    std::vector<uint16_t> left_;
    std::vector<uint16_t> token_copies_;  // [vocab] of a walk that counts: begun by a token whose bit is set
    std::vector<uint64_t> few_;           // scratch of add()
};

class GrammarMatcher {
public:
    explicit GrammarMatcher(std::shared_ptr<TokenMasks> masks);

    /// The tokens that may follow. Valid until the next call of any function of a matcher that shares the TokenMasks.
    /// Throws Error as TokenMasks::mask does.
    std::span<const uint64_t> mask();
    /// Takes a token; false, and nothing changes, if it may not follow.
    bool accept(int32_t id);
    /// Takes the last `tokens` back.
    void roll_back(size_t tokens);
    /// The text is one of the language.
    bool is_complete();
    /// Something may follow.
    bool goes_on();

private:
    int32_t config();

    std::shared_ptr<TokenMasks> masks_;
    static constexpr uint64_t kLost = ~uint64_t{0};

    uint64_t epoch_ = kLost;  // of config_
    int32_t config_ = GrammarMachine::kDead;
    std::string text_;           // bytes taken
    std::vector<size_t> sizes_;  // of text_ before every token
};

}  // namespace thermocline::text
