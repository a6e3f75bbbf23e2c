#include "cuda/device.h"

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

}  // namespace thermocline::cuda
