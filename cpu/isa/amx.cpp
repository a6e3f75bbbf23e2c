// The kernels for processors with AMX tiles of bf16 (Sapphire Rapids and later). Nothing but kAmxKernels leaves this
// unit (tests/cpu/isa_symbols_test.cpp).
#include "cpu/isa/tables.h"

#include <immintrin.h>
#include <type_traits>

namespace thermocline::cpu {
namespace {

constexpr int kFetchAhead = 2048, kFetchNibblesAhead = 0;  // bytes: 4096 cost a fifth on Sapphire Rapids

#include "cpu/isa/avx512_bf16.inl"

// In the order of use.
// clang-format off
#include "cpu/kernels/strips_tiles.inl"
#include "cpu/kernels/strips_summed.inl"
#include "cpu/kernels/strips_exact.inl"
#include "cpu/kernels/strips_tiles_int8.inl"
// clang-format on

template <bool scale_in_strip, int parts>
using SummedFp8 = SummedTiles<SummedE4M3<scale_in_strip>, parts>;

/// Whether the products of the matrix stay in their tiles (strips_summed.inl).
bool is_summed(const quant::Matrix& w) { return w.scale_format == quant::Format::kE8M0; }

/// KernelTable::put_in_panel.
void put_in_panel(const quant::Matrix& w, const float* numbers, int64_t b, int64_t i, int64_t m,
                  float* panel) noexcept {
    const bool fp4 = w.format == quant::Format::kE2M1Pair;
    if (fp4 && m <= kFewVectors) return put_digits(numbers, reinterpret_cast<BlockDigits*>(panel) + b * m + i);
    if (m == 1) {
        __builtin_memcpy(panel + b * kBlock, numbers, kBlock * sizeof(float));
        return;
    }
    const F least = broadcast(bits_as<float>((exponent_of_block(numbers) - 10) << 23));
    const int parts = fp4 ? 2 : 1;
    const SumGroups::Pairs pairs = is_summed(w) ? SumGroups(m).pairs_of(i, parts, w.cols / kStepColumns)
                                                : SumGroups::Pairs{i * kStepPairs, m * kStepPairs};
    panel += pairs.first + b * (kBlock / kStepColumns) * parts * pairs.stride;
    for (int k = 0; k < kBlock; k += kStepColumns, panel += parts * pairs.stride) {
        const F x[] = {load(numbers + k), load(numbers + k + kLanes)};
        F large[2];
        for (int j = 0; j < 2; ++j)
            large[j] = fp4 ? select(as_float(as_int(x[j]) & 0x7fffffff) < least, F{}, x[j]) : x[j];
        put_pairs(large[0], large[1], panel);
        if (fp4) put_pairs(x[0] - large[0], x[1] - large[1], panel + pairs.stride);
    }
}

void matmul_tiles(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t, int64_t m, float* y,
                  int64_t y_stride) noexcept {
    using quant::Format;
    const auto multiply = [&](const auto& kernel) __attribute__((always_inline)) {
        kernel.multiply(w, first, count, x, m, y, y_stride);
    };
    if (w.format == Format::kE4M3 && !is_summed(w))
        multiply(TilesE4M3{});
    else if (w.format == Format::kE4M3)
        w.scale_in_strip ? multiply(SummedFp8<true, 1>{}) : multiply(SummedFp8<false, 1>{});
    else if (is_summed(w))
        multiply(ExactE2M1<E2M1ScaleRange, 32>{});
    else
        multiply(ExactE2M1<E4M3Scales, 16>{{}, {1.0f}});
    apply_multiplier(w, m, count, y, y_stride);
}

constexpr int kVectorParts = 3;  // bf16 numbers that a vector which is not rounded is the sum of

/// KernelTable::put_parts.
void put_parts(const quant::Matrix& w, const float* numbers, int64_t b, int64_t i, int64_t m, float* panel) noexcept {
    if (m == 1) {
        __builtin_memcpy(panel + b * kBlock, numbers, kBlock * sizeof(float));
        return;
    }
    const SumGroups::Pairs pairs = SumGroups(m).pairs_of(i, kVectorParts, w.cols / kStepColumns);
    panel += pairs.first + b * (kBlock / kStepColumns) * kVectorParts * pairs.stride;
    for (int k = 0; k < kBlock; k += kStepColumns) {
        const ThreeParts x[] = {ThreeParts(load(numbers + k)), ThreeParts(load(numbers + k + kLanes))};
        for (int part = 0; part < kVectorParts; ++part, panel += pairs.stride)
            put_pairs(x[0].part[part], x[1].part[part], panel);
    }
}

void matmul_parts(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t, int64_t m, float* y,
                  int64_t y_stride) noexcept {
    if (w.scale_in_strip)
        SummedFp8<true, kVectorParts>{}.multiply(w, first, count, x, m, y, y_stride);
    else
        SummedFp8<false, kVectorParts>{}.multiply(w, first, count, x, m, y, y_stride);
    apply_multiplier(w, m, count, y, y_stride);
}

/// As peak(), but bf16 on tiles: four sums that all numbers of a tile go to.
int64_t tile_peak(Unit kind, int64_t rounds, float* sink) noexcept {
    if (kind != Unit::kBF16) return peak(kind, rounds, sink);
    TileConfig config;
    for (int tile = 0; tile < 7; ++tile) config.set(tile, kTileLines, kLine);
    alignas(64) float numbers[kTileFloats] = {};
    _tile_loadconfig(&config);
    load_tile<4>(numbers);
    load_tile<6>(numbers);
    for (int64_t round = 0; round < rounds; ++round) {
        multiply_tiles<0, 4, 6>();
        multiply_tiles<1, 4, 6>();
        multiply_tiles<2, 4, 6>();
        multiply_tiles<3, 4, 6>();
    }
    store_tile<0>(numbers);
    _tile_release();
    *sink = numbers[0];
    return rounds * 4 * 2 * kTileLines * kTileLines * 32;
}

constexpr KernelTable make_amx_kernels() {
    KernelTable kernels = make_vnni_kernels("amx");
    kernels.matmul_int8 = matmul_int8_tiles;
    kernels.matmul_fixed = matmul_fixed_tiles;
    kernels.matmul_bf16 = matmul_tiles;
    kernels.put_in_panel = put_in_panel;
    kernels.matmul_parts = matmul_parts;
    kernels.put_parts = put_parts;
    kernels.peak = tile_peak;
    return kernels;
}

}  // namespace

constexpr KernelTable kAmxKernels = make_amx_kernels();

}  // namespace thermocline::cpu
