// Stands in front of the compiler's <immintrin.h> when cpu/isa/avx512*.cpp are compiled for emulation: the same names,
// carried out instruction by instruction in portable code by SIMDe, so that the AVX-512 units can be executed and
// compared on a processor that lacks them.
#pragma once

#define SIMDE_NO_NATIVE
#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx2.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <simde/x86/fma.h>

// What SIMDe 0.7.4 lacks, from Intel's definitions: conversions lane by lane.

static inline __m512i _mm512_cvtepi8_epi32(__m128i x) {
    const simde__m128i_private from = simde__m128i_to_private(x);
    simde__m512i_private to;
    for (int i = 0; i < 16; ++i) to.i32[i] = from.i8[i];
    return simde__m512i_from_private(to);
}

static inline __m512i _mm512_cvtepu8_epi32(__m128i x) {
    const simde__m128i_private from = simde__m128i_to_private(x);
    simde__m512i_private to;
    for (int i = 0; i < 16; ++i) to.i32[i] = from.u8[i];
    return simde__m512i_from_private(to);
}

static inline __m512i _mm512_cvtepu16_epi32(__m256i x) {
    const simde__m256i_private from = simde__m256i_to_private(x);
    simde__m512i_private to;
    for (int i = 0; i < 16; ++i) to.i32[i] = from.u16[i];
    return simde__m512i_from_private(to);
}

/// SIMDe's alias of this name takes the arguments of the masked form.
#undef _mm512_madd_epi16
static inline __m512i _mm512_madd_epi16(__m512i a, __m512i b) {
    const simde__m512i_private x = simde__m512i_to_private(a), y = simde__m512i_to_private(b);
    simde__m512i_private to;
    for (int i = 0; i < 16; ++i) to.i32[i] = x.i16[2 * i] * y.i16[2 * i] + x.i16[2 * i + 1] * y.i16[2 * i + 1];
    return simde__m512i_from_private(to);
}

/// Not inlined: SIMDe's takes the compiler minutes.
#undef _mm512_dpbusd_epi32
static __attribute__((noinline)) __m512i _mm512_dpbusd_epi32(__m512i sums, __m512i a, __m512i b) {
    const simde__m512i_private x = simde__m512i_to_private(a), y = simde__m512i_to_private(b);
    simde__m512i_private to = simde__m512i_to_private(sums);
    for (int i = 0; i < 64; ++i) to.i32[i / 4] += x.u8[i] * y.i8[i];
    return simde__m512i_from_private(to);
}

static inline __m512 _mm512_cvtepi32_ps(__m512i x) {
    const simde__m512i_private from = simde__m512i_to_private(x);
    simde__m512_private to;
    for (int i = 0; i < 16; ++i) to.f32[i] = static_cast<float>(from.i32[i]);
    return simde__m512_from_private(to);
}

/// Rounds to nearest even; the caller stays within int32.
static inline __m512i _mm512_cvtps_epi32(__m512 x) {
    const simde__m512_private from = simde__m512_to_private(x);
    simde__m512i_private to;
    for (int i = 0; i < 16; ++i) to.i32[i] = static_cast<int>(__builtin_rintf(from.f32[i]));
    return simde__m512i_from_private(to);
}

static inline __m512 _mm512_cvtph_ps(__m256i x) {
    const simde__m256i_private from = simde__m256i_to_private(x);
    simde__m512_private to;
    for (int i = 0; i < 16; ++i) {
        const unsigned code = from.u16[i], exponent = (code >> 10) & 31, mantissa = code & 1023;
        float magnitude = static_cast<float>(exponent == 0 ? mantissa : 1024 + mantissa) *
                          __builtin_ldexpf(1.0f, static_cast<int>(exponent == 0 ? 1 : exponent) - 25);
        if (exponent == 31) magnitude = mantissa ? __builtin_nanf("") : __builtin_inff();
        to.f32[i] = code & 0x8000 ? -magnitude : magnitude;
    }
    return simde__m512_from_private(to);
}

