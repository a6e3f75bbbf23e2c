// Packed GGUF blocks (src/quant/strips_gguf.h): their codes and scales for the kernels of strips.inl and
// strips_int8.inl. Both take codes less their centre, 2^(bits - 1): small numbers of both signs. What formats with
// minimums have too little then, centre * scale, goes to the offset that the sum of x is multiplied with.

// ---- codes --------------------------------------------------------------------------------------------------------

/// Codes of `bits` bits in one or two runs of lines; quad i of a line is columns 4 i .. 4 i + 3, one to a byte.
template <int bits>
struct Runs;

template <int bits>
struct SingleRun : OneRun {
    static constexpr int kColumns = 32 / bits;
    [[gnu::always_inline]] U quad(U words, int i) const {
        return words >> (bits * i) & ((1 << bits) - 1) * 0x01010101u;
    }
};

template <>
struct Runs<1> : SingleRun<1> {};
template <>
struct Runs<2> : SingleRun<2> {};

/// `low` bits of a line that holds the low bits of the columns, the rest from a line of other lines' columns besides.
template <int low, int high>
struct TwoRuns {
    struct Line {
        U first, second;  // low and high bits of the columns, those of the first four lowest
    };
    using Products = SingleColumns;
    static constexpr float kNumberUnit = 1.0f;
    static constexpr int kColumns = 32 / low, kLinesOfHigh = low / high, kQuads = kColumns / 4;
    static constexpr int kMoreBytes = kBlock * kStripRows * high / 8;
    [[gnu::always_inline]] Line load(const uint8_t* block, int line, int v) const {
        const uint8_t* more = block + kBlock / kColumns * kLine + line / kLinesOfHigh * kLine;
        return {load_line(block + line * kLine + v * kLanes * 4),
                load_line(more + v * kLanes * 4) >> (line % kLinesOfHigh * kQuads * high)};
    }
    [[gnu::always_inline]] U quad(const Line& line, int i) const {
        constexpr uint32_t kLow = ((1 << low) - 1) * 0x01010101u, kHigh = ((1 << high) - 1) * 0x01010101u;
        return (line.first >> (low * i) & kLow) | (line.second >> (high * i) & kHigh) << low;
    }
};

template <>
struct Runs<3> : TwoRuns<2, 1> {};
template <>
struct Runs<5> : TwoRuns<4, 1> {};
template <>
struct Runs<6> : TwoRuns<4, 2> {};

template <int bits, int unit>
struct StripCodes : Runs<bits> {
    static constexpr int kUnit = unit, kCentre = 1 << (bits - 1);
    /// Offset binary to two's complement, at the top of the bytes.
    template <typename Line>
    [[gnu::always_inline]] U prepare(const Line& line, int i) const {
        return Runs<bits>::quad(line, i) << (8 - bits) ^ 0x80808080;
    }
    [[gnu::always_inline]] F column(U quad, int j) const {
        return to_float((I)(j % 4 == 3 ? quad : quad << (24 - j % 4 * 8)) >> (32 - bits));
    }
};

[[gnu::always_inline]] inline ByteTable iq4_table() {
    return make_byte_table(reinterpret_cast<const uint8_t*>(kIq4Codes));
}

struct StripIq4 : OneRun {
    static constexpr int kColumns = 8, kUnit = 32;
    ByteTable table = iq4_table();
    [[gnu::always_inline]] U prepare(U words, int half) const {
        return look_up_bytes(table, (half ? words >> 4 : words) & 0x0f0f0f0f);
    }
    [[gnu::always_inline]] F column(U quad, int j) const {
        return to_float((I)(j % 4 == 3 ? quad : quad << (24 - j % 4 * 8)) >> 24);
    }
};

// ---- scales -------------------------------------------------------------------------------------------------------

/// Numbers of a field (quant::StripShape) for part v of the rows: where it begins, which of them.
[[gnu::always_inline]] inline F f16_field(const uint8_t* p, int group, int v) {
    return load_f16(p + 2 * (group * kStripRows + v * kLanes));
}
[[gnu::always_inline]] inline I u8_field(const uint8_t* p, int group, int v) {
    return load_u8(p + group * kStripRows + v * kLanes);
}

