#include "src/quant/strips_gguf.h"

#include "src/base/check.h"
#include "src/quant/blocks.h"
#include "src/quant/codebooks.h"
#include "src/quant/scalar.h"

#include <cstring>

// A block here is 128 columns: four blocks of the file of 32 columns, or half of one of 256.
namespace thermocline::quant {
namespace {

template <typename Block>
const Block* file_blocks(const std::byte* row, int64_t block) {
    constexpr bool kHalves = sizeof(Block) > 32;
    return reinterpret_cast<const Block*>(row) + (kHalves ? block / 2 : block * 4);
}

// Codes are unpacked eight to a word, a byte each.

constexpr uint64_t kOnes = 0x0101010101010101;

uint64_t read_eight(const uint8_t* p) {
    uint64_t eight;
    std::memcpy(&eight, p, sizeof eight);
    return eight;
}

/// mask is at most 255 >> shift, so that no bit of a neighbour gets in.
uint64_t bit_fields(uint64_t eight, int shift, uint64_t mask) { return eight >> shift & mask * kOnes; }

/// The low nibbles of so many words, then the high ones.
void split_nibbles(const uint8_t* qs, int words, uint64_t* codes) {
    for (int i = 0; i < words; ++i) {
        const uint64_t eight = read_eight(qs + 8 * i);
        codes[i] = bit_fields(eight, 0, 15);
        codes[words + i] = bit_fields(eight, 4, 15);
    }
}

template <typename Block>
void unpack_nibbles(const Block* b, uint64_t* codes) {
    for (int g = 0; g < 4; ++g) split_nibbles(b[g].qs, 2, codes + 4 * g);
}

/// Bit i of the byte to byte i, as 0 or 1.
uint64_t spread_bits(uint64_t byte) {
    const uint64_t apart = byte * kOnes & 0x8040201008040201;
    return (apart + 0x7f * kOnes) >> 7 & kOnes;
}

template <typename Block>
void unpack_five(const Block* b, uint64_t* codes) {
    for (int g = 0; g < 4; ++g, codes += 4) {
        split_nibbles(b[g].qs, 2, codes);
        const uint32_t high = b[g].qh;
        for (int i = 0; i < 4; ++i) codes[i] |= spread_bits(high >> (8 * i) & 255) << 4;
    }
}

/// Nibbles of Q4_K and Q5_K: half order inside each 64.
void unpack_k_nibbles(const uint8_t* qs, uint64_t* codes) {
    for (int g = 0; g < 2; ++g) split_nibbles(qs + 32 * g, 4, codes + 8 * g);
}

/// Column 32 g + l gets bit first + g of high[l], as bit `place`.
void add_bits(const uint8_t* high, int first, int place, uint64_t* codes) {
    for (int i = 0; i < 4; ++i) {
        const uint64_t eight = read_eight(high + 8 * i);
        for (int g = 0; g < 4; ++g) codes[4 * g + i] |= bit_fields(eight, first + g, 1) << place;
    }
}

void unpack_k_pairs(const uint8_t* qs, uint64_t* codes) {
    for (int i = 0; i < 4; ++i) {
        const uint64_t eight = read_eight(qs + 8 * i);
        for (int g = 0; g < 4; ++g) codes[4 * g + i] = bit_fields(eight, 2 * g, 3);
    }
}

void unpack_q6(const BlockQ6_K& b, int64_t half, uint64_t* codes) {
    const uint8_t *low = b.ql + 64 * half, *high = b.qh + 32 * half;
    for (int k = 0; k < 4; ++k)
        for (int i = 0; i < 4; ++i)
            codes[4 * k + i] = bit_fields(read_eight(low + 32 * (k & 1) + 8 * i), k / 2 * 4, 15) |
                               bit_fields(read_eight(high + 8 * i), 2 * k, 3) << 4;
}

int iq4_xs_scale(const BlockIQ4_XS& b, int64_t g) {
    const int low = b.scales_low[g / 2] >> (4 * (g % 2)) & 15;
    return (low | (b.scales_high >> (2 * g) & 3) << 4) - 32;
}

/// Nibbles of 64 columns, in half order inside each 16.
void unpack_nvfp4(const BlockNvfp4& b, uint64_t* codes) {
    for (int t = 0; t < 4; ++t) split_nibbles(b.qs + 8 * t, 1, codes + 2 * t);
}

void invert_pairs(uint64_t* codes) {
    for (int i = 0; i < 16; ++i) codes[i] ^= 3 * kOnes;
}

/// Four elements a byte, lowest bits first.
void unpack_q2_0(const BlockQ2_0* b, uint64_t* codes) {
    for (int i = 0; i < 16; ++i) {
        const uint8_t* qs = b[i / 8].qs + 2 * (i % 8);
        uint64_t eight = qs[0] | uint64_t{qs[1]} << 32;
        eight = (eight | eight << 12) & 0x000f000f000f000f;
        codes[i] = (eight | eight << 6) & 3 * kOnes;
    }
    invert_pairs(codes);
}

/// Ternary digit `digit` of each of `count` bytes, a multiple of 4, as 3 - t.
void put_digits(const uint8_t* bytes, int digit, int count, uint8_t* out) {
    constexpr uint64_t kPowers[5] = {1, 3, 9, 27, 81}, kLow = 0x00ff00ff00ff00ff;
    for (int i = 0; i < count; i += 4) {
        uint32_t four;
        std::memcpy(&four, bytes + i, sizeof four);
        uint64_t apart = (four | uint64_t{four} << 16) & 0x0000ffff0000ffff;  // a byte to every 16 bits
        apart = (apart | apart << 8) & kLow;
        apart = (apart * kPowers[digit] & kLow) * 3 >> 8 & 0x0003000300030003;
        apart = (apart | apart >> 8) & 0x0000ffff0000ffff;
        four = static_cast<uint32_t>(apart | apart >> 16) ^ 0x03030303;
        std::memcpy(out + i, &four, sizeof four);
    }
}

/// Columns 0 .. 159 are five digits of 32 bytes, 160 .. 239 of 16 bytes, 240 .. 255 four digits of four bytes.
void unpack_tq1(const BlockTQ1_0& b, int64_t half, uint64_t* codes) {
    auto* out = reinterpret_cast<uint8_t*>(codes);
    if (half == 0) {
        for (int digit = 0; digit < 4; ++digit) put_digits(b.qs, digit, 32, out + 32 * digit);
        return;
    }
    put_digits(b.qs, 4, 32, out);
    for (int digit = 0; digit < 5; ++digit) put_digits(b.qs + 32, digit, 16, out + 32 + 16 * digit);
    for (int digit = 0; digit < 4; ++digit) put_digits(b.qh, digit, 4, out + 112 + 4 * digit);
}

/// The scale of NVFP4 as e4m3: the sign bit means nothing, NaN is zero (reference_blocks.cpp).
uint8_t nvfp4_scale(uint8_t code) { return (code & 0x7f) == 0x7f ? 0 : code & 0x7f; }

/// The fields of one row of a packed block.
class Fields {
public:
    Fields(const int64_t* starts, int64_t r, std::byte* out) : starts_(starts), r_(r), out_(out) {}

