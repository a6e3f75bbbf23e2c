// The kernels for AVX2 + FMA + F16C: 8 lanes. Compiled with those flags; nothing but kAvx2Kernels leaves this unit,
// or else the linker could hand AVX2 code to the baseline program (tests/cpu/isa_symbols_test.cpp).
#include "cpu/isa/tables.h"

#include <immintrin.h>

namespace thermocline::cpu {
namespace {

constexpr int kLanes = 8;
constexpr int kTileTokens = 3;  // 4 rows x 3 tokens fill 12 of the 16 registers

#include "cpu/kernels/vector.inl"

[[gnu::always_inline]] inline F fma(F a, F b, F c) { return _mm256_fmadd_ps(a, b, c); }
/// b where the comparison is false, so a NaN in b stays.
[[gnu::always_inline]] inline F min(F a, F b) { return _mm256_min_ps(a, b); }
[[gnu::always_inline]] inline F max(F a, F b) { return _mm256_max_ps(a, b); }

[[gnu::always_inline]] inline I load_i8(const void* p) {
    return (I)_mm256_cvtepi8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
}
[[gnu::always_inline]] inline I load_u16(const void* p) {
    return (I)_mm256_cvtepu16_epi32(_mm_loadu_si128(static_cast<const __m128i_u*>(p)));
}
[[gnu::always_inline]] inline float f16_number(const void* p) {
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(read_u16(p))));
}
[[gnu::always_inline]] inline F load_f16(const void* p) {
    return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i_u*>(p)));
}
[[gnu::always_inline]] inline F to_float(I x) { return _mm256_cvtepi32_ps((__m256i)x); }
[[gnu::always_inline]] inline I round_to_int(F x) { return (I)_mm256_cvtps_epi32(x); }

[[gnu::always_inline]] inline I load_u8(const void* p) {
    return (I)_mm256_cvtepu8_epi32(_mm_loadl_epi64(static_cast<const __m128i*>(p)));
}
/// f16 numbers in the low halves of 32-bit lanes whose high halves are zero.
[[gnu::always_inline]] inline F f16_of_words(U words) {
    const __m256i x = (__m256i)words;
    return _mm256_cvtph_ps(_mm_packus_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1)));
}

using ByteTable = __m256i;
[[gnu::always_inline]] inline ByteTable make_byte_table(const uint8_t* values) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i_u*>(values)));
}
/// Every byte (0 to 15) of the words looked up.
[[gnu::always_inline]] inline U look_up_bytes(const ByteTable& table, U words) {
    return (U)_mm256_shuffle_epi8(table, (__m256i)words);
}

[[gnu::always_inline]] inline F eight_to_float(__m128i bytes) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
}
[[gnu::always_inline]] inline Group load_words(Words words) {
    const __m128i first = _mm256_castsi256_si128((__m256i)words), second = _mm256_extracti128_si256((__m256i)words, 1);
    return {{eight_to_float(first), eight_to_float(_mm_srli_si128(first, 8)), eight_to_float(second),
             eight_to_float(_mm_srli_si128(second, 8))}};
}

/// 32 e4m3 numbers times 2^-8: sign and fields moved to those of f16. The NaN codes come out as 480.
[[gnu::always_inline]] inline Group e4m3_group(const uint8_t* p) {
    Group out;
    for (int i = 0; i < 2; ++i) {
        const __m256i x = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i_u*>(p + 16 * i)));
        const __m256i f16 = _mm256_and_si256(_mm256_slli_epi16(x, 7), _mm256_set1_epi16(static_cast<int16_t>(0xbfff)));
        out.v[2 * i] = _mm256_cvtph_ps(_mm256_castsi256_si128(f16));
        out.v[2 * i + 1] = _mm256_cvtph_ps(_mm256_extracti128_si256(f16, 1));
    }
    return out;
}

/// out[i] = sum of the lanes of a[i], all by the same tree.
[[gnu::always_inline]] inline void sum_lanes(const F a[4], float out[4]) {
    const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(a[0], a[1]), _mm256_hadd_ps(a[2], a[3]));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
}

[[gnu::always_inline]] inline F square_root(F x) { return _mm256_sqrt_ps(x); }
/// Bit i: whether lane i of a mask is set.
[[gnu::always_inline]] inline uint32_t mask_bits(I mask) { return static_cast<uint32_t>(_mm256_movemask_ps((F)mask)); }
/// Elements of a and b in turn: of their first halves, of their second halves.
[[gnu::always_inline]] inline F interleave_low(F a, F b) {
    return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11);
}
[[gnu::always_inline]] inline F interleave_high(F a, F b) {
    return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15);
}

// ---- sixteen-entry tables --------------------------------------------------------------------------------------
// Every table holds numbers that are exact in bf16. Their high and low bytes are looked up apart; unpacking puts the
// bytes of elements j and 8 + j into one 32-bit lane, so that a shift and a mask give two registers in order. Codes
// are therefore kept with element 8 + j beside element j.

struct Table {
    __m256i high, low;
};

[[gnu::always_inline]] inline Table make_table(const float* values) {
    alignas(16) uint8_t high[16], low[16];
    for (int i = 0; i < 16; ++i) {
        uint32_t bits;
        __builtin_memcpy(&bits, values + i, 4);
        high[i] = static_cast<uint8_t>(bits >> 24);
        low[i] = static_cast<uint8_t>(bits >> 16);
    }
    return {_mm256_broadcastsi128_si256(*reinterpret_cast<const __m128i*>(high)),
            _mm256_broadcastsi128_si256(*reinterpret_cast<const __m128i*>(low))};
}

using Codes = __m256i;

[[gnu::always_inline]] inline __m256i load_twice(const uint8_t* p) {
    return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i_u*>(p)));
}

