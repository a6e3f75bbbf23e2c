// The kernels for AVX-512 F, BW, VL, DQ and VNNI: 16 lanes. Compiled with those flags; nothing but kAvx512Kernels
// leaves this unit (tests/cpu/isa_symbols_test.cpp).
#include "cpu/isa/tables.h"

#include <immintrin.h>

namespace thermocline::cpu {
namespace {

#include "cpu/isa/avx512.inl"

constexpr int kBf16Operations = 0;
inline F multiply_bf16(F sum) { return sum; }

constexpr int kFetchAhead = 4096, kFetchNibblesAhead = 0;  // bytes; 0: as others
#include "cpu/kernels/e4m3.inl"
using E4M3Columns = PlainE4M3Columns;

// In the order of use.
// clang-format off
#include "cpu/kernels/kernels.inl"
#include "cpu/kernels/strips_fixed.inl"
// clang-format on

}  // namespace

constexpr KernelTable kAvx512Kernels = make_vnni_kernels("avx512");

}  // namespace thermocline::cpu
