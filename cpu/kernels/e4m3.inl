// e4m3 codes, four to a 32-bit word, as floats. Included by the ISA units, which choose their E4M3Columns.

/// Byte j of every word with its sign and fields where those of a float are: the number times 2^-120.
[[gnu::always_inline]] inline F e4m3_fields(U words, int j) {
    const I top = (I)(j == 3 ? words : words << (24 - 8 * j));
    return as_float((top >> 4) & static_cast<int32_t>(0x87f00000));
}

constexpr int32_t kE4M3Bias = 120 << 23;

/// Byte j of every word. No operand is a subnormal float: for each of these some processors take over a hundred cycles.
/// With the bias added a number that has an exponent is right, one that has none reads x = 2^-7 + its half: there
/// 2 x - 2^-6 is right, and elsewhere that is not smaller.
[[gnu::always_inline]] inline F e4m3_column(U words, int j) {
    const I top = (I)(j == 3 ? words : words << (24 - 8 * j));
    const F x = as_float(((top & 0x7f000000) >> 4) + kE4M3Bias);
    const F magnitude = min(x, fma(broadcast(2.0f), x, broadcast(-0x1p-6f)));
    return as_float(as_int(magnitude) | (top & INT32_MIN));
}

/// Without a table.
struct PlainE4M3Columns {
    struct Prepared {
        U words;
        bool has_small;  // codes without an exponent: few of a model's weights
    };
    [[gnu::always_inline]] Prepared prepare(U words) const {
        const U exponents = words & 0x78787878;
        const I zero_bytes = (I)((exponents - 0x01010101) & ~exponents & 0x80808080);
        return {words, mask_bits(zero_bytes != 0) != 0};
    }
    [[gnu::always_inline]] F column(const Prepared& prepared, int j) const {
        if (prepared.has_small) return e4m3_column(prepared.words, j);
        return as_float(as_int(e4m3_fields(prepared.words, j)) + kE4M3Bias);
    }
};
