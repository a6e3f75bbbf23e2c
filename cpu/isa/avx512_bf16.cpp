// The kernels for processors that have AVX-512 BF16 and VBMI besides (Zen 4 and later). Nothing but kAvx512Bf16Kernels
// leaves this unit (tests/cpu/isa_symbols_test.cpp).
#include "cpu/isa/tables.h"

#include <immintrin.h>

namespace thermocline::cpu {
namespace {

constexpr int kFetchAhead = 4096, kFetchNibblesAhead = 12288;  // bytes

#include "cpu/isa/avx512_bf16.inl"
#include "cpu/kernels/strips_bf16.inl"

constexpr KernelTable make_bf16_kernels() {
    KernelTable kernels = make_vnni_kernels("avx512_bf16");
    kernels.matmul_bf16 = matmul_bf16;
    kernels.bf16_of_all = true;
    return kernels;
}

}  // namespace

constexpr KernelTable kAvx512Bf16Kernels = make_bf16_kernels();

}  // namespace thermocline::cpu
