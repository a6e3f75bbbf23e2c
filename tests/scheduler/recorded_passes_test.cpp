#include "scheduler/recorded_passes.h"

#include "cuda/emulation/device.h"

#include <gtest/gtest.h>
#include <stdexcept>

namespace thermocline::scheduler {
namespace {

/// Passes that write the number of their rows, and how often one was put into the stream by hand.
class Player {
public:
    explicit Player(size_t most, const cuda::emulation::Faults& faults = {})
        : device_(cuda::emulation::open({.faults = faults})),
          stream_(device_->new_stream()),
          numbers_(*device_, kNumbers * 8),
          out_(*device_, 8),
          passes_(*stream_, most) {
        for (int64_t i = 0; i < kNumbers; ++i) numbers_.as<int64_t>()[i] = i;
    }

    /// Returns how often the work was put into the stream for this one.
    int play(int64_t rows) {
        int times = 0;
        *out_.as<int64_t>() = -1;
        passes_.play({rows, 1, false, false}, [&](bool) {
            ++times;
            stream_->copy(out_.data(), numbers_.as<int64_t>() + rows, 8);
        });
        stream_->wait(std::chrono::minutes(1));
        EXPECT_EQ(*out_.as<int64_t>(), rows);
        return times;
    }
    RecordedPasses& passes() { return passes_; }

private:
    static constexpr int64_t kNumbers = 100;
    std::unique_ptr<cuda::Device> device_;
    std::unique_ptr<cuda::Stream> stream_;
    cuda::PinnedMemory numbers_, out_;
    RecordedPasses passes_;
};

TEST(RecordedPasses, ThoseUsedLastAreKept) {
    Player player(3);
    for (const int64_t rows : {1, 2, 3}) EXPECT_EQ(player.play(rows), 1);
    EXPECT_EQ(player.play(1), 0);  // now 2 is the oldest
    EXPECT_EQ(player.play(4), 1);
    for (const int64_t rows : {1, 3, 4}) EXPECT_EQ(player.play(rows), 0);
    EXPECT_EQ(player.play(2), 1);
    EXPECT_EQ(player.play(1), 1);
}

TEST(RecordedPasses, WhereAGraphIsRefusedThePassIsPlayedWithout) {
    Player player(64, {.refuse_graph = 3});
    for (const int64_t rows : {1, 2}) EXPECT_EQ(player.play(rows), 1);
    EXPECT_EQ(player.play(3), 2) << "recorded in vain, then played";
    EXPECT_EQ(player.play(1), 0);
    EXPECT_EQ(player.play(3), 1) << "in the place of 2";
    EXPECT_EQ(player.play(3), 0);
    EXPECT_EQ(player.play(2), 1);

    Player none(64, {.refuse_graph = 1});
    EXPECT_EQ(none.play(1), 2);
    for (int i = 0; i < 2; ++i) EXPECT_EQ(none.play(1), 1) << "there is no room for any";
}

TEST(RecordedPasses, WhatFailsWhileItIsRecordedLeavesTheStreamUsable) {
    Player player(64);
    EXPECT_THROW(player.passes().play({1, 1, false, false}, [](bool) { throw std::runtime_error("no"); }),
                 std::runtime_error);
    EXPECT_EQ(player.play(1), 1);
    EXPECT_EQ(player.play(1), 0);
}

}  // namespace
}  // namespace thermocline::scheduler
