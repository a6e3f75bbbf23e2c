// Which cards there are.
#include "cuda/cuda.h"
#include "cuda/device/check.cuh"

#include <cstdlib>

namespace thermocline::cuda {

namespace {

std::string version_text(int version) {
    return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

/// Of a driver that is older than the runtime, or not there.
std::string driver_text() {
    int version = 0;
    if (cudaDriverGetVersion(&version) != cudaSuccess || version == 0) return "no NVIDIA driver is loaded";
    return "the NVIDIA driver knows CUDA " + version_text(version) + ", this program needs " +
           version_text(CUDART_VERSION);
}

}  // namespace

Devices find_devices() {
    Devices devices;
    // Streams that share a queue of the card hold one another up while one waits for a flag; by itself there are eight.
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
    int count = 0;
    if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess) {
        (void)cudaGetLastError();
        devices.why_none = status == cudaErrorInsufficientDriver ? driver_text() : cudaGetErrorString(status);
        return devices;
    }
    for (int index = 0; index < count; ++index) {
        cudaDeviceProp properties{};
        if (cudaGetDeviceProperties(&properties, index) != cudaSuccess) continue;
        char address[32] = {};
        if (cudaDeviceGetPCIBusId(address, sizeof address, index) != cudaSuccess) address[0] = 0;
        devices.found.push_back({index, properties.name, properties.major, properties.minor,
                                 static_cast<int64_t>(properties.totalGlobalMem), properties.multiProcessorCount,
                                 address});
    }
    if (devices.found.empty()) devices.why_none = "the CUDA driver shows no usable device";
    return devices;
}

}  // namespace thermocline::cuda
