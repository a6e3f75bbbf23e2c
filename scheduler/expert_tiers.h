// Which memory holds the routed experts of a model. Host memory holds all of them while it has room, those on the card
// too: then any can move, and either side computes any. Those that it has no room for lie in slots of the card and
// nowhere else, the core: they stay there, and no pass may leave them to the CPU. What fits neither is read from the
// file whenever it is chosen. Pure; plan, place and the loader ask here.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace thermocline::scheduler {

/// Counts of experts.
struct ExpertRoom {
    int64_t experts = 0;     // of the model
    int64_t slots = 0;       // of the card; 0: no card, or none for them
    int64_t host = 0;        // that host memory has room for
    bool may_stream = true;  // others may pass through some of the slots in prompts
};

struct ExpertTiers {
    int64_t experts = 0;
    int64_t slots = 0;  // in use, on the card
    int64_t core = 0;   // of these, for experts that are in no other memory
    int64_t ring = 0;   // of these, for experts that come for one pass (gpu_memory.h)
    int64_t host = 0;   // experts in host memory
    int64_t file = 0;   // in no memory

    /// On the card at the start.
    int64_t resident() const { return slots - ring; }
};

/// For people: how many lie where, of so many bytes each.
std::string tiers_text(const ExpertTiers& tiers, int64_t expert_bytes);

/// The fewest experts in no memory, then the smallest core: what else there is may move.
ExpertTiers divide_experts(const ExpertRoom& room);
/// Of cards that have different layers each: host memory, with room for `host` experts in all, first has those that the
/// cards have no slots for, then of every card the same share of the others. ExpertRoom::host is not looked at.
std::vector<ExpertTiers> divide_experts(std::span<const ExpertRoom> cards, int64_t host);
/// All together.
ExpertTiers sum_of(std::span<const ExpertTiers> cards);

/// What to change where experts fit nowhere.
struct TierRemedy {
    int64_t expert_bytes = 0;
    int64_t host_budget = 0, card_budget = 0;  // with either alone all would fit; 0: with none
    bool readable = true;                      // the file has them as they are computed with
};
/// Empty: all fit, or the file may be read and can be.
std::string tier_refusal(const ExpertTiers& tiers, bool file_allowed, const TierRemedy& remedy);

}  // namespace thermocline::scheduler
