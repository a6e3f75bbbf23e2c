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

[[gnu::always_inline]] inline Group scaled(Group group, float scale) {
    for (F& v : group.v) v = v * broadcast(scale);
    return group;
}

[[gnu::always_inline]] inline Group scaled(Group group, float scale, float offset) {
    for (F& v : group.v) v = v * broadcast(scale) - broadcast(offset);
    return group;
}

/// 32 small integers.
[[gnu::always_inline]] inline Group load_codes(const int8_t* p) {
    Group out;
    for (int i = 0; i < kGroupVectors; ++i) out.v[i] = to_float(load_i8(p + kLanes * i));
    return out;
}

/// 32 small integers whose two halves have different scales.
[[gnu::always_inline]] inline Group load_codes(const int8_t* p, float first, float second) {
    Group out = load_codes(p);
    for (int i = 0; i < kGroupVectors; ++i) out.v[i] = out.v[i] * broadcast(kLanes * i < 16 ? first : second);
    return out;
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

[[gnu::always_inline]] inline Group five_bit_codes(const uint8_t* qs, uint32_t high, int offset) {
    int8_t codes[kGroup];
    for (int i = 0; i < 16; ++i) {
        codes[i] = static_cast<int8_t>(((qs[i] & 15) | ((high >> i) & 1) << 4) - offset);
        codes[16 + i] = static_cast<int8_t>(((qs[i] >> 4) | ((high >> (16 + i)) & 1) << 4) - offset);
    }
    return load_codes(codes);
}

struct Q5_0 : BlockDecoder<quant::BlockQ5_0, 32> {
    [[gnu::noinline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockQ5_0>(c.data, g);
        return scaled(five_bit_codes(b->qs, read_u32(&b->qh), 16), f16_number(&b->d));
    }
};

struct Q5_1 : BlockDecoder<quant::BlockQ5_1, 32> {
    [[gnu::noinline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockQ5_1>(c.data, g);
        return scaled(five_bit_codes(b->qs, read_u32(&b->qh), 0), f16_number(&b->d), -f16_number(&b->m));
    }
};

struct Q8_0 : BlockDecoder<quant::BlockQ8_0, 32> {
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockQ8_0>(c.data, g);
        return scaled(load_codes(b->qs), f16_number(&b->d));
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
    /// Unsigned e4m3 whose NaN code means zero, as ggml reads it.
    [[gnu::always_inline]] static float scale(uint8_t code) {
        return (code & 0x7f) == 0x7f ? 0.0f : e4m3_number(code & 0x7f);
    }
    [[gnu::noinline]] Group group(const Chunk& c, int g) const {
        constexpr int8_t kDoubled[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
        const auto* b = block_at<quant::BlockNvfp4>(c.data, g / 2);
        const int half = g % 2;
        int8_t codes[kGroup];
        for (int i = 0; i < kGroup; ++i) {
            const uint8_t byte = b->qs[16 * half + 8 * (i / 16) + i % 8];
            codes[i] = kDoubled[i % 16 < 8 ? byte & 15 : byte >> 4];
        }
        return load_codes(codes, 0.5f * scale(b->scales[2 * half]), 0.5f * scale(b->scales[2 * half + 1]));
    }
};

struct Q1_0 : BlockDecoder<quant::BlockQ1_0, 128> {
    [[gnu::noinline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockQ1_0>(c.data, g / 4);
        int8_t codes[kGroup];
        for (int i = 0; i < kGroup; ++i) {
            codes[i] = static_cast<int8_t>(2 * ((b->bits[4 * (g % 4) + i / 8] >> (i % 8)) & 1) - 1);
        }
        return scaled(load_codes(codes), f16_number(&b->d));
    }
};

struct Q2_0 : BlockDecoder<quant::BlockQ2_0, 64> {
    [[gnu::noinline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockQ2_0>(c.data, g / 2);
        int8_t codes[kGroup];
        for (int i = 0; i < kGroup; ++i) {
            codes[i] = static_cast<int8_t>(((b->qs[8 * (g % 2) + i / 4] >> (2 * (i % 4))) & 3) - 1);
        }
        return scaled(load_codes(codes), f16_number(&b->d));
    }
};

struct E4M3Block : BlockDecoder<quant::BlockE4M3, 128> {
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockE4M3>(c.data, g / 4);
        return scaled(E4M3Codes{}.group(b->qs + kGroup * (g % 4)), e8m0_number(b->e));
    }
};

// ---- K-quants: 8 groups of 32 -----------------------------------------------------------------------------------

/// Two bits of each of 32 elements in the layout that Q2_K, Q3_K and TQ2_0 share: 128 elements on 32 bytes.
[[gnu::always_inline]] inline int two_bits(const uint8_t* qs, int g, int i) {
    return (qs[32 * (g / 4) + i] >> (2 * (g % 4))) & 3;
}

struct Q2_K : BlockDecoder<quant::BlockQ2_K, 256> {
    [[gnu::noinline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockQ2_K>(c.data, 0);
        int8_t codes[kGroup];
        for (int i = 0; i < kGroup; ++i) codes[i] = static_cast<int8_t>(two_bits(b->qs, g, i));
        const uint8_t first = b->scales[2 * g], second = b->scales[2 * g + 1];
        const float d = f16_number(&b->d), dmin = f16_number(&b->dmin);
        Group out = load_codes(codes, d * static_cast<float>(first & 15), d * static_cast<float>(second & 15));
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
    [[gnu::noinline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockQ3_K>(c.data, 0);
        int8_t codes[kGroup];
        for (int i = 0; i < kGroup; ++i) {
            codes[i] = static_cast<int8_t>(two_bits(b->qs, g, i) + 4 * ((b->high[i] >> g) & 1) - 4);
        }
        return load_codes(codes, scale(b, 2 * g), scale(b, 2 * g + 1));
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
    [[gnu::noinline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockQ5_K>(c.data, 0);
        const uint8_t* qs = b->qs + 32 * (g / 2);
        int8_t codes[kGroup];
        for (int i = 0; i < kGroup; ++i) {
            codes[i] = static_cast<int8_t>(((qs[i] >> (4 * (g % 2))) & 15) | ((b->high[i] >> g) & 1) << 4);
        }
        const ScaleMin s = scale_min(b->scales, g);
        return scaled(load_codes(codes), f16_number(&b->d) * s.scale, f16_number(&b->dmin) * s.min);
    }
};

struct Q6_K : BlockDecoder<quant::BlockQ6_K, 256> {
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockQ6_K>(c.data, 0);
        const int half = g / 4, k = g % 4;
        const uint8_t* low = b->ql + 64 * half + 32 * (k & 1);
        const uint8_t* high = b->qh + 32 * half;
        int8_t codes[kGroup];
        for (int i = 0; i < kGroup; ++i) {
            const int q = ((low[i] >> (4 * (k / 2))) & 15) | ((high[i] >> (2 * k)) & 3) << 4;
            codes[i] = static_cast<int8_t>(q - 32);
        }
        const float d = f16_number(&b->d);
        return load_codes(codes, d * static_cast<float>(b->scales[2 * g]), d * static_cast<float>(b->scales[2 * g + 1]));
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
    /// Digit i of the block: five to a byte of qs, four to a byte of qh, most significant first.
    [[gnu::always_inline]] static int8_t digit(const quant::BlockTQ1_0* b, int i) {
        constexpr uint8_t kPow3[5] = {1, 3, 9, 27, 81};
        const uint8_t byte = i < 160 ? b->qs[i % 32] : i < 240 ? b->qs[32 + i % 16] : b->qh[i % 4];
        const int place = i < 160 ? i / 32 : i < 240 ? (i - 160) / 16 : (i - 240) / 4;
        return static_cast<int8_t>((((byte * kPow3[place]) & 255) * 3 >> 8) - 1);
    }
    [[gnu::noinline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockTQ1_0>(c.data, 0);
        int8_t codes[kGroup];
        for (int i = 0; i < kGroup; ++i) codes[i] = digit(b, kGroup * g + i);
        return scaled(load_codes(codes), f16_number(&b->d));
    }
};

struct TQ2_0 : BlockDecoder<quant::BlockTQ2_0, 256> {
    [[gnu::noinline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockTQ2_0>(c.data, 0);
        int8_t codes[kGroup];
        for (int i = 0; i < kGroup; ++i) codes[i] = static_cast<int8_t>(two_bits(b->qs, g, i) - 1);
        return scaled(load_codes(codes), f16_number(&b->d));
    }
};
