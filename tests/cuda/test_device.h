// The card that tests play on: emulated, or the first real one where THERMOCLINE_TEST_GPU is 1, as scripts/gpu_check
// sets it. What only an emulated card does (faults, links, little memory) stays there.
#pragma once

#include "cuda/emulation/device.h"

#include <cstdlib>
#include <memory>
#include <string_view>
#include <utility>

namespace thermocline::cuda {

inline std::unique_ptr<Device> test_device(const emulation::Config& config = {}) {
    const char* wanted = std::getenv("THERMOCLINE_TEST_GPU");
    const bool real = wanted != nullptr && std::string_view(wanted) == "1";
    return real && config == emulation::Config() ? open_device(0) : emulation::open(config);
}

/// The same where that card has the instructions that variants.h asks for; else an emulated one, which has them all.
inline std::unique_ptr<Device> test_device_of_family() {
    auto device = test_device();
    return device->info().compute_major == 12 ? std::move(device) : emulation::open({});
}

}  // namespace thermocline::cuda
