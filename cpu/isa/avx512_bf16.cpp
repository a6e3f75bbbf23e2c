// The kernels for processors that have AVX-512 BF16 and VBMI besides (Zen 4, Sapphire Rapids and later). The compiler
// may use those instructions; nothing but kAvx512Bf16Kernels leaves this unit (tests/cpu/isa_symbols_test.cpp).
#include "cpu/isa/tables.h"

#include <immintrin.h>

namespace thermocline::cpu {
namespace {

#include "cpu/isa/avx512.inl"
#include "cpu/kernels/kernels.inl"

}  // namespace

constexpr KernelTable kAvx512Bf16Kernels = make_kernels("avx512_bf16");

}  // namespace thermocline::cpu