/// d and m per unit of 32.
struct ScalesDM : F16Scales {
    [[gnu::always_inline]] F offset(const uint8_t* p, int u, int v) const { return f16_field(p + 128, u, v); }
};

/// Q4_K and Q5_K.
struct ScalesK {
    static constexpr bool kInBlock = true;
    [[gnu::always_inline]] F of(const uint8_t* p, int u, int v) const {
        return f16_field(p + 128, 0, v) * to_float(u8_field(p, u, v));
    }
    [[gnu::always_inline]] F offset(const uint8_t* p, int u, int v) const {
        return -f16_field(p + 160, 0, v) * to_float(u8_field(p + 64, u, v));
    }
};

/// `units` bytes with a sign, then d: Q6_K and IQ4_XS.
template <int units>
struct SignedScales {
    static constexpr bool kInBlock = true;
    [[gnu::always_inline]] F of(const uint8_t* p, int u, int v) const {
        return f16_field(p + units * kStripRows, 0, v) * to_float(load_i8(p + u * kStripRows + v * kLanes));
    }
};

struct ScalesQ2 {
    static constexpr bool kInBlock = true;
    [[gnu::always_inline]] F of(const uint8_t* p, int u, int v) const {
        return f16_field(p + 128, 0, v) * to_float(u8_field(p, u, v) & 15);
    }
    [[gnu::always_inline]] F offset(const uint8_t* p, int u, int v) const {
        return -f16_field(p + 160, 0, v) * to_float(u8_field(p, u, v) >> 4);
    }
};

struct ScalesQ3 {
    static constexpr bool kInBlock = true;
    [[gnu::always_inline]] F of(const uint8_t* p, int u, int v) const {
        const I low = u8_field(p, u / 2, v) >> (u % 2 * 4) & 15, high = u8_field(p + 64, u / 4, v) >> (u % 4 * 2) & 3;
        return f16_field(p + 96, 0, v) * to_float((low | high << 4) - 32);
    }
};

/// Codes 0 and 1 are -d and d.
struct ScalesQ1 {
    static constexpr bool kInBlock = true;
    [[gnu::always_inline]] F of(const uint8_t* p, int, int v) const { return f16_field(p, 0, v) * broadcast(2.0f); }
    [[gnu::always_inline]] F offset(const uint8_t* p, int, int v) const { return -f16_field(p, 0, v); }
};

// ---- the choice ---------------------------------------------------------------------------------------------------

template <typename Body>
[[gnu::always_inline]] inline void with_gguf_strip_kernel(quant::Format format, Body body) {
    using quant::Format;
    switch (format) {
        case Format::kQ4_0:
            return body(StripKernel<StripInt4<32>, F16Scales>{});
        case Format::kQ4_1:
            return body(StripKernel<StripInt4<32>, ScalesDM>{});
        case Format::kQ4_K:
            return body(StripKernel<StripInt4<32>, ScalesK>{});
        case Format::kIQ4_NL:
            return body(StripKernel<StripIq4, F16Scales>{});
        case Format::kIQ4_XS:
            return body(StripKernel<StripIq4, SignedScales<4>>{});
        case Format::kQ5_0:
            return body(StripKernel<StripCodes<5, 32>, F16Scales>{});
        case Format::kQ5_1:
            return body(StripKernel<StripCodes<5, 32>, ScalesDM>{});
        case Format::kQ5_K:
            return body(StripKernel<StripCodes<5, 32>, ScalesK>{});
        case Format::kQ6_K:
            return body(StripKernel<StripCodes<6, 16>, SignedScales<8>>{});
        case Format::kQ2_K:
            return body(StripKernel<StripCodes<2, 16>, ScalesQ2>{});
        case Format::kQ3_K:
            return body(StripKernel<StripCodes<3, 16>, ScalesQ3>{});
        case Format::kQ2_0:
            return body(StripKernel<StripCodes<2, 64>, F16Scales>{});
        case Format::kTQ1_0:
        case Format::kTQ2_0:
            return body(StripKernel<StripCodes<2, 64>, Grouped<F16Scales, 2>>{});
        case Format::kQ1_0:
            return body(StripKernel<StripCodes<1, 64>, ScalesQ1>{});
        default:
            __builtin_trap();  // packed_form() makes no others
    }
}
