// Hand-offs are timed by every way of waiting, on the card that tests play on.
#include "cuda/handoff_speed.h"

#include "src/base/error.h"
#include "tests/cuda/test_device.h"

#include <gtest/gtest.h>

namespace thermocline::cuda {
namespace {

TEST(HandoffSpeed, IsOfEveryWayThatTheCardHas) {
    std::unique_ptr<Device> usual = test_device();
    const FlagWait first = usual->flag_wait();
    const bool real = usual->info().name != "emulated";
    usual.reset();
    const auto speeds = measure_handoffs([&](FlagWait way) {
        return real ? open_device(0, {&way, 1}) : emulation::open({.flag_wait = way});
    });
    ASSERT_EQ(speeds.size(), std::size(kFlagWaits));
    for (size_t i = 0; i < speeds.size(); ++i) {
        EXPECT_EQ(speeds[i].way, kFlagWaits[i]);
        EXPECT_EQ(speeds[i].us > 0, speeds[i].why_not.empty()) << speeds[i].why_not;
    }
    EXPECT_EQ(used(speeds).way, first);
}

TEST(HandoffSpeed, AWayThatTheCardLacksIsNamedAndTheNextOneUsed) {
    const auto speeds = measure_handoffs([](FlagWait way) {
        if (way == FlagWait::kStreamOperation) fail("an old driver");
        return emulation::open({.flag_wait = way});
    });
    EXPECT_EQ(speeds[0].why_not, "an old driver");
    EXPECT_EQ(used(speeds).way, FlagWait::kSpinKernel);
}

TEST(HandoffSpeed, WithoutAnyWayTheFirstReasonIsTheError) {
    try {
        measure_handoffs([](FlagWait way) -> std::unique_ptr<Device> { fail("no ", name_of(way)); });
        FAIL() << "there was no way";
    } catch (const Error& error) {
        EXPECT_STREQ(error.what(), "no stream operation");
    }
}

TEST(HandoffSpeed, ALostFlagIsAnErrorInTime) {
    const auto device = emulation::open({.faults = {.lose_flag = 150}});
    try {
        measure_handoff_us(*device);
        FAIL() << "a flag was lost";
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("was not seen within 1 s"), std::string::npos) << error.what();
    }
}

}  // namespace
}  // namespace thermocline::cuda
