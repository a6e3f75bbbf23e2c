// Packed matrices as pairs of bf16 columns, for instructions that add products of such pairs
// (deepseek-v4.md 2.11, hybrid-engine.md 2.3): with vectors rounded to e4m3 all numbers and products are exact, so
// results differ from float32 by the order of the sums alone. Included by the ISA units that have one, after
// strips.inl.
//
// A number of the panel is a pair of columns of x: of four columns 0 and 2, then 1 and 3.

struct ColumnPairs {
    static constexpr int kStep = 2, kTogether = 4;
    [[gnu::always_inline]] static F number(const float* pair) { return broadcast_bits(pair); }
    [[gnu::always_inline]] static F add(F w, F x, F sum) { return add_products_of_pairs(w, x, sum); }
};

/// Codes whose columns are exact in bf16.
template <typename Singles>
struct PairsOf : Singles {
    using Products = ColumnPairs;
    struct Pairs {
        U even, odd;
    };
    template <typename Line>
    [[gnu::always_inline]] Pairs prepare(const Line& line, int i) const {
        const auto four = Singles::prepare(line, i);
        const auto number = [&](int j) __attribute__((always_inline)) { return (U)Singles::column(four, 4 * i + j); };
        return {number(0) >> 16 | number(2), number(1) >> 16 | number(3)};
    }
    [[gnu::always_inline]] F column(const Pairs& pairs, int j) const { return (F)(j % 2 ? pairs.odd : pairs.even); }
};

constexpr uint16_t kE2M1AsBF16[16] = {0x0000, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0,
                                      0x8000, 0xbf00, 0xbf80, 0xbfc0, 0xc000, 0xc040, 0xc080, 0xc0c0};

template <int unit>
struct PairsE2M1 : OneRun {
    using Products = ColumnPairs;
    static constexpr int kColumns = 8, kUnit = unit;
    HalfTable table = make_half_table(kE2M1AsBF16);
    [[gnu::always_inline]] U prepare(U words, int half) const { return half ? words >> 4 : words; }
    [[gnu::always_inline]] F column(U words, int j) const { return look_up_halves(table, j % 2 ? words >> 8 : words); }
};

struct PairsE4M3 : OneRun {
    using Products = ColumnPairs;
    static constexpr int kColumns = 4, kUnit = 32;
    E4M3Table table = make_e4m3_table();
    [[gnu::always_inline]] SplitBF16 prepare(U words, int) const { return look_up_e4m3(table, words); }
    [[gnu::always_inline]] F column(SplitBF16 split, int j) const { return j ? odd_bytes(split) : even_bytes(split); }
};

struct PairsQ8 : OneRun {
    using Products = ColumnPairs;
    static constexpr int kColumns = 4, kUnit = 32;
    MagnitudeTable table = make_int8_table();
    [[gnu::always_inline]] SplitBF16 prepare(U words, int) const { return look_up_int8(table, words); }
    [[gnu::always_inline]] F column(SplitBF16 split, int j) const { return j ? odd_bytes(split) : even_bytes(split); }
};
