// Which experts should lie in the slots of a card, judged by what was chosen lately (hybrid-engine.md 4.6): every
// expert has a score that grows when it is chosen and halves with every half-life; an expert that was chosen but was
// not there may take the slot of one whose score is clearly less. Pure: knows no card and moves nothing. One thread.
#pragma once

#include "scheduler/placement.h"

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace thermocline::scheduler {

struct ResidencyRules {
    enum class Policy : uint8_t { kAdaptive, kStatic, kLru };
    Policy policy = Policy::kAdaptive;
    /// Of scores, in tokens. hybrid-engine.md 4.6 has 512; on four recorded classes of text and on a trace of the
    /// statistics published of V4-Flash 8 is never far behind the better of LRU and static (bench/results), 32 is.
    double half_life = 8;
    double margin = 0.2;          ///< by so much a newcomer's score must be larger
    double prompt_weight = 0.25;  ///< of a token of a prompt
    double most_per_prompt = 8;   ///< tokens that one pass can count for an expert
    int64_t least_per_set = 4;    ///< slots that the experts of a layer keep; fewer where there are few
    bool tries = false;           ///< whether they pay is tried, and they are left out if not (residency_trial.h)
    bool balances = false;        ///< some of them are left to the CPU where a layer ends earlier so (R2)
    bool fixed = false;           ///< none ever takes the place of another, not even by order
    int64_t core = 0;             ///< the first of them lie nowhere else (expert_tiers.h): they stay
    int64_t ring = 0;             ///< slots besides theirs, through which others pass in prompts (expert_stream.h)
    enum class Streaming : uint8_t { kNone, kShared, kAll };
    Streaming streaming = Streaming::kNone;  ///< what passes: what is faster so than by the CPU, or everything
};
/// Of --residency: adaptive, static, lru. Throws Error for any other name.
ResidencyRules::Policy residency_policy(const std::string& name);

/// Of experts brought near before they were chosen (expert_prefetch.h), since the start.
struct Prefetched {
    bool on = false;                  // it is done
    double gain = 0;                  // how much longer a pass without took when that was last tried; 0: not tried yet
    int64_t foretold = 0, right = 0;  // choices foretold by gates; of these chosen
    int64_t warmed_bytes = 0;         // brought into caches of the CPU

    /// Of another card that plays other layers: as ResidencyCounters.
    Prefetched& operator+=(const Prefetched& other);
};

/// Of routed experts on a card, since the start.
struct ResidencyCounters {
    int64_t choices = 0, hits = 0;          // experts that rows chose; of these on the card
    int64_t changes = 0;                    // experts that were brought to the card
    int64_t bytes = 0;                      // by this
    int64_t core = 0;                       // experts that are in no other memory
    int64_t streamed = 0;                   // experts that came in passes over prompts,
    int64_t adopted = 0;                    // and of these stayed;
    int64_t ahead = 0, in_vain = 0;         // before it was known who is chosen, and of these were not
    int64_t card_reads = 0, cpu_reads = 0;  // experts that either side computed for the rows of a pass
    int64_t expert_bytes = 0;               // of one
    int64_t layers_played = 0;
    double link_seconds = 0;     // that the streamed ones kept the link busy, by its measured speed,
    double phase_seconds = 0;    // of these: passes, from the first of them to the last arrival
    double fill_seconds = 0;     // that the other experts that were brought kept the link busy
    double cpu_seconds = 0;      // that the CPU computed experts in these
    double exposed_seconds = 0;  // of this, what the card's own experts cannot have hidden, by their measured speed
    /// What trials said of passes that decode, and of longer ones.
    struct Tried {
        bool on = true;   // the experts on the card are used
        double gain = 0;  // ResidencyTrial::gain()
    };
    Tried decode = {}, prompts = {};
    Prefetched prefetched = {};
    int64_t asked_bytes = 0;  // of experts in files, before they were computed

    /// Of another card that plays other layers of the same model: they do when any does, and gain as the most does.
    ResidencyCounters& operator+=(const ResidencyCounters& other);
};

class Residency {
public:
    /// `sizes`: experts of each set; `resident`: those that lie in slots 0, 1, ..., of which the first rules.core stay.
    Residency(std::span<const int64_t> sizes, std::span<const ExpertName> resident, const ResidencyRules& rules);

    /// Of a pass over `rows` tokens, before its note() calls.
    void begin_pass(int64_t rows, bool is_prompt);
    /// Scores as after a long text of which each expert was chosen by this share of the tokens: [sets][experts].
    void expect(const std::vector<std::vector<double>>& shares);
    /// These shall be there, whatever they replace but pinned ones and each other: the next changes bring them. Instead
    /// of those that were wanted before.
    void want(const std::vector<ExpertName>& names);
    /// Is wanted before all others and stays once it is there, until it is released; at most as many as there are slots
    /// (CHECK).
    void pin(ExpertName name, bool pinned);
    /// What was chosen of one set: [rows * top_k]. If that is more than rules.most_per_prompt for an expert, all count
    /// less by as much.
    void note(ops::ExpertsId set, std::span<const int32_t> ids);

    struct Change {
        int32_t slot;
        ExpertName in, out;
    };
    /// Up to `most` changes that are worth their transfer, the best first. They count as made: who was in a slot is
    /// gone at once, and who comes is there when arrived() says so.
    std::vector<Change> choose(int64_t most);
    /// What has come for a pass, and was noted in it, may stay: in place of the one of its set that is worth least, if
    /// that is clearly less, and by a change like those of choose(). It costs no transfer, so once is enough.
    std::optional<Change> adopt(ExpertName in);
    /// How many of `pairs` choices of a set each of its experts can expect, by the scores; without any, all the same.
    std::vector<double> likely(ops::ExpertsId set, double pairs) const;
    /// Wanted ones that no change has brought yet.
    int64_t waiting() const { return std::ssize(wanted_); }
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
        bool pinned = false, wanted = false;
    };
    struct Slot {
        ExpertName name;
        bool busy = false;  // its expert is on the way
    };
    Expert& at(ExpertName name) { return sets_[static_cast<size_t>(name.set)][static_cast<size_t>(name.expert)]; }
    double score_in(int32_t slot) { return at(slots_[static_cast<size_t>(slot)].name).score; }
    void collect_victims();
    double beaten_by(ExpertName newcomer);
    int32_t take_victim(ExpertName newcomer);
    int32_t victim_of_wanted();
    Change replace(int32_t slot, ExpertName in);

    ResidencyRules rules_;
    std::vector<std::vector<Expert>> sets_;
    std::vector<int64_t> slots_of_set_;
    std::vector<Slot> slots_;
    std::vector<ExpertName> wanted_;             // still to be brought, the first last
    std::vector<ExpertName> missed_;             // in this pass, each once
    std::vector<std::vector<int32_t>> victims_;  // scratch of choose(): slots of each set, the least score last
    std::vector<int64_t> counted_;               // scratch of note(), [experts of the largest set]
    double inflation_ = 1, weight_ = 1;
    bool chosen_stay_ = true;
    int64_t pass_ = 0, hits_ = 0, choices_ = 0, pins_ = 0;
};

}  // namespace thermocline::scheduler
