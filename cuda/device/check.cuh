// Errors of the CUDA runtime as ours. Included by *.cu only.
#pragma once

#include "src/base/error.h"

#include <cuda_runtime.h>

namespace thermocline::cuda {

/// `doing`: what was asked of which device, "GPU 0: copying to it".
template <typename... Parts>
void check(cudaError_t status, const Parts&... doing) {
    if (status == cudaSuccess) return;
    (void)cudaGetLastError();  // so that it does not show up at the next call
    fail(doing..., ": ", cudaGetErrorString(status), " (", cudaGetErrorName(status), ")");
}

/// Makes `device` the current one of this thread.
inline void use(int device) { check(cudaSetDevice(device), "GPU ", device); }

}  // namespace thermocline::cuda
