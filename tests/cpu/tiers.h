// The kernel tables that tests go through.
#pragma once

#include "cpu/kernels.h"

#include <string>
#include <vector>

namespace thermocline::cpu {

// cpu/isa/avx512*.cpp and amx.cpp compiled against instructions emulated one by one (tests/cpu/simde).
extern const KernelTable kEmulatedAvx512Kernels;
extern const KernelTable kEmulatedAvx512Bf16Kernels;
extern const KernelTable kEmulatedAmxKernels;

struct Tier {
    std::string name;
    const KernelTable* kernels;
};

/// Every tier that this processor runs, and the AVX-512 tiers emulated.
inline std::vector<Tier> tiers() {
    std::vector<Tier> all;
    for (const char* name : {"scalar", "avx2", "avx512", "avx512_bf16", "amx"}) {
        if (const KernelTable* kernels = find_kernels(name)) all.push_back({name, kernels});
    }
    all.push_back({"emulated_avx512", &kEmulatedAvx512Kernels});
    all.push_back({"emulated_avx512_bf16", &kEmulatedAvx512Bf16Kernels});
    all.push_back({"emulated_amx", &kEmulatedAmxKernels});
    return all;
}

}  // namespace thermocline::cpu
