// Decoders of the GGUF formats that draw eight (or four) numbers at once from a codebook (weight-formats.md section
// 9.5), and the choice of a decoder for a matrix. g = group of 32, l = sub-group of 8, j = element of the sub-group.

/// Bit 7 makes the number of minus signs even.
[[gnu::always_inline]] inline uint32_t even_signs(uint32_t code) {
    return code | static_cast<uint32_t>(__builtin_parity(code)) << 7;
}

/// Eight grid values, none of them 0, with the sign bits of `signs`: bit j set, element j negative.
[[gnu::always_inline]] inline uint64_t signed_bytes(uint64_t grid, uint32_t signs) {
    const uint64_t ones = spread_bits(signs & 255);
    return (grid ^ ones * 255) + ones;  // two's complement by byte; no byte is 0, so nothing is carried
}

[[gnu::always_inline]] inline uint64_t grid_8(const int8_t* row) {
    uint64_t value;
    __builtin_memcpy(&value, row, sizeof value);
    return value;
}

[[gnu::always_inline]] inline uint64_t grid_4_4(const int8_t* first, const int8_t* second) {
    return read_u32(first) | static_cast<uint64_t>(read_u32(second)) << 32;
}

template <typename Block>
struct CodebookDecoder : BlockDecoder<Block, 256> {
    const quant::Codebooks* books;
};

struct IQ2_XXS : CodebookDecoder<quant::BlockIQ2_XXS> {
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockIQ2_XXS>(c.data, 0);
        const uint32_t w = read_u32(&b->groups[g].signs_scale);
        Words codes;
        for (int l = 0; l < 4; ++l) {
            codes[l] = signed_bytes(grid_8(books->iq2_xxs[b->groups[g].index[l]]), even_signs((w >> (7 * l)) & 127));
        }
        return scaled(load_words(codes), f16_number(&b->d) * static_cast<float>(2 * (w >> 28) + 1) * 0.125f);
    }
};

/// d * (0.5 + s) / 4 for the halves of a group whose scales are the nibbles of one byte.
[[gnu::always_inline]] inline Group iq2_scaled(const Words& codes, float d, uint8_t scales) {
    return scaled_halves(load_words(codes), d * static_cast<float>(2 * (scales & 15) + 1) * 0.125f,
                         d * static_cast<float>(2 * (scales >> 4) + 1) * 0.125f);
}

struct IQ2_XS : CodebookDecoder<quant::BlockIQ2_XS> {
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockIQ2_XS>(c.data, 0);
        Words codes;
        for (int l = 0; l < 4; ++l) {
            const uint32_t q = read_u16(&b->qs[4 * g + l]);
            codes[l] = signed_bytes(grid_8(books->iq2_xs[q & 511]), even_signs(q >> 9));
        }
        return iq2_scaled(codes, f16_number(&b->d), b->scales[g]);
    }
};

struct IQ2_S : CodebookDecoder<quant::BlockIQ2_S> {
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockIQ2_S>(c.data, 0);
        Words codes;
        for (int l = 0; l < 4; ++l) {
            const int index = b->qs[4 * g + l] | ((b->qh[g] >> (2 * l)) & 3) << 8;
            codes[l] = signed_bytes(grid_8(books->iq2_s[index]), b->signs[4 * g + l]);
        }
        return iq2_scaled(codes, f16_number(&b->d), b->scales[g]);
    }
};

struct IQ3_XXS : CodebookDecoder<quant::BlockIQ3_XXS> {
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockIQ3_XXS>(c.data, 0);
        const uint32_t w = read_u32(&b->signs_scale[g]);
        Words codes;
        for (int l = 0; l < 4; ++l) {
            const uint32_t signs = even_signs((w >> (7 * l)) & 127);
            const uint8_t* index = b->qs + 8 * g + 2 * l;
            codes[l] = signed_bytes(grid_4_4(books->iq3_xxs[index[0]], books->iq3_xxs[index[1]]), signs);
        }
        return scaled(load_words(codes), f16_number(&b->d) * static_cast<float>(2 * (w >> 28) + 1) * 0.25f);
    }
};

struct IQ3_S : CodebookDecoder<quant::BlockIQ3_S> {
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockIQ3_S>(c.data, 0);
        Words codes;
        for (int l = 0; l < 4; ++l) {
            const uint8_t* index = b->qs + 8 * g + 2 * l;
            const int high = b->qh[g] >> (2 * l);
            const int8_t* first = books->iq3_s[index[0] | (high & 1) << 8];
            const int8_t* second = books->iq3_s[index[1] | (high & 2) << 7];
            codes[l] = signed_bytes(grid_4_4(first, second), b->signs[4 * g + l]);
        }
        const int scale = (b->scales[g / 2] >> (4 * (g % 2))) & 15;
        return scaled(load_words(codes), f16_number(&b->d) * static_cast<float>(1 + 2 * scale));
    }
};

