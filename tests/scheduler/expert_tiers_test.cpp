// Which memory holds the routed experts, against all other divisions of small cases.
#include "scheduler/expert_tiers.h"

#include "scheduler/gpu_memory.h"

#include <gtest/gtest.h>
#include <optional>
#include <tuple>

namespace thermocline::scheduler {
namespace {

/// The best of all: least in no memory, then the smallest core.
std::tuple<int64_t, int64_t> best(const ExpertRoom& room) {
    std::optional<std::tuple<int64_t, int64_t>> found;
    for (int64_t core = 0; core <= std::min(room.slots, room.experts); ++core)
        for (int64_t host = 0; host <= std::min(room.host, room.experts - core); ++host) {
            const std::tuple division(room.experts - core - host, core);
            if (!found || division < *found) found = division;
        }
    return *found;
}

TEST(ExpertTiers, AreTheBestOfAllDivisions) {
    for (int64_t experts = 1; experts <= 24; ++experts)
        for (int64_t slots = 0; slots <= experts + 3; ++slots)
            for (int64_t host = 0; host <= experts + 3; ++host)
                for (const bool streams : {false, true}) {
                    const ExpertTiers tiers =
                        divide_experts({.experts = experts, .slots = slots, .host = host, .may_stream = streams});
                    SCOPED_TRACE(testing::Message() << experts << " experts, " << slots << " slots, " << host);
                    EXPECT_EQ(std::tuple(tiers.file, tiers.core), best({experts, slots, host}));
                    EXPECT_EQ(tiers.core + tiers.host + tiers.file, experts);  // every expert has one home
                    EXPECT_LE(tiers.slots, slots);
                    EXPECT_LE(tiers.host, host);
                    EXPECT_LE(tiers.core + tiers.ring, tiers.slots);
                    EXPECT_TRUE(tiers.file == 0 || tiers.core == tiers.slots);  // nobody moves where one has no home
                    EXPECT_TRUE(streams || tiers.ring == 0);
                    EXPECT_TRUE(!streams || host < experts || tiers.ring == ring_slots(tiers.slots, experts));
                    EXPECT_TRUE(tiers.ring == 0 || tiers.slots - tiers.core >= kLeastStreamed);
                }
}

TEST(ExpertTiers, WhatFitsNowhereIsRefusedWithWhatToChange) {
    const ExpertTiers tiers = divide_experts({.experts = 100, .slots = 30, .host = 50});
    EXPECT_EQ(tiers.file, 20);
    const TierRemedy remedy{.expert_bytes = 1 << 20, .host_budget = 90 << 20, .card_budget = 70 << 20};
    const std::string refusal = tier_refusal(tiers, false, remedy);
    for (const char* part : {"0.1 GB", "--gpu-memory 70MiB at least", "--host-memory 90MiB at least",
                             "--allow-file-experts, which reads them"})
        EXPECT_NE(refusal.find(part), std::string::npos) << refusal;
    EXPECT_EQ(tier_refusal(tiers, true, remedy), "");
    EXPECT_EQ(tier_refusal(divide_experts({100, 30, 70}), false, remedy), "");
    TierRemedy packed_only = remedy;
    packed_only.readable = false;
    packed_only.card_budget = 0;
    const std::string cannot = tier_refusal(tiers, true, packed_only);
    EXPECT_NE(cannot.find("thermocline convert"), std::string::npos) << cannot;
    EXPECT_EQ(cannot.find("--gpu-memory"), std::string::npos) << cannot;
    const std::string text = tiers_text(tiers, 1'000'000'000);
    EXPECT_NE(text.find("on the card alone             30.000 GB  30 of 100"), std::string::npos) << text;
    EXPECT_NE(text.find("in no memory                  20.000 GB  20 of 100"), std::string::npos) << text;
    EXPECT_EQ(text.find("on the card, in host memory"), std::string::npos) << text;
}

}  // namespace
}  // namespace thermocline::scheduler
