// Decoders of the GGUF blocks with regular codes (weight-formats.md sections 9.1 to 9.4). A value is code * scale -
// offset; products of a scale and a code are exact in float32, so only the last operation rounds.

template <typename Block>
[[gnu::always_inline]] inline const Block* block_at(const uint8_t* data, int index) {
    return reinterpret_cast<const Block*>(data + index * static_cast<int>(sizeof(Block)));
}

/// Most block decoders need nothing but the address.
template <typename Block, int kElements>
struct BlockDecoder {
    static constexpr int64_t offset(int64_t column) { return column / kElements * static_cast<int64_t>(sizeof(Block)); }

    struct Chunk {
        const uint8_t* data;
    };
    [[gnu::always_inline]] void begin(Chunk& chunk, const quant::Matrix&, const Row&, const Span&,
                                      const uint8_t* data) const {
        chunk.data = data;
    }
};

[[gnu::always_inline]] inline Group scaled(Group group, float scale, float offset) {
    for (F& v : group.v) v = v * broadcast(scale) - broadcast(offset);
    return group;
}

[[gnu::always_inline]] inline Group minus(Group group, float offset) {
    for (F& v : group.v) v = v - broadcast(offset);
    return group;
}

/// The two halves of a group have different scales.
[[gnu::always_inline]] inline Group scaled_halves(Group group, float first, float second) {
    for (int i = 0; i < kGroupVectors; ++i) group.v[i] = group.v[i] * broadcast(kLanes * i < 16 ? first : second);
    return group;
}

// Codes that are scattered over bit fields are put together as Words: all 32 at once, a byte each.

constexpr uint64_t kOnes = 0x0101010101010101;

[[gnu::always_inline]] inline Words read_words(const uint8_t* p) {
    Words words;
    __builtin_memcpy(&words, p, sizeof words);
    return words;
}

/// mask must be at most 255 >> shift, so that no bit of a neighbour gets in.
[[gnu::always_inline]] inline Words bit_field(Words words, int shift, uint64_t mask) {
    return (words >> static_cast<uint64_t>(shift)) & (mask * kOnes);
}

/// Bit i becomes byte i, 0 or 1.
[[gnu::always_inline]] inline uint64_t spread_bits(uint64_t bits) {
    const uint64_t apart = (bits * kOnes) & 0x8040201008040201;
    return ((apart + 0x7f * kOnes) >> 7) & kOnes;
}

[[gnu::always_inline]] inline Words spread_bits_32(uint32_t bits) {
    return Words{spread_bits(bits & 255), spread_bits((bits >> 8) & 255), spread_bits((bits >> 16) & 255),
                 spread_bits(bits >> 24)};
}

/// 16 bytes, elements 0..15 in the low nibbles.
[[gnu::always_inline]] inline Words half_words(const uint8_t* p) {
    uint64_t in[2];
    __builtin_memcpy(in, p, sizeof in);
    return Words{in[0], in[1], in[0] >> 4, in[1] >> 4} & (15 * kOnes);
}

// ---- 32 elements ----------------------------------------------------------------------------------------------

struct Q4_0 : BlockDecoder<quant::BlockQ4_0, 32> {
    Table table = make_table(kSigned4);
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockQ4_0>(c.data, g);
        return scaled(look_up(table, half_codes(b->qs)), f16_number(&b->d));
    }
};

struct Q4_1 : BlockDecoder<quant::BlockQ4_1, 32> {
    Table table = make_table(kUnsigned4);
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockQ4_1>(c.data, g);
        return scaled(look_up(table, half_codes(b->qs)), f16_number(&b->d), -f16_number(&b->m));
    }
};

[[gnu::always_inline]] inline Group five_bit_codes(const uint8_t* qs, uint32_t high) {
    return load_words(half_words(qs) | spread_bits_32(high) << 4);
}

struct Q5_0 : BlockDecoder<quant::BlockQ5_0, 32> {
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockQ5_0>(c.data, g);
        return scaled(minus(five_bit_codes(b->qs, read_u32(&b->qh)), 16.0f), f16_number(&b->d));
    }
};

struct Q5_1 : BlockDecoder<quant::BlockQ5_1, 32> {
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockQ5_1>(c.data, g);
        return scaled(five_bit_codes(b->qs, read_u32(&b->qh)), f16_number(&b->d), -f16_number(&b->m));
    }
};

struct Q8_0 : BlockDecoder<quant::BlockQ8_0, 32> {
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockQ8_0>(c.data, g);
        Group codes;
        for (int i = 0; i < kGroupVectors; ++i) codes.v[i] = to_float(load_i8(b->qs + kLanes * i));
        return scaled(codes, f16_number(&b->d));
    }
};

