// The vector type of the AVX-512 units: 16 floats.

constexpr int kLanes = 16;
constexpr int kTileTokens = 6;  // 4 rows x 6 tokens fill 24 of the 32 registers

#include "cpu/kernels/vector.inl"

[[gnu::always_inline]] inline F fma(F a, F b, F c) { return (F)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
/// b where the comparison is false, so a NaN in b stays.
[[gnu::always_inline]] inline F min(F a, F b) { return (F)_mm512_min_ps((__m512)a, (__m512)b); }
[[gnu::always_inline]] inline F max(F a, F b) { return (F)_mm512_max_ps((__m512)a, (__m512)b); }

[[gnu::always_inline]] inline __m128i load_16_bytes(const void* p) {
    return _mm_loadu_si128(static_cast<const __m128i*>(p));
}
[[gnu::always_inline]] inline __m256i load_32_bytes(const void* p) {
    return _mm256_loadu_si256(static_cast<const __m256i*>(p));
}

[[gnu::always_inline]] inline I load_i8(const void* p) { return (I)_mm512_cvtepi8_epi32(load_16_bytes(p)); }
[[gnu::always_inline]] inline I load_u16(const void* p) { return (I)_mm512_cvtepu16_epi32(load_32_bytes(p)); }
[[gnu::always_inline]] inline float f16_number(const void* p) {
    return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(read_u16(p))));
}
[[gnu::always_inline]] inline F load_f16(const void* p) { return (F)_mm512_cvtph_ps(load_32_bytes(p)); }
[[gnu::always_inline]] inline F to_float(I x) { return (F)_mm512_cvtepi32_ps((__m512i)x); }
[[gnu::always_inline]] inline I round_to_int(F x) { return (I)_mm512_cvtps_epi32((__m512)x); }

[[gnu::always_inline]] inline I load_u8(const void* p) { return (I)_mm512_cvtepu8_epi32(load_16_bytes(p)); }
/// f16 numbers in the low halves of 32-bit lanes whose high halves are zero.
[[gnu::always_inline]] inline F f16_of_words(U words) {
    const __m512i x = (__m512i)words;
    const __m256i mixed = _mm256_packus_epi32(_mm512_castsi512_si256(x), _mm512_extracti64x4_epi64(x, 1));
    return (F)_mm512_cvtph_ps(_mm256_permute4x64_epi64(mixed, 0xd8));
}

using ByteTable = __m512i;
[[gnu::always_inline]] inline ByteTable make_byte_table(const uint8_t* values) {
    return _mm512_broadcast_i32x4(load_16_bytes(values));
}
/// Every byte (0 to 15) of the words looked up.
[[gnu::always_inline]] inline U look_up_bytes(const ByteTable& table, U words) {
    return (U)_mm512_shuffle_epi8(table, (__m512i)words);
}

[[gnu::always_inline]] inline Group load_words(Words words) {
    const __m256i bytes_ = (__m256i)words;
    return {{to_float((I)_mm512_cvtepi8_epi32(_mm256_castsi256_si128(bytes_))),
             to_float((I)_mm512_cvtepi8_epi32(_mm256_extracti128_si256(bytes_, 1)))}};
}

/// 32 e4m3 numbers times 2^-8: sign and fields moved to those of f16. The NaN codes come out as 480.
[[gnu::always_inline]] inline Group e4m3_group(const uint8_t* p) {
    const __m512i x = _mm512_cvtepi8_epi16(load_32_bytes(p));
    const __m512i f16 = _mm512_and_si512(_mm512_slli_epi16(x, 7), _mm512_set1_epi16(static_cast<int16_t>(0xbfff)));
    return {{(F)_mm512_cvtph_ps(_mm512_castsi512_si256(f16)), (F)_mm512_cvtph_ps(_mm512_extracti64x4_epi64(f16, 1))}};
}

[[gnu::always_inline]] inline __m256 fold(F x) {
    const __m512d wide = _mm512_castps_pd((__m512)x);
    return _mm256_add_ps(_mm256_castpd_ps(_mm512_castpd512_pd256(wide)),
                         _mm256_castpd_ps(_mm512_extractf64x4_pd(wide, 1)));
}

/// out[i] = sum of the lanes of a[i], all by the same tree.
[[gnu::always_inline]] inline void sum_lanes(const F a[4], float out[4]) {
    const __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(fold(a[0]), fold(a[1])), _mm256_hadd_ps(fold(a[2]), fold(a[3])));
    _mm_storeu_ps(out, _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1)));
}

