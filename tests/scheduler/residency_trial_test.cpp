#include "scheduler/residency_trial.h"

#include <gtest/gtest.h>

namespace thermocline::scheduler {
namespace {

/// Plays passes of so many rows that take `with` or `without` seconds; how many were played with.
struct Played {
    ResidencyTrial trial;
    int64_t changes = 0;

    int64_t passes(int64_t count, double with, double without, int64_t rows = 1) {
        int64_t used = 0;
        for (int64_t i = 0; i < count; ++i) {
            const bool use = trial.use(rows);
            used += use;
            const double noise = i % 7 == 0 ? 1.5 : 1.0;
            changes += trial.took(noise * (use ? with : without));
        }
        return used;
    }
};

TEST(ResidencyTrial, WhatPaysStaysAndIsTriedSeldom) {
    Played played;
    EXPECT_GT(played.passes(20'000, 1.0, 1.4), 19'900);
    EXPECT_TRUE(played.trial.on());
    EXPECT_EQ(played.changes, 0);
    EXPECT_NEAR(played.trial.gain(), 0.4, 1e-9);
}

TEST(ResidencyTrial, WhatDoesNotIsLeftOutAndComesBack) {
    Played played;
    EXPECT_LT(played.passes(1000, 1.0, 0.8), 150);
    EXPECT_FALSE(played.trial.on());
    EXPECT_NEAR(played.trial.gain(), -0.2, 1e-9);
    EXPECT_EQ(played.changes, 1);
    played.passes(20'000, 1.0, 1.3);
    EXPECT_TRUE(played.trial.on());
    EXPECT_EQ(played.changes, 2);
}

TEST(ResidencyTrial, BetweenTheBoundsNothingChanges) {
    Played played;
    for (const double without : {0.98, 1.02, 0.98}) played.passes(3000, 1.0, without);
    EXPECT_TRUE(played.trial.on());
    played.passes(3000, 1.0, 0.9);
    played.passes(20'000, 1.0, 0.9);
    EXPECT_FALSE(played.trial.on());
    for (const double without : {1.02, 0.98}) played.passes(20'000, 1.0, without);
    EXPECT_FALSE(played.trial.on());
    EXPECT_EQ(played.changes, 1);
}

TEST(ResidencyTrial, PassesOfOtherSizesAreNotCompared) {
    Played played;
    for (int i = 0; i < 2000; ++i) {  // large ones would say the contrary
        played.passes(1, 1.0, 0.5, 1);
        played.passes(1, 10.0, 50.0, 7);
    }
    EXPECT_NE(played.trial.gain(), 0.0);
    EXPECT_TRUE(played.trial.gain() < -0.4 || played.trial.gain() > 1.0);
    Played alone;
    alone.passes(70, 1.0, 0.5, 3);
    EXPECT_TRUE(alone.trial.under_way());
    alone.passes(200, 1.0, 0.5, 4);  // the trial goes on with what comes
    EXPECT_FALSE(alone.trial.on());
}

}  // namespace
}  // namespace thermocline::scheduler
