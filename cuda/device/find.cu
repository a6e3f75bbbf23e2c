// Which cards there are.
#include "cuda/cuda.h"
#include "cuda/device/check.cuh"

namespace thermocline::cuda {

Devices find_devices() {
    Devices devices;
    int count = 0;
    if (const cudaError_t status = cudaGetDeviceCount(&count); status != cudaSuccess) {
        (void)cudaGetLastError();
        devices.why_none = std::string(cudaGetErrorString(status)) + " (nvidia-smi shows what the driver sees)";
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
