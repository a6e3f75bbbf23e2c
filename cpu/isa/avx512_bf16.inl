// What the units with AVX-512 BF16 and VBMI share.

#include "cpu/isa/avx512.inl"

constexpr int kBf16Operations = 64;
[[gnu::always_inline]] inline F multiply_bf16(F sum) {
    const __m512i ones = _mm512_set1_epi16(0x3f80);
    __m512bh x;
    __builtin_memcpy(&x, &ones, sizeof x);
    return (F)_mm512_dpbf16_ps((__m512)sum, x, x);
}

// ---- pairs of bf16 numbers (cpu/kernels/strips_pairs.inl) -----------------------------------------------------------

[[gnu::always_inline]] inline F broadcast_bits(const float* p) {
    return (F)_mm512_set1_epi32(static_cast<int32_t>(read_u32(p)));
}

[[gnu::always_inline]] inline F add_products_of_pairs(F a, F b, F sum) {
    __m512bh x, y;
    __builtin_memcpy(&x, &a, sizeof x);
    __builtin_memcpy(&y, &b, sizeof y);
    return (F)_mm512_dpbf16_ps((__m512)sum, x, y);
}

using HalfTable = __m512i;
[[gnu::always_inline]] inline HalfTable make_half_table(const uint16_t values[16]) {
    return _mm512_broadcast_i64x4(load_32_bytes(values));
}
/// Every half of a word by its low four bits: the permutation takes five, and both halves of the table are the same.
[[gnu::always_inline]] inline F look_up_halves(const HalfTable& table, U words) {
    return (F)_mm512_permutexvar_epi16((__m512i)words, table);
}

/// Of both halves of every word, 0 where the result would be below it.
[[gnu::always_inline]] inline F subtract_halves(F from, U what) {
    return (F)_mm512_subs_epu16((__m512i)from, (__m512i)what);
}

[[gnu::always_inline]] inline F both_halves(int number) { return (F)_mm512_set1_epi16(static_cast<int16_t>(number)); }
/// 16 bytes, each in the upper byte of both halves of a word.
[[gnu::always_inline]] inline U bytes_in_halves(const uint8_t* p) {
    const U words = (U)load_u8(p);
    return words << 8 | words << 24;
}
/// Of every byte the high four bits.
[[gnu::always_inline]] inline U high_nibbles(U words) {
    return (U)_mm512_multishift_epi64_epi8(_mm512_set1_epi64(0x3c342c241c140c04), (__m512i)words);
}

/// A table of 16 bytes four times, so that of every byte the low four bits alone count.
using SpareBitsTable = __m512i;
[[gnu::always_inline]] inline SpareBitsTable make_spare_bits_table(const uint8_t* values) {
    return _mm512_broadcast_i32x4(load_16_bytes(values));
}
[[gnu::always_inline]] inline U look_up_spare_bits(const SpareBitsTable& table, U words) {
    return (U)_mm512_permutexvar_epi8((__m512i)words, table);
}
/// sums + products of four unsigned bytes and the signed quad at p.
[[gnu::always_inline]] inline I add_products_of_bytes(U bytes_, const int8_t* p, I sums) {
    return (I)_mm512_dpbusd_epi32((__m512i)sums, (__m512i)bytes_, broadcast_quad(p));
}

/// The bytes of bf16 numbers, each in the place of the code that it comes from.
struct SplitBF16 {
    __m512i low, high;
};

/// bf16 of 128 magnitudes, the first and the last 64.
struct MagnitudeTable {
    SplitBF16 first, last;
};

[[gnu::always_inline]] inline MagnitudeTable make_magnitude_table(auto number) {
    alignas(64) uint8_t low[128], high[128];
    for (int i = 0; i < 128; ++i) {
        const uint32_t bits = bits_as<uint32_t>(number(i));
        low[i] = static_cast<uint8_t>(bits >> 16);
        high[i] = static_cast<uint8_t>(bits >> 24);
    }
    return {{_mm512_load_si512(low), _mm512_load_si512(high)},
            {_mm512_load_si512(low + 64), _mm512_load_si512(high + 64)}};
}

/// Of e4m3 codes, times `unit`, a power of two. The NaN code reads as 480.
using E4M3Table = MagnitudeTable;
[[gnu::always_inline]] inline E4M3Table make_e4m3_table(float unit = 1.0f) {
    return make_magnitude_table([unit](int i) { return e4m3_number(static_cast<uint8_t>(i)) * unit; });
}

[[gnu::always_inline]] inline SplitBF16 look_up_magnitudes(const MagnitudeTable& table, U codes) {
    const __m512i index = (__m512i)codes;  // its low seven bits count
    return {_mm512_permutex2var_epi8(table.first.low, index, table.last.low),
            _mm512_permutex2var_epi8(table.first.high, index, table.last.high)};
}
[[gnu::always_inline]] inline SplitBF16 look_up_e4m3(const E4M3Table& table, U codes) {
    const SplitBF16 split = look_up_magnitudes(table, codes);
    return {split.low, (__m512i)((U)split.high | (codes & 0x80808080))};
}

[[gnu::always_inline]] inline MagnitudeTable make_int8_table() {
    return make_magnitude_table([](int i) { return static_cast<float>(i); });
}
/// Two's complement. Of -128 the low seven bits are those of 0, and so is the low byte of its number.
[[gnu::always_inline]] inline SplitBF16 look_up_int8(const MagnitudeTable& table, U codes) {
    const __m512i x = (__m512i)codes;
    const SplitBF16 split = look_up_magnitudes(table, (U)_mm512_abs_epi8(x));
    const __m512i high = (__m512i)((U)split.high | (codes & 0x80808080));
    return {split.low, _mm512_mask_mov_epi8(high, _mm512_cmpeq_epi8_mask(x, _mm512_set1_epi8(-128)),
                                            _mm512_set1_epi8(static_cast<char>(0xc3)))};
}

/// The numbers of bytes 0 and 2 of every word, and of bytes 1 and 3.
[[gnu::always_inline]] inline F even_bytes(const SplitBF16& split) {
    return (F)_mm512_mask_mov_epi8(_mm512_slli_epi16(split.high, 8), 0x5555555555555555, split.low);
}
[[gnu::always_inline]] inline F odd_bytes(const SplitBF16& split) {
    return (F)_mm512_mask_mov_epi8(_mm512_srli_epi16(split.low, 8), 0xaaaaaaaaaaaaaaaa, split.high);
}

#include "cpu/kernels/e4m3.inl"

struct E4M3Columns {
    struct Pairs {
        F even, odd;
    };
    E4M3Table table = make_e4m3_table();
    [[gnu::always_inline]] Pairs prepare(U words) const {
        const SplitBF16 split = look_up_e4m3(table, words);
        return {even_bytes(split), odd_bytes(split)};
    }
    [[gnu::always_inline]] F column(const Pairs& pairs, int j) const {
        const U pair = (U)(j % 2 ? pairs.odd : pairs.even);
        return (F)(j < 2 ? pair << 16 : pair & 0xffff0000);
    }
};

// In the order of use.
// clang-format off
#include "cpu/kernels/kernels.inl"
#include "cpu/kernels/strips_fixed.inl"
#include "cpu/kernels/strips_pairs.inl"
// clang-format on
