// The kernels in plain C++ with 4 lanes of the compiler's own vector type: runs on every processor, and reads like the
// definition of what the other tiers do.
#include "cpu/isa/tables.h"

namespace thermocline::cpu {
namespace {

constexpr int kLanes = 4;
constexpr int kTileTokens = 2;

#include "cpu/kernels/vector.inl"

[[gnu::always_inline]] inline F fma(F a, F b, F c) { return a * b + c; }
/// b where the comparison is false, so a NaN in b stays.
[[gnu::always_inline]] inline F min(F a, F b) { return select(a < b, a, b); }
[[gnu::always_inline]] inline F max(F a, F b) { return select(a > b, a, b); }

[[gnu::always_inline]] inline I load_i8(const void* p) {
    int8_t x[4];
    __builtin_memcpy(x, p, sizeof x);
    return I{x[0], x[1], x[2], x[3]};
}
[[gnu::always_inline]] inline I load_u16(const void* p) {
    uint16_t x[4];
    __builtin_memcpy(x, p, sizeof x);
    return I{x[0], x[1], x[2], x[3]};
}
[[gnu::always_inline]] inline float f16_number(const void* p) {
    const uint32_t code = read_u16(p), magnitude = code & 0x7fff;
    const uint32_t finite = bits_as<uint32_t>(bits_as<float>(magnitude << 13) * 0x1p112f);
    const uint32_t special = 0x7f800000 | (magnitude << 13);
    return bits_as<float>((code & 0x8000) << 16 | (magnitude < 0x7c00 ? finite : special));
}

[[gnu::always_inline]] inline F load_f16(const void* p) {
    const uint8_t* bytes = static_cast<const uint8_t*>(p);
    return F{f16_number(bytes), f16_number(bytes + 2), f16_number(bytes + 4), f16_number(bytes + 6)};
}
[[gnu::always_inline]] inline F to_float(I x) { return __builtin_convertvector(x, F); }
/// Nearest even for |x| < 2^22: adding 1.5 * 2^23 leaves the integer in the low bits.
[[gnu::always_inline]] inline I round_to_int(F x) {
    const F anchor = broadcast(12582912.0f);
    return as_int(x + anchor) - as_int(anchor);
}

[[gnu::always_inline]] inline I load_u8(const void* p) {
    uint8_t x[4];
    __builtin_memcpy(x, p, sizeof x);
    return I{x[0], x[1], x[2], x[3]};
}
/// f16 numbers in the low halves of 32-bit lanes whose high halves are zero.
[[gnu::always_inline]] inline F f16_of_words(U words) {
    F out;
    for (int i = 0; i < kLanes; ++i) {
        const uint16_t code = static_cast<uint16_t>(words[i]);
        out[i] = f16_number(&code);
    }
    return out;
}

struct ByteTable {
    uint8_t values[16];
};
[[gnu::always_inline]] inline ByteTable make_byte_table(const uint8_t* values) {
    ByteTable table;
    __builtin_memcpy(table.values, values, sizeof table.values);
    return table;
}
/// Every byte (0 to 15) of the words looked up.
[[gnu::always_inline]] inline U look_up_bytes(const ByteTable& table, U words) {
    uint8_t bytes[sizeof words];
    __builtin_memcpy(bytes, &words, sizeof words);
    for (uint8_t& byte : bytes) byte = table.values[byte];
    __builtin_memcpy(&words, bytes, sizeof words);
    return words;
}

[[gnu::always_inline]] inline Group load_words(const Words& words) {
    int8_t codes[32];
    __builtin_memcpy(codes, &words, sizeof codes);
    Group group;
    for (int i = 0; i < 32; ++i) group.v[i / kLanes][i % kLanes] = codes[i];
    return group;
}

/// 32 e4m3 numbers times 2^-8.
[[gnu::always_inline]] inline Group e4m3_group(const uint8_t* p) {
    Group group;
    for (int i = 0; i < 32; ++i) group.v[i / kLanes][i % kLanes] = e4m3_number(p[i]) * 0x1p-8f;
    return group;
}

/// out[i] = sum of the lanes of a[i], all by the same tree.
[[gnu::always_inline]] inline void sum_lanes(const F a[4], float out[4]) {
    for (int i = 0; i < 4; ++i) out[i] = (a[i][0] + a[i][1]) + (a[i][2] + a[i][3]);
}

[[gnu::always_inline]] inline F square_root(F x) {
    for (int i = 0; i < kLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
    return x;
}
/// Bit i: whether lane i of a mask is set.
[[gnu::always_inline]] inline uint32_t mask_bits(I mask) {
    return (mask[0] & 1u) | (mask[1] & 2u) | (mask[2] & 4u) | (mask[3] & 8u);
}
/// Elements of a and b in turn: of their first halves, of their second halves.
[[gnu::always_inline]] inline F interleave_low(F a, F b) { return __builtin_shufflevector(a, b, 0, 4, 1, 5); }
[[gnu::always_inline]] inline F interleave_high(F a, F b) { return __builtin_shufflevector(a, b, 2, 6, 3, 7); }

// ---- sixteen-entry tables --------------------------------------------------------------------------------------

struct Table {
    float values[16];
};

[[gnu::always_inline]] inline Table make_table(const float* values) {
    Table table;
    __builtin_memcpy(table.values, values, sizeof table.values);
    return table;
}

struct Codes {
    uint8_t code[32];
};

/// 32 codes from 16 bytes, even elements in the low nibbles.
[[gnu::always_inline]] inline Codes pair_codes(const uint8_t* p) {
    Codes codes;
    for (int i = 0; i < 16; ++i) codes.code[2 * i] = p[i] & 15, codes.code[2 * i + 1] = p[i] >> 4;
    return codes;
}

/// 32 codes from 16 bytes, elements 0..15 in the low nibbles.
[[gnu::always_inline]] inline Codes half_codes(const uint8_t* p) {
    Codes codes;
    for (int i = 0; i < 16; ++i) codes.code[i] = p[i] & 15, codes.code[16 + i] = p[i] >> 4;
    return codes;
}

/// 32 codes from the low (high) nibbles of 32 bytes.
[[gnu::always_inline]] inline Codes low_codes(const uint8_t* p) {
    Codes codes;
    for (int i = 0; i < 32; ++i) codes.code[i] = p[i] & 15;
    return codes;
}
[[gnu::always_inline]] inline Codes high_codes(const uint8_t* p) {
    Codes codes;
    for (int i = 0; i < 32; ++i) codes.code[i] = p[i] >> 4;
    return codes;
}

[[gnu::always_inline]] inline Group look_up(const Table& table, const Codes& codes) {
    Group group;
    for (int i = 0; i < 32; ++i) group.v[i / kLanes][i % kLanes] = table.values[codes.code[i]];
    return group;
}

// ---- int8 (cpu/kernels/strips_int8.inl) ----------------------------------------------------------------------------

template <int offset>
struct OffsetDot {
    using Sums = I;
    [[gnu::always_inline]] static Sums start(const int16_t* sums) { return I{} - offset * (sums[0] + sums[1]); }
    [[gnu::always_inline]] static Sums add(Sums sums, U codes, const int8_t* quad) {
        for (int j = 0; j < 4; ++j) sums += (I)(codes >> (8 * j) & 255) * quad[j];
        return sums;
    }
    [[gnu::always_inline]] static I total(Sums sums) { return sums; }
};

struct SignedDot {
    using Sums = I;
    [[gnu::always_inline]] static U prepare(U codes) { return codes; }
    [[gnu::always_inline]] static Sums start(const int16_t*) { return I{}; }
    [[gnu::always_inline]] static Sums add(Sums sums, U codes, const int8_t* quad) {
        for (int j = 0; j < 4; ++j) sums += ((I)(codes << (24 - 8 * j)) >> 24) * quad[j];
        return sums;
    }
    [[gnu::always_inline]] static I total(Sums sums) { return sums; }
};

// ---- no unit but the float one -----------------------------------------------------------------------------------

constexpr int kBf16Operations = 0, kByteOperations = 0;
inline F multiply_bf16(F sum) { return sum; }
inline I multiply_bytes(I sum) { return sum; }

constexpr int kFetchAhead = 4096, kFetchNibblesAhead = 0;  // bytes; 0: as others
#include "cpu/kernels/e4m3.inl"
using E4M3Columns = PlainE4M3Columns;

#include "cpu/kernels/kernels.inl"

}  // namespace

constexpr KernelTable kScalarKernels = make_kernels("scalar");

}  // namespace thermocline::cpu
