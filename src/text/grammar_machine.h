// Runs a Grammar over bytes. Where a text stands is a configuration: for every way to read it, the automaton states
// that the innermost rule may be in and the frame that says where to go on behind that rule. States of one frame are
// one set (an automaton made deterministic as it is used), calls of one rule at one place share one frame, and sets,
// frames and configurations are numbered, each different one once: equal situations have equal numbers, copying is
// free, and a step that was done before is a look-up.
//
// One thread at a time. Numbers are valid until clear(), which who uses the machine calls when size_bytes() has grown.
#pragma once

#include "src/text/grammar.h"

#include <array>
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <span>
#include <unordered_map>
#include <vector>

namespace thermocline::text {

/// Gives every different list of numbers one number, from 0 up.
class ListNumbers {
public:
    using List = std::vector<int32_t>;
    /// The number of a list, and whether it is new.
    std::pair<int32_t, bool> number(const List& list);
    const List& list(int32_t number) const { return *lists_[static_cast<size_t>(number)]; }
    size_t size() const { return lists_.size(); }
    size_t size_bytes() const { return bytes_; }
    void clear();

private:
    struct Hash {
        size_t operator()(const List& list) const;
    };
    std::unordered_map<List, int32_t, Hash> numbers_;
    std::vector<const List*> lists_;
    size_t bytes_ = 0;
};

class GrammarMachine {
public:
    static constexpr int32_t kDead = -1;
    static constexpr int32_t kBottom = 0;   // frame below the root rule: behind it nothing follows
    static constexpr int32_t kUnknown = 1;  // frame of local configurations: what follows is not looked at

    explicit GrammarMachine(std::shared_ptr<const Grammar> grammar);

    const Grammar& grammar() const { return *grammar_; }
    /// Where an empty text stands.
    int32_t start();
    /// Where it stands behind one more byte; kDead if no text goes on so.
    int32_t step(int32_t config, uint8_t byte);
    /// The text is one of the language.
    bool is_complete(int32_t config) const { return configs_[static_cast<size_t>(config)].complete; }
    /// Some byte may follow.
    bool goes_on(int32_t config) const { return !configs_[static_cast<size_t>(config)].items.empty(); }

    struct Item {
        int32_t set, frame;
    };
    std::span<const Item> items(int32_t config) const { return configs_[static_cast<size_t>(config)].items; }
    /// Where to go on when the rule of a frame is done.
    std::vector<Item> returns(int32_t frame) const;
    /// One set alone above kUnknown. With `leaves` it may be done at once.
    int32_t local(int32_t set, bool leaves);
    /// The configuration is behind the end of its kUnknown frame, in one of its ways.
    bool has_left(int32_t config) const { return configs_[static_cast<size_t>(config)].left; }
    /// A set from which the same texts of at most `length` bytes are possible: counted repetitions look alike far from
    /// their end.
    int32_t like(int32_t set, int32_t length);

    /// A set that is one state in a run of copies that may end behind each of them: the run, which state of a copy (0:
    /// the end of one), and how many more copies may begin.
    struct InRun {
        int32_t run, state, left;
    };
    std::optional<InRun> in_run(int32_t set) const;
    /// Sets that together are one; apart from each other where some state of it is in such a run.
    std::vector<int32_t> parts(int32_t set);
    /// What a run's copies take, from one of their states on: the next row by each byte, kDead: none. Row 0 is the end
    /// of a copy. No rows if one may be at an end and inside a copy at once, if other rules are called, or if finding
    /// them takes too long.
    struct CopySteps {
        std::vector<std::array<int32_t, 256>> rows;
        int32_t start = 0;
    };
    CopySteps copy_steps(int32_t run, int32_t state);
    /// What goes on behind a copy, alone, above kUnknown.
    int32_t behind_copies(int32_t run) { return local(set_of({grammar_->runs[static_cast<size_t>(run)].exit}), true); }

    size_t size_bytes() const;
    /// Grows by about one for every few nanoseconds spent on what was not known before; clear() leaves it.
    int64_t work() const { return work_; }
    void clear();

private:
    struct Call {
        int32_t rule;
        std::vector<int32_t> behind;  // states to go on in
    };
    struct Set {
        std::vector<Grammar::Edge> bytes;
        std::vector<Call> calls;
        bool accepts = false;
        bool only_accepts = false;  // nothing may come before the end of the rule
    };
    struct Config {
        std::vector<Item> items;  // of sets with byte edges
        bool complete = false, left = false;
        // Steps done: the first few in a list, then all in a table.
        uint8_t known = 0;
        std::array<uint8_t, 4> bytes{};
        std::array<int32_t, 4> targets{};
        std::unique_ptr<std::array<int32_t, 256>> table;
    };
    struct Place {
        int32_t frame, state;
        auto operator<=>(const Place&) const = default;
    };

    /// The run that a state belongs to; -1: none.
    int32_t run_of(int32_t state) const;
    std::optional<InRun> place_in_run(int32_t state) const;
    void begin_search();
    int32_t set_of(std::vector<int32_t> kernel);
    int32_t frame_of(const std::vector<Item>& returns);
    int32_t compute_step(const Config& from, uint8_t byte);
    int32_t settle(std::vector<Place> places, bool leaves);
    bool leave_rules(std::vector<Item>& items, std::vector<Place>& places, Config& config);
    void enter_rules(std::vector<Item>& items);
    std::vector<Item> grouped(std::vector<Place>& places);
    int32_t number(Config config);
    void remember(Config& config, uint8_t byte, int32_t target);

    std::shared_ptr<const Grammar> grammar_;
    std::unordered_map<int32_t, int32_t> run_begins_;  // state -> run, where nothing else begins
    ListNumbers set_numbers_, frame_numbers_, config_numbers_;
    std::deque<Set> sets_;
    std::deque<Config> configs_;
    size_t table_bytes_ = 0, edge_bytes_ = 0;
    int64_t work_ = 0;
    // The states met in search number search_.
    std::vector<uint32_t> met_;  // [states]
    uint32_t search_ = 0;
};

}  // namespace thermocline::text
