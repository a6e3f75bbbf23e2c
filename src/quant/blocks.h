// The self-contained blocks of GGUF files as they lie on disk (weight-formats.md section 9). Every struct consists of
// single bytes, so its alignment is 1: a pointer into a mapped file may be read through it at any address.
#pragma once

#include <cstdint>

namespace thermocline::quant {

/// Little-endian 16-bit field without alignment.
struct U16 {
    uint8_t low, high;
    constexpr operator uint16_t() const { return static_cast<uint16_t>(low | (high << 8)); }
    static constexpr U16 of(uint16_t value) {
        return {static_cast<uint8_t>(value & 255), static_cast<uint8_t>(value >> 8)};
    }
};

/// Little-endian 32-bit field without alignment.
struct U32 {
    U16 low, high;
    constexpr operator uint32_t() const { return uint32_t{low} | (uint32_t{high} << 16); }
    static constexpr U32 of(uint32_t value) {
        return {U16::of(static_cast<uint16_t>(value & 0xffff)), U16::of(static_cast<uint16_t>(value >> 16))};
    }
};

// d, dmin, m: f16 bits. "half order": byte j of qs holds element j (low nibble) and j + half (high nibble).

struct BlockQ4_0 {  // 32: d * (n - 8)
    U16 d;
    uint8_t qs[16];  // half order
};
static_assert(sizeof(BlockQ4_0) == 18 && alignof(BlockQ4_0) == 1);

struct BlockQ4_1 {  // 32: d * n + m
    U16 d, m;
    uint8_t qs[16];  // half order
};
static_assert(sizeof(BlockQ4_1) == 20 && alignof(BlockQ4_1) == 1);

struct BlockQ5_0 {  // 32: d * (n - 16)
    U16 d;
    U32 qh;          // bit i: bit 4 of element i
    uint8_t qs[16];  // half order
};
static_assert(sizeof(BlockQ5_0) == 22 && alignof(BlockQ5_0) == 1);

struct BlockQ5_1 {  // 32: d * n + m
    U16 d, m;
    U32 qh;
    uint8_t qs[16];  // half order
};
static_assert(sizeof(BlockQ5_1) == 24 && alignof(BlockQ5_1) == 1);

struct BlockQ8_0 {  // 32: d * q
    U16 d;
    int8_t qs[32];
};
static_assert(sizeof(BlockQ8_0) == 34 && alignof(BlockQ8_0) == 1);

struct BlockIQ4_NL {  // 32: d * kIq4Values[n]
    U16 d;
    uint8_t qs[16];  // half order
};
static_assert(sizeof(BlockIQ4_NL) == 18 && alignof(BlockIQ4_NL) == 1);

struct BlockMxfp4 {  // 32: e2m1(n) * 2^(e - 127)
    uint8_t e;
    uint8_t qs[16];  // half order
};
static_assert(sizeof(BlockMxfp4) == 17 && alignof(BlockMxfp4) == 1);

struct BlockNvfp4 {  // 64: e2m1(n) * ue4m3(scales[i / 16]); a per-tensor multiplier lies in another tensor
    uint8_t scales[4];
    uint8_t qs[32];  // half order inside each 16
};
static_assert(sizeof(BlockNvfp4) == 36 && alignof(BlockNvfp4) == 1);

struct BlockQ1_0 {  // 128: +d or -d
    U16 d;
    uint8_t bits[16];
};
static_assert(sizeof(BlockQ1_0) == 18 && alignof(BlockQ1_0) == 1);

struct BlockQ2_0 {  // 64: d * (c - 1)
    U16 d;
    uint8_t qs[16];  // four elements a byte, lowest bits first
};
static_assert(sizeof(BlockQ2_0) == 18 && alignof(BlockQ2_0) == 1);

struct BlockE4M3 {  // 128: e4m3(q) * 2^(e - 127)
    uint8_t e;
    uint8_t qs[128];
};
static_assert(sizeof(BlockE4M3) == 129 && alignof(BlockE4M3) == 1);

struct BlockQ2_K {  // 256: d * lo(s) * q - dmin * hi(s), s per 16
    uint8_t scales[16];
    uint8_t qs[64];
    U16 d, dmin;
};
static_assert(sizeof(BlockQ2_K) == 84 && alignof(BlockQ2_K) == 1);

struct BlockQ3_K {  // 256: d * (scale - 32) * (q - 4), scale per 16
    uint8_t high[32];
    uint8_t qs[64];
    uint8_t scales[12];  // 6 bits each: 16 low nibbles, then 16 high pairs
    U16 d;
};
static_assert(sizeof(BlockQ3_K) == 110 && alignof(BlockQ3_K) == 1);

struct BlockQ4_K {  // 256: d * scale * q - dmin * min, scale and min per 32
    U16 d, dmin;
    uint8_t scales[12];  // 6 bits each, see scale_min_k4()
    uint8_t qs[128];     // half order inside each 64
};
static_assert(sizeof(BlockQ4_K) == 144 && alignof(BlockQ4_K) == 1);

struct BlockQ5_K {  // 256: as Q4_K with a fifth bit
    U16 d, dmin;
    uint8_t scales[12];
    uint8_t high[32];  // bit g of byte l: bit 4 of element 32 g + l
    uint8_t qs[128];
};
static_assert(sizeof(BlockQ5_K) == 176 && alignof(BlockQ5_K) == 1);

struct BlockQ6_K {  // 256: d * scale * (q - 32), scale per 16
    uint8_t ql[128];
    uint8_t qh[64];
    int8_t scales[16];
    U16 d;
};
static_assert(sizeof(BlockQ6_K) == 210 && alignof(BlockQ6_K) == 1);

struct BlockIQ4_XS {  // 256: d * (scale - 32) * kIq4Values[n], scale per 32
    U16 d;
    U16 scales_high;
    uint8_t scales_low[4];
    uint8_t qs[128];  // half order inside each 32
};
static_assert(sizeof(BlockIQ4_XS) == 136 && alignof(BlockIQ4_XS) == 1);

struct BlockIQ2_XXS {  // 256
    U16 d;
    struct {
        uint8_t index[4];
        U32 signs_scale;  // four 7-bit sign codes, scale in the top 4 bits
    } groups[8];
};
static_assert(sizeof(BlockIQ2_XXS) == 66 && alignof(BlockIQ2_XXS) == 1);

struct BlockIQ2_XS {  // 256
    U16 d;
    U16 qs[32];  // 9 bits index, 7 bits sign code
    uint8_t scales[8];
};
static_assert(sizeof(BlockIQ2_XS) == 74 && alignof(BlockIQ2_XS) == 1);

struct BlockIQ2_S {  // 256
    U16 d;
    uint8_t qs[32];
    uint8_t signs[32];
    uint8_t qh[8];
    uint8_t scales[8];
};
static_assert(sizeof(BlockIQ2_S) == 82 && alignof(BlockIQ2_S) == 1);

struct BlockIQ3_XXS {  // 256
    U16 d;
    uint8_t qs[64];
    U32 signs_scale[8];  // four 7-bit sign codes, scale in the top 4 bits
};
static_assert(sizeof(BlockIQ3_XXS) == 98 && alignof(BlockIQ3_XXS) == 1);

struct BlockIQ3_S {  // 256
    U16 d;
    uint8_t qs[64];
    uint8_t qh[8];
    uint8_t signs[32];
    uint8_t scales[4];
};
static_assert(sizeof(BlockIQ3_S) == 110 && alignof(BlockIQ3_S) == 1);

struct BlockIQ1_S {  // 256
    U16 d;
    uint8_t qs[32];
    U16 qh[8];  // four times 3 high index bits, 3 bits scale, sign of the offset
};
static_assert(sizeof(BlockIQ1_S) == 50 && alignof(BlockIQ1_S) == 1);

struct BlockIQ1_M {  // 256; d is spread over the top nibbles of scales
    uint8_t qs[32];
    uint8_t qh[16];
    U16 scales[4];
};
static_assert(sizeof(BlockIQ1_M) == 56 && alignof(BlockIQ1_M) == 1);

struct BlockTQ1_0 {  // 256: d * (t - 1), five ternary digits a byte
    uint8_t qs[48];
    uint8_t qh[4];
    U16 d;
};
static_assert(sizeof(BlockTQ1_0) == 54 && alignof(BlockTQ1_0) == 1);

struct BlockTQ2_0 {  // 256: d * (q - 1)
    uint8_t qs[64];
    U16 d;
};
static_assert(sizeof(BlockTQ2_0) == 66 && alignof(BlockTQ2_0) == 1);

struct ScaleMin {
    uint8_t scale, min;
};

/// The 6-bit scale and minimum of group t (0..7) from the 12 bytes of a Q4_K or Q5_K block.
constexpr ScaleMin scale_min_k4(const uint8_t* scales, int t) {
    if (t < 4) return {static_cast<uint8_t>(scales[t] & 63), static_cast<uint8_t>(scales[t + 4] & 63)};
    return {static_cast<uint8_t>((scales[t + 4] & 15) | ((scales[t - 4] >> 6) << 4)),
            static_cast<uint8_t>((scales[t + 4] >> 4) | ((scales[t] >> 6) << 4))};
}

}  // namespace thermocline::quant
