// The face of the CUDA room holds on a machine with cards, on one without, and in a build without CUDA.
#include "cuda/emulation/device.h"

#include "cuda/cuda.h"
#include "cuda/run.h"
#include "src/base/error.h"

#include <chrono>
#include <gtest/gtest.h>
#include <optional>

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