struct IQ4_NL : BlockDecoder<quant::BlockIQ4_NL, 32> {
    Table table = make_table(kIq4);
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockIQ4_NL>(c.data, g);
        return scaled(look_up(table, half_codes(b->qs)), f16_number(&b->d));
    }
};

struct Mxfp4Block : BlockDecoder<quant::BlockMxfp4, 32> {
    Table table = make_table(kE2M1);
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockMxfp4>(c.data, g);
        return scaled(look_up(table, half_codes(b->qs)), e8m0_number(b->e));
    }
};

// ---- 64 and 128 elements ----------------------------------------------------------------------------------------

struct Nvfp4Block : BlockDecoder<quant::BlockNvfp4, 64> {
    Table table = make_table(kE2M1);
    /// Unsigned e4m3 whose NaN code means zero, as ggml reads it.
    [[gnu::always_inline]] static float scale(uint8_t code) {
        return (code & 0x7f) == 0x7f ? 0.0f : e4m3_number(code & 0x7f);
    }
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockNvfp4>(c.data, g / 2);
        const int half = g % 2;
        // Half order inside each 16: the middle words change places.
        const Words x = half_words(b->qs + 16 * half);
        const Words codes = {x[0], x[2], x[1], x[3]};
        return scaled_halves(look_up(table, low_codes(reinterpret_cast<const uint8_t*>(&codes))),
                             scale(b->scales[2 * half]), scale(b->scales[2 * half + 1]));
    }
};

struct Q1_0 : BlockDecoder<quant::BlockQ1_0, 128> {
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockQ1_0>(c.data, g / 4);
        const float d = f16_number(&b->d);
        return scaled(load_words(spread_bits_32(read_u32(b->bits + 4 * (g % 4)))), 2.0f * d, d);
    }
};

struct Q2_0 : BlockDecoder<quant::BlockQ2_0, 64> {
    /// Four elements a byte, lowest bits first.
    [[gnu::always_inline]] static uint64_t spread_pairs(uint64_t x) {
        x = (x | x << 24) & 0x000000ff000000ff;
        x = (x | x << 12) & 0x000f000f000f000f;
        return (x | x << 6) & (3 * kOnes);
    }
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockQ2_0>(c.data, g / 2);
        Words codes;
        for (int i = 0; i < 4; ++i) codes[i] = spread_pairs(read_u16(b->qs + 8 * (g % 2) + 2 * i));
        return scaled(minus(load_words(codes), 1.0f), f16_number(&b->d));
    }
};

struct E4M3Block : BlockDecoder<quant::BlockE4M3, 128> {
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockE4M3>(c.data, g / 4);
        return scaled(e4m3_group(b->qs + kGroup * (g % 4)), e8m0_number(b->e) * E4M3Codes::kUnit);
    }
};

// ---- K-quants: 8 groups of 32 -----------------------------------------------------------------------------------

/// Two bits of each of 32 elements in the layout that Q2_K, Q3_K and TQ2_0 share: 128 elements on 32 bytes.
[[gnu::always_inline]] inline Words two_bits(const uint8_t* qs, int g) {
    return bit_field(read_words(qs + 32 * (g / 4)), 2 * (g % 4), 3);
}

struct Q2_K : BlockDecoder<quant::BlockQ2_K, 256> {
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockQ2_K>(c.data, 0);
        const uint8_t first = b->scales[2 * g], second = b->scales[2 * g + 1];
        const float d = f16_number(&b->d), dmin = f16_number(&b->dmin);
        Group out = scaled_halves(load_words(two_bits(b->qs, g)), d * static_cast<float>(first & 15),
                                  d * static_cast<float>(second & 15));
        const float offsets[2] = {dmin * static_cast<float>(first >> 4), dmin * static_cast<float>(second >> 4)};
        for (int i = 0; i < kGroupVectors; ++i) out.v[i] = out.v[i] - broadcast(offsets[kLanes * i / 16]);
        return out;
    }
};

struct Q3_K : BlockDecoder<quant::BlockQ3_K, 256> {
    [[gnu::always_inline]] static float scale(const quant::BlockQ3_K* b, int t) {
        const int low = t < 8 ? b->scales[t] & 15 : b->scales[t - 8] >> 4;
        const int high = (b->scales[8 + t % 4] >> (2 * (t / 4))) & 3;
        return f16_number(&b->d) * static_cast<float>((low | high << 4) - 32);
    }
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockQ3_K>(c.data, 0);
        const Words codes = two_bits(b->qs, g) | bit_field(read_words(b->high), g, 1) << 2;
        return scaled_halves(minus(load_words(codes), 4.0f), scale(b, 2 * g), scale(b, 2 * g + 1));
    }
};