    void put(int field, int64_t group, uint8_t value) {
        out_[starts_[field] + group * kStripRows + r_] = static_cast<std::byte>(value);
    }
    void put(int field, int64_t group, U16 value) {
        std::memcpy(out_ + starts_[field] + (group * kStripRows + r_) * 2, &value, sizeof value);
    }

private:
    const int64_t* starts_;
    int64_t r_;
    std::byte* out_;
};

U16 negative(U16 f16) { return U16::of(static_cast<uint16_t>(f16 ^ 0x8000)); }

template <typename Block>
void put_d(const Block* b, Fields& out) {
    for (int g = 0; g < 4; ++g) out.put(0, g, b[g].d);
}

template <typename Block>
void put_d_and_m(const Block* b, Fields& out) {
    for (int g = 0; g < 4; ++g) out.put(0, g, b[g].d), out.put(1, g, b[g].m);
}

template <typename Block>
void put_scale_and_minimum(const Block& b, int64_t half, Fields& out) {
    for (int g = 0; g < 4; ++g) {
        const ScaleMin s = scale_min_k4(b.scales, static_cast<int>(4 * half) + g);
        out.put(0, g, s.scale), out.put(1, g, s.min);
    }
    out.put(2, 0, b.d), out.put(3, 0, b.dmin);
}

/// The 16 low nibbles stand as t and t + 8 in a byte, the high pairs as t, t + 4, t + 8 and t + 12.
void put_q3_scales(const BlockQ3_K& b, int64_t half, Fields& out) {
    const auto low = [&](int t) { return b.scales[t] >> (4 * half) & 15; };
    const auto high = [&](int t) { return b.scales[8 + t % 4] >> (4 * half + t / 4 * 2) & 3; };
    for (int i = 0; i < 4; ++i) out.put(0, i, static_cast<uint8_t>(low(2 * i) | low(2 * i + 1) << 4));
    for (int i = 0; i < 2; ++i) {
        uint8_t pairs = 0;
        for (int t = 0; t < 4; ++t) pairs = static_cast<uint8_t>(pairs | high(4 * i + t) << (2 * t));
        out.put(1, i, pairs);
    }
    out.put(2, 0, b.d);
}

}  // namespace

bool is_gguf_strip(Format format) { return gguf_strip_shape(format).code_bits != 0; }

StripShape gguf_strip_shape(Format format) {
    switch (format) {
        case Format::kQ4_0:
        case Format::kIQ4_NL:
            return {4, {{2, 32}}};
        case Format::kNvfp4Block:
            return {4, {{1, 16}}};
        case Format::kQ4_1:
            return {4, {{2, 32}, {2, 32}}};
        case Format::kQ5_0:
            return {5, {{2, 32}}};
        case Format::kQ5_1:
            return {5, {{2, 32}, {2, 32}}};
        case Format::kQ4_K:
            return {4, {{1, 32}, {1, 32}, {2, 128}, {2, 128}}};
        case Format::kQ5_K:
            return {5, {{1, 32}, {1, 32}, {2, 128}, {2, 128}}};
        case Format::kIQ4_XS:
            return {4, {{1, 32}, {2, 128}}};
        case Format::kQ6_K:
            return {6, {{1, 16}, {2, 128}}};
        case Format::kQ2_K:
            return {2, {{1, 16}, {2, 128}, {2, 128}}};
        case Format::kQ3_K:
            return {3, {{1, 32}, {1, 64}, {2, 128}}};
        case Format::kQ2_0:
            return {2, {{2, 64}}};
        case Format::kTQ1_0:
        case Format::kTQ2_0:
            return {2, {{2, 128}}};
        case Format::kQ1_0:
            return {1, {{2, 128}}};
        default:
            return {};
    }
}

int low_bits(int code_bits) { return code_bits == 3 ? 2 : code_bits == 5 || code_bits == 6 ? 4 : code_bits; }

void unpack_gguf_codes(Format format, const std::byte* row, int64_t block, uint64_t* codes) {
    const int64_t half = block % 2;
    switch (format) {
        case Format::kQ4_0:
            return unpack_nibbles(file_blocks<BlockQ4_0>(row, block), codes);
        case Format::kQ4_1:
            return unpack_nibbles(file_blocks<BlockQ4_1>(row, block), codes);
        case Format::kIQ4_NL:
            return unpack_nibbles(file_blocks<BlockIQ4_NL>(row, block), codes);
        case Format::kQ5_0:
            return unpack_five(file_blocks<BlockQ5_0>(row, block), codes);
        case Format::kQ5_1:
            return unpack_five(file_blocks<BlockQ5_1>(row, block), codes);
        case Format::kIQ4_XS: {
            const BlockIQ4_XS* b = file_blocks<BlockIQ4_XS>(row, block);
            for (int g = 0; g < 4; ++g) split_nibbles(b->qs + 64 * half + 16 * g, 2, codes + 4 * g);
            return;
        }
        case Format::kNvfp4Block: {
            const auto* b = reinterpret_cast<const BlockNvfp4*>(row) + 2 * block;
            return unpack_nvfp4(b[0], codes), unpack_nvfp4(b[1], codes + 8);
        }
        case Format::kQ4_K:
            return unpack_k_nibbles(file_blocks<BlockQ4_K>(row, block)->qs + 64 * half, codes);
        case Format::kQ5_K: {
            const BlockQ5_K* b = file_blocks<BlockQ5_K>(row, block);
            unpack_k_nibbles(b->qs + 64 * half, codes);
            return add_bits(b->high, static_cast<int>(4 * half), 4, codes);
        }
        case Format::kQ6_K:
            return unpack_q6(*file_blocks<BlockQ6_K>(row, block), half, codes);
        case Format::kQ2_K:
            return unpack_k_pairs(file_blocks<BlockQ2_K>(row, block)->qs + 32 * half, codes);
        case Format::kQ3_K: {
            const BlockQ3_K* b = file_blocks<BlockQ3_K>(row, block);
            unpack_k_pairs(b->qs + 32 * half, codes);
            return add_bits(b->high, static_cast<int>(4 * half), 2, codes);
        }
        case Format::kQ2_0:
            return unpack_q2_0(reinterpret_cast<const BlockQ2_0*>(row) + 2 * block, codes);
        case Format::kTQ1_0:
            return unpack_tq1(*file_blocks<BlockTQ1_0>(row, block), half, codes);
        case Format::kTQ2_0:
            unpack_k_pairs(file_blocks<BlockTQ2_0>(row, block)->qs + 32 * half, codes);
            return invert_pairs(codes);
        case Format::kQ1_0: {
            const auto& b = reinterpret_cast<const BlockQ1_0*>(row)[block];
            for (int i = 0; i < 16; ++i) codes[i] = spread_bits(b.bits[i]);
            return;
        }
        default:
            CHECK(!"not a format of the table");
    }
}

void put_gguf_fields(Format format, const std::byte* row, int64_t block, const int64_t* starts, int64_t r,
                     std::byte* out) {
    const int64_t half = block % 2;
    Fields fields(starts, r, out);
    switch (format) {
        case Format::kQ4_0:
            return put_d(file_blocks<BlockQ4_0>(row, block), fields);
        case Format::kIQ4_NL:
            return put_d(file_blocks<BlockIQ4_NL>(row, block), fields);
        case Format::kQ5_0:
            return put_d(file_blocks<BlockQ5_0>(row, block), fields);
        case Format::kQ4_1:
            return put_d_and_m(file_blocks<BlockQ4_1>(row, block), fields);
        case Format::kQ5_1:
            return put_d_and_m(file_blocks<BlockQ5_1>(row, block), fields);
        case Format::kQ4_K:
            return put_scale_and_minimum(*file_blocks<BlockQ4_K>(row, block), half, fields);
        case Format::kQ5_K:
            return put_scale_and_minimum(*file_blocks<BlockQ5_K>(row, block), half, fields);
        case Format::kQ3_K:
            return put_q3_scales(*file_blocks<BlockQ3_K>(row, block), half, fields);
        case Format::kNvfp4Block: {
            const auto* b = reinterpret_cast<const BlockNvfp4*>(row) + 2 * block;
            for (int g = 0; g < 8; ++g) fields.put(0, g, nvfp4_scale(b[g / 4].scales[g % 4]));
            return;
        }
        case Format::kIQ4_XS: {
            const BlockIQ4_XS* b = file_blocks<BlockIQ4_XS>(row, block);
            for (int g = 0; g < 4; ++g) fields.put(0, g, static_cast<uint8_t>(iq4_xs_scale(*b, 4 * half + g)));
            return fields.put(1, 0, b->d);
        }
        case Format::kQ6_K: {
            const BlockQ6_K* b = file_blocks<BlockQ6_K>(row, block);
            for (int g = 0; g < 8; ++g) fields.put(0, g, static_cast<uint8_t>(b->scales[8 * half + g]));
            return fields.put(1, 0, b->d);
        }
        case Format::kQ2_K: {
            const BlockQ2_K* b = file_blocks<BlockQ2_K>(row, block);
            for (int g = 0; g < 8; ++g) fields.put(0, g, b->scales[8 * half + g]);
            return fields.put(1, 0, b->d), fields.put(2, 0, b->dmin);
        }
        case Format::kQ2_0: {
            const auto* b = reinterpret_cast<const BlockQ2_0*>(row) + 2 * block;
            return fields.put(0, 0, negative(b[0].d)), fields.put(0, 1, negative(b[1].d));
        }
        case Format::kTQ1_0:
            return fields.put(0, 0, negative(file_blocks<BlockTQ1_0>(row, block)->d));
        case Format::kTQ2_0:
            return fields.put(0, 0, negative(file_blocks<BlockTQ2_0>(row, block)->d));
        case Format::kQ1_0:
            return fields.put(0, 0, reinterpret_cast<const BlockQ1_0*>(row)[block].d);
        default:
            CHECK(!"not a format of the table");
    }
}

double gguf_strip_value(Format format, const std::byte* block, int64_t r, int64_t column, int code) {
    const StripShape shape = gguf_strip_shape(format);
    const auto byte = [&](int field, int64_t group) {
        return std::to_integer<int>(block[shape.offset(field, group, r)]);
    };
    const auto number = [&](int field, int64_t group) -> double {
        return f16_to_float(static_cast<uint16_t>(byte(field, group) |
                                                  std::to_integer<int>(block[shape.offset(field, group, r) + 1]) << 8));
    };
    const auto signed_byte = [&](int64_t group) { return static_cast<int8_t>(byte(0, group)); };
    const int64_t g = column / 32, t = column / 16;
    switch (format) {
        case Format::kQ4_0:
            return number(0, g) * (code - 8);
        case Format::kQ5_0:
            return number(0, g) * (code - 16);
        case Format::kIQ4_NL:
            return number(0, g) * kIq4Values[code];
        case Format::kQ4_1:
        case Format::kQ5_1:
            return number(0, g) * code + number(1, g);
        case Format::kQ4_K:
        case Format::kQ5_K:
            return number(2, 0) * byte(0, g) * code - number(3, 0) * byte(1, g);
        case Format::kIQ4_XS:
            return number(1, 0) * signed_byte(g) * kIq4Values[code];
        case Format::kQ6_K:
            return number(1, 0) * signed_byte(t) * (code - 32);
        case Format::kQ2_K:
            return number(1, 0) * (byte(0, t) & 15) * code - number(2, 0) * (byte(0, t) >> 4);
        case Format::kQ3_K: {
            const int scale = (byte(0, t / 2) >> (4 * (t % 2)) & 15) | (byte(1, t / 4) >> (2 * (t % 4)) & 3) << 4;
            return number(2, 0) * (scale - 32) * (code - 4);
        }
        case Format::kQ2_0:
            return number(0, column / 64) * (code - 2);
        case Format::kTQ1_0:
        case Format::kTQ2_0:
            return number(0, 0) * (code - 2);
        case Format::kQ1_0:
            return number(0, 0) * (2 * code - 1);
        default:
            CHECK(!"not a format of the table");
    }
    return 0.0;
}

}  // namespace thermocline::quant
