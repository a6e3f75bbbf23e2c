// The kernel tables, one per ISA unit. A table may be read on any processor; its functions may run only where
// find_kernels() returns it.
#pragma once

#include "cpu/kernels.h"
#include "src/quant/blocks.h"
#include "src/quant/codebooks.h"
#include "src/quant/strips.h"

namespace thermocline::cpu {

extern const KernelTable kScalarKernels;
extern const KernelTable kAvx2Kernels;
extern const KernelTable kAvx512Kernels;
extern const KernelTable kAvx512Bf16Kernels;
extern const KernelTable kAmxKernels;

}  // namespace thermocline::cpu