struct ScaleMin {
    float scale, min;
};

/// The 6-bit scale and minimum of group t of a Q4_K or Q5_K block.
[[gnu::always_inline]] inline ScaleMin scale_min(const uint8_t* s, int t) {
    if (t < 4) return {static_cast<float>(s[t] & 63), static_cast<float>(s[t + 4] & 63)};
    return {static_cast<float>((s[t + 4] & 15) | ((s[t - 4] >> 6) << 4)),
            static_cast<float>((s[t + 4] >> 4) | ((s[t] >> 6) << 4))};
}

struct Q4_K : BlockDecoder<quant::BlockQ4_K, 256> {
    Table table = make_table(kUnsigned4);
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockQ4_K>(c.data, 0);
        const uint8_t* qs = b->qs + 32 * (g / 2);
        const ScaleMin s = scale_min(b->scales, g);
        return scaled(look_up(table, g % 2 ? high_codes(qs) : low_codes(qs)), f16_number(&b->d) * s.scale,
                      f16_number(&b->dmin) * s.min);
    }
};

struct Q5_K : BlockDecoder<quant::BlockQ5_K, 256> {
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockQ5_K>(c.data, 0);
        const Words codes =
            bit_field(read_words(b->qs + 32 * (g / 2)), 4 * (g % 2), 15) | bit_field(read_words(b->high), g, 1) << 4;
        const ScaleMin s = scale_min(b->scales, g);
        return scaled(load_words(codes), f16_number(&b->d) * s.scale, f16_number(&b->dmin) * s.min);
    }
};

struct Q6_K : BlockDecoder<quant::BlockQ6_K, 256> {
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockQ6_K>(c.data, 0);
        const int half = g / 4, k = g % 4;
        const Words codes = bit_field(read_words(b->ql + 64 * half + 32 * (k & 1)), 4 * (k / 2), 15) |
                            bit_field(read_words(b->qh + 32 * half), 2 * k, 3) << 4;
        const float d = f16_number(&b->d);
        return scaled_halves(minus(load_words(codes), 32.0f), d * static_cast<float>(b->scales[2 * g]),
                             d * static_cast<float>(b->scales[2 * g + 1]));
    }
};

struct IQ4_XS : BlockDecoder<quant::BlockIQ4_XS, 256> {
    Table table = make_table(kIq4);
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockIQ4_XS>(c.data, 0);
        const int low = (b->scales_low[g / 2] >> (4 * (g % 2))) & 15;
        const int high = (read_u16(&b->scales_high) >> (2 * g)) & 3;
        const float scale = f16_number(&b->d) * static_cast<float>((low | high << 4) - 32);
        return scaled(look_up(table, half_codes(b->qs + 16 * g)), scale);
    }
};

// ---- ternary ------------------------------------------------------------------------------------------------------

struct TQ1_0 : BlockDecoder<quant::BlockTQ1_0, 256> {
    /// Digit `place` of 16 bytes, most significant first, plus one: five digits to a byte of qs, four to one of qh.
    [[gnu::always_inline]] static void digits(const uint8_t* p, int place, int step, uint8_t* out) {
        constexpr uint8_t kPow3[5] = {1, 3, 9, 27, 81};
        for (int i = 0; i < step; ++i) {
            const uint8_t x = static_cast<uint8_t>(p[i] * kPow3[place]);
            out[i] = static_cast<uint8_t>(x * 3 >> 8);
        }
    }
    /// Elements 16 t .. 16 t + 15: t < 10 in qs[0..31], t < 15 in qs[32..47], the last 16 in qh.
    [[gnu::always_inline]] static void sixteen(const quant::BlockTQ1_0* b, int t, uint8_t* out) {
        if (t < 10) return digits(b->qs + 16 * (t % 2), t / 2, 16, out);
        if (t < 15) return digits(b->qs + 32, t - 10, 16, out);
        for (int place = 0; place < 4; ++place) digits(b->qh, place, 4, out + 4 * place);
    }
    [[gnu::noinline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockTQ1_0>(c.data, 0);
        alignas(32) uint8_t codes[kGroup];
        sixteen(b, 2 * g, codes);
        sixteen(b, 2 * g + 1, codes + 16);
        return scaled(minus(load_words(read_words(codes)), 1.0f), f16_number(&b->d));
    }
};

struct TQ2_0 : BlockDecoder<quant::BlockTQ2_0, 256> {
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockTQ2_0>(c.data, 0);
        return scaled(minus(load_words(two_bits(b->qs, g)), 1.0f), f16_number(&b->d));
    }
};
