#include "scheduler/expert_tiers.h"

#include "scheduler/gpu_memory.h"
#include "scheduler/printed.h"

#include <algorithm>

namespace thermocline::scheduler {

ExpertTiers divide_experts(const ExpertRoom& room) {
    ExpertTiers tiers{.experts = room.experts, .slots = std::min(room.slots, room.experts)};
    tiers.host = std::min(room.host, room.experts);
    const int64_t homeless = tiers.experts - tiers.host;
    tiers.core = std::min(homeless, tiers.slots);
    tiers.file = homeless - tiers.core;
    if (room.may_stream) tiers.ring = ring_slots(tiers.slots - tiers.core, tiers.host);
    return tiers;
}

std::vector<ExpertTiers> divide_experts(std::span<const ExpertRoom> cards, int64_t host) {
    std::vector<ExpertRoom> rooms(cards.begin(), cards.end());
    int64_t in_slots = 0;
    for (ExpertRoom& room : rooms) {
        room.slots = std::min(room.slots, room.experts);
        room.host = std::min(host, room.experts - room.slots);
        host -= room.host;
        in_slots += room.slots;
    }
    for (ExpertRoom& room : rooms) {  // what is left, by their slots
        const int64_t share = in_slots == 0 ? 0 : std::min(room.slots, host * room.slots / in_slots);
        in_slots -= room.slots;
        host -= share;
        room.host += share;
    }
    std::vector<ExpertTiers> tiers;
    for (const ExpertRoom& room : rooms) tiers.push_back(divide_experts(room));
    return tiers;
}

ExpertTiers sum_of(std::span<const ExpertTiers> cards) {
    ExpertTiers sum;
    for (const ExpertTiers& one : cards) {
        sum.experts += one.experts;
        sum.slots += one.slots;
        sum.core += one.core;
        sum.ring += one.ring;
        sum.host += one.host;
        sum.file += one.file;
    }
    return sum;
}

std::string tiers_text(const ExpertTiers& tiers, int64_t expert_bytes) {
    std::string text;
    const auto add = [&](const char* where, int64_t count, const char* detail) {
        if (count == 0) return;
        text +=
            printed("%-27s %8.3f GB  %lld of %lld experts%s\n", where, static_cast<double>(count * expert_bytes) * 1e-9,
                    static_cast<long long>(count), static_cast<long long>(tiers.experts), detail);
    };
    add("on the card alone", tiers.core, ": they stay there");
    add("on the card, in host memory", tiers.slots - tiers.core, "");
    add("in host memory alone", tiers.host - (tiers.slots - tiers.core), "");
    add("in no memory", tiers.file, ": read from the file whenever they are chosen");
    return text;
}

std::string tier_refusal(const ExpertTiers& tiers, bool file_allowed, const TierRemedy& remedy) {
    if (tiers.file == 0 || (file_allowed && remedy.readable)) return "";
    const auto gb = [&](int64_t bytes) { return printed("%.1f GB", static_cast<double>(bytes) * 1e-9); };
    const auto mib = [](int64_t bytes) {
        return printed("%lldMiB at least", static_cast<long long>((bytes + (1 << 20) - 1) >> 20));
    };
    std::string text = "routed experts of " + gb(tiers.experts * remedy.expert_bytes) + ": the card has room for " +
                       gb(tiers.slots * remedy.expert_bytes) + ", host memory for " +
                       gb(tiers.host * remedy.expert_bytes) + ", " + gb(tiers.file * remedy.expert_bytes) +
                       " fit nowhere; use ";
    if (file_allowed)
        text +=
            "a model that `thermocline convert` has written, or --weights-in-place: of those --allow-file-experts can "
            "read; "
            "or ";
    if (remedy.card_budget > 0) text += "--gpu-memory " + mib(remedy.card_budget) + ", or ";
    text += remedy.host_budget > 0 ? "--host-memory " + mib(remedy.host_budget) : "a smaller format of the weights";
    if (!file_allowed) text += ", or --allow-file-experts, which reads them from the file whenever they are chosen";
    return text;
}

}  // namespace thermocline::scheduler
