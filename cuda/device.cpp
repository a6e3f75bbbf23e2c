#include "cuda/device.h"

#include "cuda/cuda.h"
#include "cuda/kernels/list.h"

namespace thermocline::cuda {

const char* name_of(FlagWait way) {
    switch (way) {
        case FlagWait::kStreamOperation:
            return "stream operation";
        case FlagWait::kSpinKernel:
            return "spinning kernel";
        case FlagWait::kHostFunction:
            return "host function";
    }
    return "";
}

std::string kernel_target(int compute_major, int compute_minor) {
    if (compute_major == 8) return compute_minor == 9 ? "sm_89" : "sm_80";
    if (compute_major == 9) return "sm_90";
    if (compute_major == 12) return "sm_120f";
    return "";
}

const char* kernel_name(int kernel) {
    static constexpr auto kNames = Kernels::map([]<typename Kernel>(KernelType<Kernel>) { return Kernel::kName; });
    return kNames[static_cast<size_t>(kernel)];
}

}  // namespace thermocline::cuda
