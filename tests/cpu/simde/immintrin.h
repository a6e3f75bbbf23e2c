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