// AMX, from Intel's definitions: tiles of `rows` lines. Products of bf16 pairs are summed in two chains of
// multiply-adds, which are then added; subnormal numbers count as zero.

struct EmulatedTile {
    int rows, column_bytes;
    unsigned char lines[16][64];
};
inline thread_local EmulatedTile emulated_tiles[8];

static inline void _tile_loadconfig(const void* config) {
    const unsigned char* bytes = static_cast<const unsigned char*>(config);
    for (int i = 0; i < 8; ++i) emulated_tiles[i] = {bytes[48 + i], bytes[16 + 2 * i] | bytes[17 + 2 * i] << 8, {}};
}
static inline void _tile_release() {
    for (EmulatedTile& tile : emulated_tiles) tile = {};
}
static inline void _tile_zero(int tile) { __builtin_memset(emulated_tiles[tile].lines, 0, 16 * 64); }
static inline void _tile_loadd(int tile, const void* from, long stride) {
    EmulatedTile& to = emulated_tiles[tile];
    for (int i = 0; i < to.rows; ++i)
        __builtin_memcpy(to.lines[i], static_cast<const char*>(from) + i * stride,
                         static_cast<unsigned>(to.column_bytes));
}
static inline void _tile_stored(int tile, void* to, long stride) {
    const EmulatedTile& from = emulated_tiles[tile];
    for (int i = 0; i < from.rows; ++i)
        __builtin_memcpy(static_cast<char*>(to) + i * stride, from.lines[i], static_cast<unsigned>(from.column_bytes));
}

/// Of signed bytes.
static inline void _tile_dpbssd(int sums, int left, int right) {
    EmulatedTile &c = emulated_tiles[sums], &a = emulated_tiles[left], &b = emulated_tiles[right];
    for (int m = 0; m < c.rows; ++m) {
        for (int n = 0; n < c.column_bytes / 4; ++n) {
            int sum;
            __builtin_memcpy(&sum, &c.lines[m][4 * n], 4);
            for (int k = 0; k < a.column_bytes / 4; ++k)
                for (int i = 0; i < 4; ++i)
                    sum += static_cast<signed char>(a.lines[m][4 * k + i]) *
                           static_cast<signed char>(b.lines[k][4 * n + i]);
            __builtin_memcpy(&c.lines[m][4 * n], &sum, 4);
        }
    }
}

static inline float emulated_bf16(const unsigned char* p) {
    const unsigned bits = static_cast<unsigned>(p[0] | p[1] << 8) << 16;
    float number;
    __builtin_memcpy(&number, &bits, 4);
    return (bits & 0x7f800000) == 0 ? 0.0f : number;
}
static inline float emulated_flush(float x) { return __builtin_fabsf(x) < 1.17549435e-38f ? 0.0f : x; }

static inline void _tile_dpbf16ps(int sums, int left, int right) {
    EmulatedTile &c = emulated_tiles[sums], &a = emulated_tiles[left], &b = emulated_tiles[right];
    for (int m = 0; m < c.rows; ++m) {
        for (int n = 0; n < c.column_bytes / 4; ++n) {
            float chains[2] = {}, sum;
            for (int k = 0; k < a.column_bytes / 4; ++k)
                for (int i = 0; i < 2; ++i)
                    chains[i] = emulated_flush(__builtin_fmaf(emulated_bf16(&a.lines[m][4 * k + 2 * i]),
                                                              emulated_bf16(&b.lines[k][4 * n + 2 * i]), chains[i]));
            __builtin_memcpy(&sum, &c.lines[m][4 * n], 4);
            sum = emulated_flush(emulated_flush(sum) + emulated_flush(chains[0] + chains[1]));
            __builtin_memcpy(&c.lines[m][4 * n], &sum, 4);
        }
    }
}
