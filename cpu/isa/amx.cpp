// The kernels for processors with AMX tiles of bf16 (Sapphire Rapids and later). Nothing but kAmxKernels leaves this
// unit (tests/cpu/isa_symbols_test.cpp).
#include "cpu/isa/tables.h"

#include <immintrin.h>

namespace thermocline::cpu {
namespace {

constexpr int kFetchAhead = 2048;  // bytes: 4096 cost a fifth on Sapphire Rapids

#include "cpu/isa/avx512_bf16.inl"
#include "cpu/kernels/strips_tiles.inl"

constexpr KernelTable make_amx_kernels() {
    KernelTable kernels = make_kernels("amx");
    kernels.matmul_bf16 = matmul_tiles;
    kernels.bf16_tiles = true;
    kernels.peak = tile_peak;
    return kernels;
}

}  // namespace

constexpr KernelTable kAmxKernels = make_amx_kernels();

}  // namespace thermocline::cpu
