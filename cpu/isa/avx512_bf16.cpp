// The kernels for processors that have AVX-512 BF16 and VBMI besides (Zen 4, Sapphire Rapids and later). The compiler
// may use those instructions; nothing but kAvx512Bf16Kernels leaves this unit (tests/cpu/isa_symbols_test.cpp).
#include "cpu/isa/tables.h"

#include <immintrin.h>

namespace thermocline::cpu {
namespace {

#include "cpu/isa/avx512.inl"

constexpr int kBf16Operations = 64;
[[gnu::always_inline]] inline F multiply_bf16(F sum) {
    const __m512i ones = _mm512_set1_epi16(0x3f80);
    __m512bh x;
    __builtin_memcpy(&x, &ones, sizeof x);
    return (F)_mm512_dpbf16_ps((__m512)sum, x, x);
}

#include "cpu/kernels/kernels.inl"

}  // namespace

constexpr KernelTable kAvx512Bf16Kernels = make_kernels("avx512_bf16");

}  // namespace thermocline::cpu
