#include "cuda/device.h"

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

const char* kernel_name(int kernel) {
    static constexpr auto kNames = Kernels::map([]<typename Kernel>(KernelType<Kernel>) { return Kernel::kName; });
    return kNames[static_cast<size_t>(kernel)];
}

}  // namespace thermocline::cuda
