// Errors of the CUDA runtime as ours. Included by *.cu only.
#pragma once

#include "cuda/remedies.h"
#include "src/base/error.h"

#include <cuda_runtime.h>

namespace thermocline::cuda {

/// Whether every later call of the process to the card fails too.
inline bool is_lost(cudaError_t status) {
    switch (status) {
        case cudaErrorIllegalAddress:
        case cudaErrorLaunchTimeout:
        case cudaErrorAssert:
        case cudaErrorHardwareStackError:
        case cudaErrorIllegalInstruction:
        case cudaErrorMisalignedAddress:
        case cudaErrorInvalidAddressSpace:
        case cudaErrorInvalidPc:
        case cudaErrorLaunchFailure:
        case cudaErrorECCUncorrectable:
        case cudaErrorNvlinkUncorrectable:
        case cudaErrorDevicesUnavailable:
        case cudaErrorContextIsDestroyed:
        case cudaErrorTensorMemoryLeak:
        case cudaErrorExternalDevice:
        case cudaErrorUnknown:
            return true;
        default:
            return false;
    }
}

/// `doing`: what was asked of which device, "GPU 0: copying to it".
template <typename... Parts>
void check(cudaError_t status, const Parts&... doing) {
    if (status == cudaSuccess) return;
    (void)cudaGetLastError();  // so that it does not show up at the next call
    fail(doing..., ": ", cudaGetErrorString(status), " (", cudaGetErrorName(status), ")", is_lost(status) ? "; " : "",
         is_lost(status) ? kLostRemedy : "");
}

/// Makes `device` the current one of this thread.
inline void use(int device) { check(cudaSetDevice(device), "GPU ", device); }

}  // namespace thermocline::cuda
