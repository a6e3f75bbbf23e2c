// Packed FP8 and FP4 matrices times vectors rounded to e4m3, with the instruction that adds two products of bf16
// numbers (deepseek-v4.md 2.11, hybrid-engine.md 2.3): all numbers and products are exact, so this differs from float32
// by the order of the sums alone. Included by the ISA unit that has the instruction, after strips.inl.
//
// A number of the panel is a pair of columns of x: of four columns 0 and 2, then 1 and 3.

struct ColumnPairs {
    static constexpr int kStep = 2, kTogether = 4;
    [[gnu::always_inline]] static F number(const float* pair) { return broadcast_bits(pair); }
    [[gnu::always_inline]] static F add(F w, F x, F sum) { return add_products_of_pairs(w, x, sum); }
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

void matmul_bf16(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t x_stride, int64_t m,
                 float* y, int64_t y_stride) noexcept {
    using quant::Format;
    const auto multiply = [&](const auto& kernel) __attribute__((always_inline)) {
        kernel.multiply(w, first, count, x, x_stride, m, y, y_stride);
    };
    if (w.format == Format::kE4M3 && w.scale_in_strip)
        multiply(StripKernel<PairsE4M3, Grouped<E8M0Scales, 4>>{{}, {{1.0f}}});
    else if (w.format == Format::kE4M3)
        multiply(StripKernel<PairsE4M3, NoScales>{});
    else if (w.scale_format == Format::kE8M0)
        multiply(StripKernel<PairsE2M1<32>, E8M0Scales>{{}, {1.0f}});
    else
        multiply(StripKernel<PairsE2M1<16>, E4M3Scales>{{}, {1.0f}});
    apply_multiplier(w, m, count, y, y_stride);
}
