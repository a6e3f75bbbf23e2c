// Which cards there are.
#include "cuda/cuda.h"
#include "cuda/device/check.cuh"

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
