// The kernels for processors with AMX tiles of bf16 (Sapphire Rapids and later). Nothing but kAmxKernels leaves this
// unit (tests/cpu/isa_symbols_test.cpp).
#include "cpu/isa/tables.h"

#include <immintrin.h>

namespace thermocline::cpu {
namespace {

constexpr int kFetchAhead = 2048;  // bytes: 4096 cost a fifth on Sapphire Rapids

#include "cpu/isa/avx512_bf16.inl"

// In the order of use.
// clang-format off
#include "cpu/kernels/strips_tiles.inl"
#include "cpu/kernels/strips_exact.inl"
// clang-format on

/// KernelTable::put_in_panel.
void put_in_panel(const quant::Matrix& w, const float* numbers, int64_t b, int64_t i, int64_t m,
                  float* panel) noexcept {
    const bool fp4 = w.format == quant::Format::kE2M1Pair;
    if (fp4 && m <= kFewVectors) return put_digits(numbers, reinterpret_cast<BlockDigits*>(panel) + b * m + i);
    if (m == 1) {
        __builtin_memcpy(panel + b * kBlock, numbers, kBlock * sizeof(float));
        return;
    }
    const F least = broadcast(bits_as<float>((exponent_of_block(numbers) - 8) << 23));
    const int64_t parts = fp4 ? 2 : 1;
    panel += (b * kBlock / kStepColumns * parts * m + i) * kStepPairs;
    for (int k = 0; k < kBlock; k += kStepColumns, panel += parts * m * kStepPairs) {
        const F x[] = {load(numbers + k), load(numbers + k + kLanes)};
        if (!fp4) {
            put_pairs(x[0], x[1], panel);
            continue;
        }
        F large[2];
        for (int j = 0; j < 2; ++j) large[j] = select(as_float(as_int(x[j]) & 0x7fffffff) < least, F{}, x[j]);
        put_pairs(large[0], large[1], panel);
        put_pairs(x[0] - large[0], x[1] - large[1], panel + m * kStepPairs);
    }
}

void matmul_tiles(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t, int64_t m, float* y,
                  int64_t y_stride) noexcept {
    using quant::Format;
    const auto multiply = [&](const auto& kernel) __attribute__((always_inline)) {
        kernel.multiply(w, first, count, x, m, y, y_stride);
    };
    if (w.format == Format::kE4M3 && w.scale_in_strip)
        multiply(TilesE4M3<E8M0Scales>{{}, {}, {1.0f}});
    else if (w.format == Format::kE4M3)
        multiply(TilesE4M3<NoScales>{});
    else if (w.scale_format == Format::kE8M0)
        multiply(ExactE2M1<E8M0Scales, 32>{{}, {1.0f}});
    else
        multiply(ExactE2M1<E4M3Scales, 16>{{}, {1.0f}});
    apply_multiplier(w, m, count, y, y_stride);
}

/// As peak(), but bf16 on tiles: four sums that all numbers of a tile go to.
int64_t tile_peak(Unit kind, int64_t rounds, float* sink) noexcept {
    if (kind != Unit::kBF16) return peak(kind, rounds, sink);
    TileConfig config;
    for (int tile = 0; tile < 6; ++tile) config.set(tile, kTileLines, kLine);
    alignas(64) float numbers[kTileFloats] = {};
    _tile_loadconfig(&config);
    LOAD_TILE(4, numbers);
    LOAD_TILE(5, numbers);
    for (int64_t round = 0; round < rounds; ++round) {
        _tile_dpbf16ps(0, 4, 5);
        _tile_dpbf16ps(1, 4, 5);
        _tile_dpbf16ps(2, 4, 5);
        _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, numbers, kLine);
    _tile_release();
    *sink = numbers[0];
    return rounds * 4 * 2 * kTileLines * kTileLines * 32;
}

constexpr KernelTable make_amx_kernels() {
    KernelTable kernels = make_vnni_kernels("amx");
    kernels.matmul_bf16 = matmul_tiles;
    kernels.put_in_panel = put_in_panel;
    kernels.peak = tile_peak;
    return kernels;
}

}  // namespace

constexpr KernelTable kAmxKernels = make_amx_kernels();

}  // namespace thermocline::cpu
