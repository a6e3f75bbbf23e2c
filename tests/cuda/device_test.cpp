// The face of the CUDA room holds on a machine with cards, on one without, and in a build without CUDA.
#include "cuda/emulation/device.h"

#include "cuda/cuda.h"
#include "cuda/run.h"
#include "cuda/watched.h"
#include "src/base/error.h"

#include <atomic>
#include <chrono>
#include <future>
#include <gtest/gtest.h>
#include <optional>
#include <string>
#include <thread>

namespace thermocline::cuda {
namespace {

TEST(Devices, ThereAreSomeOrAReasonWhyNot) {
    const Devices devices = find_devices();
    EXPECT_EQ(devices.found.empty(), !devices.why_none.empty()) << devices.why_none;
    for (const DeviceInfo& device : devices.found) {
        EXPECT_FALSE(device.name.empty());
        EXPECT_GE(device.compute_major, 5);
        EXPECT_GT(device.memory_bytes, int64_t{1} << 30);
        EXPECT_GT(device.multiprocessors, 0);
    }
}

TEST(Devices, EverySmHasItsKernelsOrNone) {
    EXPECT_EQ(kernel_target(7, 5), "");
    EXPECT_EQ(kernel_target(8, 0), "sm_80");
    EXPECT_EQ(kernel_target(8, 6), "sm_80");
    EXPECT_EQ(kernel_target(8, 9), "sm_89");
    EXPECT_EQ(kernel_target(9, 0), "sm_90");
    EXPECT_EQ(kernel_target(10, 3), "");
    EXPECT_EQ(kernel_target(12, 0), "sm_120f");
    EXPECT_EQ(kernel_target(12, 1), "sm_120f");
}

TEST(Devices, PiecesOfPinnedMemoryEndWhereTheAddressSays) {
    const auto at = [](int64_t address) { return reinterpret_cast<const void*>(static_cast<uintptr_t>(address)); };
    EXPECT_EQ(pinned_as_one(at(kPinnedPiece)), kPinnedPiece);
    EXPECT_EQ(pinned_as_one(at(3 * kPinnedPiece - 1)), 1);
    EXPECT_EQ(pinned_as_one(at(2 * kPinnedPiece + 4096)), kPinnedPiece - 4096);
}

/// As a driver does that hangs: a stream that is full holds up who adds to it.
TEST(Watched, ACallThatDoesNotReturnIsNamed) {
    std::promise<std::string> said;
    Flag flag = {};
    const auto device = watched(emulation::open({.index = 3, .most_pending = 2}), std::chrono::milliseconds(200),
                                [&](const std::string& why) {
                                    said.set_value(why);
                                    std::atomic_ref<uint64_t>(flag.value).store(1, std::memory_order_release);
                                });
    const auto stream = device->new_stream();
    stream->wait_for(&flag);
    char from = 1, to = 0;
    for (int i = 0; i < 4; ++i) stream->copy(&to, &from, 1);
    const std::string why = said.get_future().get();
    EXPECT_EQ(why.rfind("GPU 3 hangs: a call of its driver has not returned for 0 s. ", 0), 0u) << why;
    stream->wait(std::chrono::minutes(1));
    EXPECT_EQ(to, 1);
}

TEST(Watched, WhatTakesLongOrIsNotAskedForIsLeftAlone) {
    std::atomic<int> calls = 0;
    // A thread that gets no time at all for a second looks like one that hangs.
    const auto device = watched(emulation::open({}), std::chrono::seconds(1), [&](const std::string&) { ++calls; });
    const auto stream = device->new_stream();
    Flag flag = {};
    stream->wait_for(&flag);
    EXPECT_THROW(stream->wait(std::chrono::milliseconds(1500)), Error);
    std::this_thread::sleep_for(std::chrono::milliseconds(1500));
    EXPECT_FALSE(stream->finished());
    std::atomic_ref<uint64_t>(flag.value).store(1, std::memory_order_release);
    stream->wait(std::chrono::minutes(1));
    EXPECT_EQ(calls, 0);
}

TEST(Emulation, WhatIsPacedTakesItsTimeInsteadOfBeingRun) {
    int launches = 0;
    const auto device =
        emulation::open({}, {.kernel = [&](int, const Grid&, const void*) -> std::optional<double> {
                                 if (++launches == 2) return std::nullopt;
                                 return 0.004;
                             },
                             .copy = [](const void*, int64_t bytes) { return 0.001 * static_cast<double>(bytes); }});
    const auto stream = device->new_stream();
    Flag first = {}, second = {};
    const char from[3] = {1, 2, 3};
    char to[3] = {};
    const auto began = std::chrono::steady_clock::now();
    raise_flag(*stream, &first);
    raise_flag(*stream, &second);
    for (int i = 0; i < 4; ++i) stream->copy(to, from, 3);
    stream->wait(std::chrono::minutes(1));
    EXPECT_GE(std::chrono::steady_clock::now() - began, std::chrono::milliseconds(16));
    EXPECT_EQ(first.value, 0u);
    EXPECT_NE(second.value, 0u);
    EXPECT_EQ(to[2], 3);
}

TEST(Speed, EveryDeviceIsMeasured) {
    for (const DeviceInfo& device : find_devices().found) {
        const LinkSpeed link = measure_link(device.index);
        EXPECT_GT(link.to_device, 0.5);
        EXPECT_GT(link.to_host, 0.5);
        EXPECT_GT(link.both, link.to_device / 2);
        EXPECT_GT(measure_memory_read(device.index), link.to_device);
    }
}

TEST(Speed, ADeviceThatIsNotThereIsAnErrorThatNamesIt) {
    const int missing = static_cast<int>(find_devices().found.size());
    for (const auto& measure :
         {+[](int device) { measure_link(device); }, +[](int device) { measure_memory_read(device); }}) {
        try {
            measure(missing);
            FAIL() << "GPU " << missing << " is not there";
        } catch (const Error& error) {
            const std::string text = error.what();
            EXPECT_EQ(text.rfind("GPU " + std::to_string(missing) + ": ", 0), 0u) << text;
            EXPECT_EQ(text.find('\n'), std::string::npos);
        }
    }
}

}  // namespace
}  // namespace thermocline::cuda