[[gnu::always_inline]] inline Codes nibbles(__m256i x) { return _mm256_and_si256(x, _mm256_set1_epi8(15)); }

/// 32 codes from 16 bytes, even elements in the low nibbles.
[[gnu::always_inline]] inline Codes pair_codes(const uint8_t* p) {
    const __m256i order = _mm256_setr_epi8(0, 4, -1, -1, 1, 5, -1, -1, 8, 12, -1, -1, 9, 13, -1, -1,  //
                                           2, 6, -1, -1, 3, 7, -1, -1, 10, 14, -1, -1, 11, 15, -1, -1);
    const __m256i x = _mm256_shuffle_epi8(load_twice(p), order);
    return nibbles(_mm256_or_si256(x, _mm256_slli_epi32(x, 12)));
}

/// 32 codes from 16 bytes, elements 0..15 in the low nibbles.
[[gnu::always_inline]] inline Codes half_codes(const uint8_t* p) {
    const __m256i order = _mm256_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 0, 8, 1, 9, 2, 10, 3, 11,  //
                                           4, 12, 5, 13, 6, 14, 7, 15, 4, 12, 5, 13, 6, 14, 7, 15);
    const __m256i x = _mm256_shuffle_epi8(load_twice(p), order);
    return nibbles(_mm256_srlv_epi64(x, _mm256_setr_epi64x(0, 4, 0, 4)));
}

[[gnu::always_inline]] inline __m256i gather_32(const uint8_t* p) {
    const __m256i first = _mm256_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, -1, -1, -1, -1, -1, -1, -1, -1,  //
                                           4, 12, 5, 13, 6, 14, 7, 15, -1, -1, -1, -1, -1, -1, -1, -1);
    const __m256i second = _mm256_setr_epi8(-1, -1, -1, -1, -1, -1, -1, -1, 0, 8, 1, 9, 2, 10, 3, 11,  //
                                            -1, -1, -1, -1, -1, -1, -1, -1, 4, 12, 5, 13, 6, 14, 7, 15);
    return _mm256_or_si256(_mm256_shuffle_epi8(load_twice(p), first), _mm256_shuffle_epi8(load_twice(p + 16), second));
}

/// 32 codes from the low (high) nibbles of 32 bytes.
[[gnu::always_inline]] inline Codes low_codes(const uint8_t* p) { return nibbles(gather_32(p)); }
[[gnu::always_inline]] inline Codes high_codes(const uint8_t* p) { return nibbles(_mm256_srli_epi16(gather_32(p), 4)); }

[[gnu::always_inline]] inline Group look_up(const Table& table, Codes codes) {
    const __m256i high = _mm256_shuffle_epi8(table.high, codes), low = _mm256_shuffle_epi8(table.low, codes);
    const __m256i first = _mm256_unpacklo_epi8(low, high), second = _mm256_unpackhi_epi8(low, high);
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000));
    return {{(F)_mm256_slli_epi32(first, 16), (F)_mm256_and_si256(first, upper), (F)_mm256_slli_epi32(second, 16),
             (F)_mm256_and_si256(second, upper)}};
}

// ---- int8 (cpu/kernels/strips_int8.inl) ----------------------------------------------------------------------------

[[gnu::always_inline]] inline __m256i broadcast_quad(const void* p) {
    return _mm256_set1_epi32(static_cast<int32_t>(read_u32(p)));
}

/// Sums of two products in 16 bits, modulo 2^16: a unit of 32 columns fits once the offset is taken off.
template <int offset>
struct OffsetDot {
    using Sums = __m256i;
    [[gnu::always_inline]] static Sums start(const int16_t* sums) {
        return _mm256_mullo_epi16(broadcast_quad(sums), _mm256_set1_epi16(-offset));
    }
    [[gnu::always_inline]] static Sums add(Sums sums, U codes, const int8_t* quad) {
        return _mm256_add_epi16(sums, _mm256_maddubs_epi16((__m256i)codes, broadcast_quad(quad)));
    }
    [[gnu::always_inline]] static I total(Sums sums) { return (I)_mm256_madd_epi16(sums, _mm256_set1_epi16(1)); }
};

struct SignedDot {
    using Sums = __m256i;
    [[gnu::always_inline]] static U prepare(U codes) { return codes; }
    [[gnu::always_inline]] static Sums start(const int16_t*) { return _mm256_setzero_si256(); }
    [[gnu::always_inline]] static Sums add(Sums sums, U codes, const int8_t* quad) {
        const __m256i w = (__m256i)codes;
        const __m256i pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(broadcast_quad(quad), w));
        return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    [[gnu::always_inline]] static I total(Sums sums) { return (I)sums; }
};

// ---- units besides the float one (cpu/kernels/peak.inl) ------------------------------------------------------------

constexpr int kBf16Operations = 0, kByteOperations = 64;
inline F multiply_bf16(F sum) { return sum; }
/// The sum is a factor too: products of constants would be computed once.
[[gnu::always_inline]] inline I multiply_bytes(I sum) {
    const __m256i products = _mm256_maddubs_epi16((__m256i)sum, _mm256_set1_epi8(3));
    return (I)_mm256_add_epi32((__m256i)sum, _mm256_madd_epi16(products, _mm256_set1_epi16(1)));
}

constexpr int kFetchAhead = 4096, kFetchNibblesAhead = 0;  // bytes; 0: as others
#include "cpu/kernels/e4m3.inl"
using E4M3Columns = PlainE4M3Columns;

#include "cpu/kernels/kernels.inl"

}  // namespace

constexpr KernelTable kAvx2Kernels = make_kernels("avx2");

}  // namespace thermocline::cpu