/// The sum of the lanes.
[[gnu::always_inline]] inline int32_t add_lanes(I x) {
    const __m512d wide = (__m512d)x;
    const __m256i half = _mm256_add_epi32(_mm256_castpd_si256(_mm512_castpd512_pd256(wide)),
                                          _mm256_castpd_si256(_mm512_extractf64x4_pd(wide, 1)));
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(half), _mm256_extracti128_si256(half, 1));
    const __m128i two = _mm_hadd_epi32(four, four);
    return _mm_cvtsi128_si32(_mm_hadd_epi32(two, two));
}

[[gnu::always_inline]] inline F square_root(F x) { return (F)_mm512_sqrt_ps((__m512)x); }
/// Bit i: whether lane i of a mask is set.
[[gnu::always_inline]] inline uint32_t mask_bits(I mask) { return _mm512_movepi32_mask((__m512i)mask); }
/// Elements of a and b in turn: of their first halves, of their second halves.
[[gnu::always_inline]] inline F interleave_low(F a, F b) {
    return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
[[gnu::always_inline]] inline F interleave_high(F a, F b) {
    return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}

// ---- sixteen-entry tables: one register holds a table, one permutation looks up sixteen codes --------------------

using Table = F;

[[gnu::always_inline]] inline Table make_table(const float* values) { return load(values); }

/// Every word by its low four bits.
[[gnu::always_inline]] inline F look_up_words(const Table& table, U words) {
    return (F)_mm512_permutexvar_ps((__m512i)words, (__m512)table);
}

struct Codes {
    __m512i first, second;  // elements 0..15 and 16..31; only the low four bits of a lane count
};

/// 32 codes from 16 bytes, even elements in the low nibbles.
[[gnu::always_inline]] inline Codes pair_codes(const uint8_t* p) {
    const __m512i bytes_ = _mm512_cvtepu8_epi32(load_16_bytes(p));
    const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const __m512i shift = _mm512_setr_epi32(0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4, 0, 4);
    return {_mm512_srlv_epi32(_mm512_permutexvar_epi32(twice, bytes_), shift),
            _mm512_srlv_epi32(_mm512_permutexvar_epi32(_mm512_add_epi32(twice, _mm512_set1_epi32(8)), bytes_), shift)};
}

/// 32 codes from 16 bytes, elements 0..15 in the low nibbles.
[[gnu::always_inline]] inline Codes half_codes(const uint8_t* p) {
    const __m512i x = _mm512_cvtepu8_epi32(load_16_bytes(p));
    return {x, _mm512_srli_epi32(x, 4)};
}

/// 32 codes from the low (high) nibbles of 32 bytes.
[[gnu::always_inline]] inline Codes low_codes(const uint8_t* p) {
    return {_mm512_cvtepu8_epi32(load_16_bytes(p)), _mm512_cvtepu8_epi32(load_16_bytes(p + 16))};
}
[[gnu::always_inline]] inline Codes high_codes(const uint8_t* p) {
    const Codes codes = low_codes(p);
    return {_mm512_srli_epi32(codes.first, 4), _mm512_srli_epi32(codes.second, 4)};
}

[[gnu::always_inline]] inline Group look_up(const Table& table, Codes codes) {
    return {
        {(F)_mm512_permutexvar_ps(codes.first, (__m512)table), (F)_mm512_permutexvar_ps(codes.second, (__m512)table)}};
}

// ---- int8 (cpu/kernels/strips_int8.inl) ----------------------------------------------------------------------------

[[gnu::always_inline]] inline __m512i broadcast_quad(const void* p) {
    return _mm512_set1_epi32(static_cast<int32_t>(read_u32(p)));
}

template <int offset>
struct OffsetDot {
    using Sums = __m512i;
    static constexpr int kOffset = offset;
    [[gnu::always_inline]] static Sums start(const int16_t* sums) {
        return _mm512_madd_epi16(broadcast_quad(sums), _mm512_set1_epi16(-offset));
    }
    /// Of one sum instead of two.
    [[gnu::always_inline]] static Sums start_one(const int16_t* sum) { return _mm512_set1_epi32(-offset * *sum); }
    [[gnu::always_inline]] static Sums add(Sums sums, U codes, const int8_t* quad) {
        return _mm512_dpbusd_epi32(sums, (__m512i)codes, broadcast_quad(quad));
    }
    [[gnu::always_inline]] static I total(Sums sums) { return (I)sums; }
};

struct SignedDot : OffsetDot<128> {
    [[gnu::always_inline]] static U prepare(U codes) { return codes ^ 0x80808080; }
};

// ---- units besides the float one (cpu/kernels/peak.inl) ------------------------------------------------------------

constexpr int kByteOperations = 128;
/// The sum is a factor too: products of constants would be computed once.
[[gnu::always_inline]] inline I multiply_bytes(I sum) {
    return (I)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)sum, _mm512_set1_epi8(3));
}
