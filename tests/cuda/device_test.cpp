// The face of the CUDA room holds on a machine with cards, on one without, and in a build without CUDA.
#include "cuda/cuda.h"
#include "src/base/error.h"

#include <gtest/gtest.h>

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

TEST(Speed, EveryDeviceIsMeasured) {
    for (const DeviceInfo& device : find_devices().found) {
        const LinkSpeed link = measure_link(device.index);
        EXPECT_GT(link.to_device, 0.5);
        EXPECT_GT(link.to_host, 0.5);
        EXPECT_GT(link.both, link.to_device / 2);
        EXPECT_GT(measure_memory_read(device.index), link.to_device);
        const double handoff = measure_handoff_us(device.index);
        EXPECT_GT(handoff, 0.2);
        EXPECT_LT(handoff, 500.0);
    }
}

TEST(Speed, ADeviceThatIsNotThereIsAnErrorThatNamesIt) {
    const int missing = static_cast<int>(find_devices().found.size());
    for (const auto& measure :
         {+[](int device) { measure_link(device); }, +[](int device) { measure_memory_read(device); },
          +[](int device) { measure_handoff_us(device); }}) {
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
