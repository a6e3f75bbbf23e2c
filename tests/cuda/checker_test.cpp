// What the emulated device refuses of kernels: shared memory out of bounds, or used by two threads at once.
#include "cuda/emulation/block.h"
#include "cuda/emulation/thread.h"

#include <gtest/gtest.h>

namespace thermocline::cuda {
namespace {

using emulation::Thread;

constexpr int kThreads = 2 * kWarp;
constexpr char kRace[] = "used by two threads|while another thread reads";  // by whoever comes first

/// Plays a kernel of two warps with as many ints of shared memory.
template <typename Body>
void play(Body body) {
    emulation::BlockRunner runner;
    runner.run(
        "kernel",
        [](const void* given, Thread& t) { (*static_cast<const Body*>(given))(t, t.shared<int32_t>(0, kThreads)); },
        &body, {.threads = kThreads, .shared_bytes = kThreads * 4}, 0, 0);
}

TEST(Checker, WhatBarriersOrderIsAllowed) {
    play([](Thread& t, auto shared) {
        shared.set(t.id(), t.id());
        t.sync_warp();
        const int32_t neighbour = shared[t.id() ^ 1];
        t.sync();
        const int32_t other = shared[(t.id() + kWarp) % kThreads];
        t.sync();
        shared.set(t.id(), neighbour + other);
        t.sync_warp();
        shared.set(t.id() ^ 1, 0);
    });
}

TEST(Checker, WhatIsOutOfBoundsEndsTheTest) {
    EXPECT_DEATH(play([](Thread& t, auto shared) { shared.set(t.id() + 1, 0); }), "out of bounds");
    EXPECT_DEATH(play([](Thread& t, auto) { t.shared<int32_t>(4, kThreads).set(0, 0); }), "does not fit");
}

TEST(Checker, TwoThreadsAtOnceEndTheTest) {
    EXPECT_DEATH(play([](Thread&, auto shared) { shared.set(3, 0); }), kRace);
    EXPECT_DEATH(play([](Thread& t, auto shared) {  // warps read what others have written
                     shared.set(t.id(), 0);
                     t.sync_warp();
                     (void)int32_t{shared[(t.id() + kWarp) % kThreads]};
                 }),
                 kRace);
    EXPECT_DEATH(play([](Thread& t, auto shared) {  // and write what others read
                     if (t.id() < kWarp)
                         (void)int32_t{shared[0]};
                     else if (t.id() == kWarp)
                         shared.set(0, 0);
                 }),
                 kRace);
}

TEST(Checker, LanesOfAWarpNeedABarrierToo) {
    EXPECT_DEATH(play([](Thread& t, auto shared) {
                     shared.set(t.id(), 0);
                     (void)int32_t{shared[t.id() ^ 1]};
                 }),
                 kRace);
    EXPECT_DEATH(play([](Thread& t, auto shared) {  // the last one to read is the one that writes
                     (void)int32_t{shared[t.id() / kWarp]};
                     if (t.id() % kWarp == kWarp - 1) shared.set(t.id() / kWarp, 0);
                 }),
                 kRace);
}

TEST(Checker, ABarrierThatNotAllReachEndsTheTest) {
    EXPECT_DEATH(play([](Thread& t, auto) {
                     if (t.id() > 0) t.sync();
                 }),
                 "barrier");
}

}  // namespace
}  // namespace thermocline::cuda
