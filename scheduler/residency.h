// Which experts should lie in the slots of a card, judged by what was chosen lately (hybrid-engine.md 4.6): every
// expert has a score that grows when it is chosen and halves with every half-life; an expert that was chosen but was
// not there may take the slot of one whose score is clearly less. Pure: knows no card and moves nothing. One thread.
#pragma once

#include "scheduler/placement.h"

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace thermocline::scheduler {

struct ResidencyRules {
    enum class Policy : uint8_t { kAdaptive, kStatic, kLru };
    Policy policy = Policy::kAdaptive;
    /// Of scores, in tokens. hybrid-engine.md 4.6 has 512, which loses to LRU on traces of the demo model; 16 to 32
    /// win.
    double half_life = 32;
    double margin = 0.2;          ///< by so much a newcomer's score must be larger
    double prompt_weight = 0.25;  ///< of a token of a prompt
    double most_per_prompt = 8;   ///< tokens that one pass over a prompt can count for an expert
    int64_t least_per_set = 4;    ///< slots that the experts of a layer keep
};
/// Of --residency: adaptive, static, lru. Throws Error for any other name.
ResidencyRules::Policy residency_policy(const std::string& name);

/// Of routed experts on a card, since the start.
struct ResidencyCounters {
    int64_t choices = 0, hits = 0;  // experts that rows chose; of these on the card
    int64_t changes = 0;            // experts that were brought to the card
    int64_t bytes = 0;              // by this
};

class Residency {
public:
    /// `sizes`: experts of each set; `resident`: those that lie in slots 0, 1, ...
    Residency(std::span<const int64_t> sizes, std::span<const ExpertName> resident, const ResidencyRules& rules);

    /// Of a pass over `rows` tokens, before its note() calls.
    void begin_pass(int64_t rows, bool is_prompt);
    /// What was chosen of one set: [rows * top_k].
    void note(ops::ExpertsId set, std::span<const int32_t> ids);

    struct Change {
        int32_t slot;
        ExpertName in, out;
    };
    /// Up to `most` changes that are worth their transfer, the best first. They count as made: who was in a slot is
    /// gone at once, and who comes is there when arrived() says so.
    std::vector<Change> choose(int64_t most);
    void arrived(int32_t slot);

    /// Of all choices so far, those of experts that were there.
    int64_t hits() const { return hits_; }
    int64_t choices() const { return choices_; }

private:
    struct Expert {
        double score = 0;         // times inflation_
        int64_t last_pass = -10;  // that chose it
        int32_t slot = -1;
        bool arrived = false;
        bool twice = false;  // chosen again since it came to be known
    };
    struct Slot {
        ExpertName name;
        bool busy = false;  // its expert is on the way
    };
    Expert& at(ExpertName name) { return sets_[static_cast<size_t>(name.set)][static_cast<size_t>(name.expert)]; }
    double score_in(int32_t slot) { return at(slots_[static_cast<size_t>(slot)].name).score; }
    void collect_victims();
    int32_t take_victim(ExpertName newcomer);

    ResidencyRules rules_;
    std::vector<std::vector<Expert>> sets_;
    std::vector<int64_t> slots_of_set_;
    std::vector<Slot> slots_;
    std::vector<ExpertName> missed_;             // in this pass, each once
    std::vector<std::vector<int32_t>> victims_;  // scratch of choose(): slots of each set, the least score last
    std::vector<double> counted_;                // scratch of note(), [experts of the largest set]
    double inflation_ = 1, weight_ = 1;
    int64_t pass_ = 0, hits_ = 0, choices_ = 0;
};

}  // namespace thermocline::scheduler