struct IQ1_S : CodebookDecoder<quant::BlockIQ1_S> {
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockIQ1_S>(c.data, 0);
        const uint32_t h = read_u16(&b->qh[g]);
        Words codes;
        for (int l = 0; l < 4; ++l) {
            codes[l] = grid_8(books->iq1[b->qs[4 * g + l] | ((h >> (3 * l)) & 7) << 8]);
        }
        const float shift = h & 0x8000 ? 0.125f : -0.125f;
        return scaled(minus(load_words(codes), shift), f16_number(&b->d) * static_cast<float>(2 * ((h >> 12) & 7) + 1));
    }
};

struct IQ1_M : CodebookDecoder<quant::BlockIQ1_M> {
    [[gnu::always_inline]] static float base_scale(const quant::BlockIQ1_M* b) {
        uint16_t d = 0;
        for (int i = 0; i < 4; ++i) d = static_cast<uint16_t>(d | (read_u16(&b->scales[i]) >> 12) << (4 * i));
        return f16_number(&d);
    }
    [[gnu::always_inline]] Group group(const Chunk& c, int g) const {
        const auto* b = block_at<quant::BlockIQ1_M>(c.data, 0);
        Words codes;
        float shifts[4];  // of eight columns each
        for (int l = 0; l < 4; ++l) {
            const int high = b->qh[2 * g + l / 2] >> (4 * (l % 2));
            codes[l] = grid_8(books->iq1[b->qs[4 * g + l] | (high & 7) << 8]);
            shifts[l] = high & 8 ? 0.125f : -0.125f;
        }
        alignas(64) float shift[kGroup];
        for (int i = 0; i < kGroup; ++i) shift[i] = shifts[i / 8];
        Group out = load_words(codes);
        for (int i = 0; i < kGroupVectors; ++i) out.v[i] = out.v[i] - load(shift + kLanes * i);
        const int s = read_u16(&b->scales[g / 2]) >> (6 * (g % 2));
        const float d = base_scale(b);
        return scaled_halves(out, d * static_cast<float>(2 * (s & 7) + 1),
                             d * static_cast<float>(2 * ((s >> 3) & 7) + 1));
    }
};

/// Calls body(decoder) with the decoder for the matrix.
template <typename Body>
inline void with_decoder(const quant::Matrix& w, Body body) {
    using quant::Format;
    switch (w.format) {
        case Format::kF32:
            return with_scales(w, F32Codes{}, body);
        case Format::kF16:
            return with_scales(w, F16Codes{}, body);
        case Format::kBF16:
            return with_scales(w, BF16Codes{}, body);
        case Format::kE4M3:
            return with_scales(w, E4M3Codes{}, body);
        case Format::kE2M1Pair:
            return with_scales(w, PairCodes{make_table(kE2M1)}, body);
        case Format::kInt4Pair:
            return with_int4(w, body);
        case Format::kQ4_0:
            return body(Q4_0{});
        case Format::kQ4_1:
            return body(Q4_1{});
        case Format::kQ5_0:
            return body(Q5_0{});
        case Format::kQ5_1:
            return body(Q5_1{});
        case Format::kQ8_0:
            return body(Q8_0{});
        case Format::kQ2_K:
            return body(Q2_K{});
        case Format::kQ3_K:
            return body(Q3_K{});
        case Format::kQ4_K:
            return body(Q4_K{});
        case Format::kQ5_K:
            return body(Q5_K{});
        case Format::kQ6_K:
            return body(Q6_K{});
        case Format::kIQ4_NL:
            return body(IQ4_NL{});
        case Format::kIQ4_XS:
            return body(IQ4_XS{});
        case Format::kTQ1_0:
            return body(TQ1_0{});
        case Format::kTQ2_0:
            return body(TQ2_0{});
        case Format::kMxfp4Block:
            return body(Mxfp4Block{});
        case Format::kNvfp4Block:
            return body(Nvfp4Block{});
        case Format::kQ1_0:
            return body(Q1_0{});
        case Format::kQ2_0:
            return body(Q2_0{});
        case Format::kE4M3Block128:
            return body(E4M3Block{});
        case Format::kIQ2_XXS:
            return body(IQ2_XXS{{{}, &quant::codebooks()}});
        case Format::kIQ2_XS:
            return body(IQ2_XS{{{}, &quant::codebooks()}});
        case Format::kIQ2_S:
            return body(IQ2_S{{{}, &quant::codebooks()}});
        case Format::kIQ3_XXS:
            return body(IQ3_XXS{{{}, &quant::codebooks()}});
        case Format::kIQ3_S:
            return body(IQ3_S{{{}, &quant::codebooks()}});
        case Format::kIQ1_S:
            return body(IQ1_S{{{}, &quant::codebooks()}});
        case Format::kIQ1_M:
            return body(IQ1_M{{{}, &quant::codebooks()}});
        default:
            __builtin_trap();  // checked at load: Matrix::format is a weight format
    }
}
