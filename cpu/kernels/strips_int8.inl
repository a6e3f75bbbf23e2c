// Packed matrices with integer codes times vectors of integers (quant::Int8Group; strips_fixed.inl): exact sums of
// products inside a unit of columns, then total += (scale of the row * scale of the vector) * sum, unit by unit. So an
// output depends neither on m nor on the split of the rows, and is the same on every tier up to the rounding of those
// few operations.
//
// The ISA unit gives two ways to add products of four columns (a word of codes, a quad of the vector):
//   OffsetDot<o>  codes are value + o, none of them above 2 o; what they are too much is known before: o * (sums of x)
//   SignedDot     codes are two's complement bytes

using quant::Int8Group;

/// Twice the number of a nibble, plus 12.
struct DigitsE2M1 : OneRun {
    using Dot = OffsetDot<12>;
    static constexpr int kHalves = 2;
    static constexpr float kUnit = 0.5f;
    ByteTable table = make_byte_table(kE2M1Digits);
    [[gnu::always_inline]] U prepare(U words, int half) const {
        return look_up_bytes(table, (half ? words >> 4 : words) & 0x0f0f0f0f);
    }
};

struct DigitsInt4 : OneRun {
    using Dot = OffsetDot<8>;
    static constexpr int kHalves = 2;
    static constexpr float kCentre = 8.0f;
    [[gnu::always_inline]] U prepare(U words, int half) const { return (half ? words >> 4 : words) & 0x0f0f0f0f; }
};

struct DigitsQ8 : OneRun {
    using Dot = SignedDot;
    static constexpr int kHalves = 1;
    [[gnu::always_inline]] U prepare(U words, int) const { return Dot::prepare(words); }
};

/// Vectors rounded to int8: a byte a column.
struct Int8Input {
    using Group = Int8Group;
    static constexpr int kPlanes = 1, kStride = kBlock / quant::kInt8Columns * static_cast<int>(sizeof(Group));

    /// Sums of the codes of the unit that begins at column `first` of a group, as Dot::start() takes them.
    template <int unit>
    [[gnu::always_inline]] static const int16_t* sums_of(const Group& group, int first) {
        return group.sums + (unit == quant::kInt8Columns ? 4 : first / 8);
    }
    template <typename Dot, int unit>
    [[gnu::always_inline]] static typename Dot::Sums start(const Group& group, int first, int) {
        return Dot::start(sums_of<unit>(group, first));
    }
    [[gnu::always_inline]] static const int8_t* codes(const Group& group, int) { return group.codes; }
    template <typename Dot>
    [[gnu::always_inline]] static F total(const typename Dot::Sums sums[kPlanes]) {
        return to_float(Dot::total(sums[0]));
    }
    /// The sum of the numbers of a unit.
    template <int unit>
    [[gnu::always_inline]] static float sum(const Group& group, int first) {
        const int16_t* sums = sums_of<unit>(group, first);
        return group.scale * static_cast<float>(sums[0] + sums[1]);
    }
};

/// `unit` columns share a scale and, if the format has any, an offset (HasOffsets). `Input`: what vectors are, as
/// Int8Input.
template <typename Digits, typename Scales, int unit>
struct Int8Kernel {
    using Dot = typename Digits::Dot;
    Digits digits;
    Scales scales;

    static constexpr int kUnits = kBlock / unit, kQuads = unit / 4, kLines = kQuads / Digits::kHalves;
    static constexpr int kColumns = 4 * Digits::kHalves;  // of a line
    static constexpr int kCodeBytes = kUnits * kLines * kLine + Digits::kMoreBytes;
    static constexpr bool kOffsets = HasOffsets<Scales>;
    static constexpr int kTogether = 4;                   // strips whose sums stay in L1 beside a block of the panel
    static constexpr int kShared = kLanes >= 16 ? 2 : 1;  // strips that share what is loaded of a vector

    /// Vectors at once: sums that wait for one another leave the unit idle.
    template <typename Input>
    static constexpr int kAtOnce = kLanes >= 16 && Input::kPlanes == 1 ? 2 : 1;

    struct Factors {
        F scale, offset;
    };
    [[gnu::always_inline]] Factors factors(const uint8_t* block, int u, int v) const {
        Factors f = {scales.of(block + kCodeBytes, u, v), {}};
        if constexpr (kOffsets)
            f.offset = fma(f.scale, broadcast(Digits::kCentre), scales.offset(block + kCodeBytes, u, v));
        return f;
    }

    /// Codes of unit u for part v of the rows, by quads. Fetches ahead a line for a line if told to.
    template <bool fetches = false>
    [[gnu::always_inline]] void decode(const uint8_t* block, int u, int v, U codes[kQuads]) const {
        unrolled<kLines>([&](int l) __attribute__((always_inline)) {
            if constexpr (fetches)
                if (v == 0) fetch_ahead<kColumns>(block + (u * kLines + l) * kLine);
            const auto words = digits.load(block, u * kLines + l, v);
            unrolled<Digits::kHalves>([&](int half) __attribute__((always_inline)) {
                codes[l * Digits::kHalves + half] = digits.prepare(words, half);
            });
        });
    }

    /// totals[t][s] += scale * the unit of strip s times unit u of vector t's block + offset * the sum of that unit.
    /// The blocks of `vectors` vectors follow one another from x on.
    template <typename Input, int strips, int vectors>
    [[gnu::always_inline]] static void add_unit(const U codes[strips][kQuads], const Factors factors[strips],
                                                const uint8_t* x, int u, F totals[vectors][strips]) {
        const int first = u * unit % quant::kInt8Columns;
        const auto group_of = [&](int t) __attribute__((always_inline))->const typename Input::Group& {
            return reinterpret_cast<const typename Input::Group*>(x +
                                                                  t * Input::kStride)[u * unit / quant::kInt8Columns];
        };
        typename Dot::Sums sums[vectors][strips][Input::kPlanes];
        unrolled<Input::kPlanes>([&](int plane) __attribute__((always_inline)) {
            for (int t = 0; t < vectors; ++t)
                for (int s = 0; s < strips; ++s)
                    sums[t][s][plane] = Input::template start<Dot, unit>(group_of(t), first, plane);
        });
        unrolled<kQuads>([&](int i) __attribute__((always_inline)) {
            unrolled<Input::kPlanes>([&](int plane) __attribute__((always_inline)) {
                for (int t = 0; t < vectors; ++t) {
                    const int8_t* quad = Input::codes(group_of(t), plane) + first + 4 * i;
                    for (int s = 0; s < strips; ++s) sums[t][s][plane] = Dot::add(sums[t][s][plane], codes[s][i], quad);
                }
            });
        });
        for (int t = 0; t < vectors; ++t) {
            const F scale = broadcast(group_of(t).scale);
            for (int s = 0; s < strips; ++s) {
                F& total = totals[t][s];
                total = fma(Input::template total<Dot>(sums[t][s]), factors[s].scale * scale, total);
                if constexpr (kOffsets)
                    total = fma(factors[s].offset, broadcast(Input::template sum<unit>(group_of(t), first)), total);
            }
        }
    }

    template <typename Input>
    void one(const uint8_t* p, int64_t block_bytes, int64_t blocks, const uint8_t* x, int64_t x_stride,
             float* y) const {
        F total[kParts] = {};
        for (int64_t b = 0; b < blocks; ++b, p += block_bytes, x += x_stride) {
            for (int u = 0; u < kUnits; ++u) {
                unrolled<kParts>([&](int v) __attribute__((always_inline)) {
                    U codes[1][kQuads];
                    decode<true>(p, u, v, codes[0]);
                    const Factors unit_factors = factors(p, u, v);
                    F totals[1][1] = {{total[v]}};
                    add_unit<Input, 1, 1>(codes, &unit_factors, x, u, totals);
                    total[v] = totals[0][0];
                });
            }
            for (int64_t i = kUnits * kLines * kLine; i < block_bytes; i += kLine) fetch_ahead<kColumns>(p + i);
        }
        for (int v = 0; v < kParts; ++v) store(y + v * kLanes, total[v]);
    }

    /// A block of `strips` strips, strip_bytes apart, times m vectors; sums [strips][m][16]. What is used next comes
    /// from `ahead` on, as many bytes, into L2; null: it is there.
    template <typename Input, int strips>
    void add_block(const uint8_t* p, int64_t strip_bytes, int64_t block_bytes, const uint8_t* ahead, const uint8_t* x,
                   int64_t m, float* sums) const {
        const int64_t unit_lines = (strips * block_bytes / kLine + kUnits - 1) / kUnits;
        for (int u = 0; u < kUnits; ++u) {
            for (int64_t i = 0; i < unit_lines && ahead; ++i, ahead += kLine) __builtin_prefetch(ahead, 0, 2);
            for (int v = 0; v < kParts; ++v) {
                U codes[strips][kQuads];
                Factors unit_factors[strips];
                for (int s = 0; s < strips; ++s) {
                    decode(p + s * strip_bytes, u, v, codes[s]);
                    unit_factors[s] = factors(p + s * strip_bytes, u, v);
                }
                const auto add = [&]<int vectors>(Number<vectors>, int64_t first) __attribute__((always_inline)) {
                    const auto at = [&](int t, int s) __attribute__((always_inline)) {
                        return sums + (s * m + first + t) * kStripRows + v * kLanes;
                    };
                    F totals[vectors][strips];
                    for (int t = 0; t < vectors; ++t)
                        for (int s = 0; s < strips; ++s) totals[t][s] = load(at(t, s));
                    add_unit<Input, strips, vectors>(codes, unit_factors, x + first * Input::kStride, u, totals);
                    for (int t = 0; t < vectors; ++t)
                        for (int s = 0; s < strips; ++s) store(at(t, s), totals[t][s]);
                };
                constexpr int kVectors = kAtOnce<Input>;
                int64_t t = 0;
                for (; t + kVectors <= m; t += kVectors) add(Number<kVectors>(), t);
                for (; t < m; ++t) add(Number<1>(), t);
            }
        }
    }

    /// `strips` <= kTogether strips that follow one another, m <= kMostVectors<Input> vectors. Fetches as many strips
    /// behind them, in the order of memory, if told to.
    template <typename Input>
    void many(const uint8_t* data, int64_t strips, int64_t strip_bytes, int64_t blocks, bool fetches, const uint8_t* x,
              int64_t x_stride, int64_t m, float* y, int64_t y_stride) const {
        alignas(64) float sums[kTogether * kMostVectors<Input> * kStripRows];
        __builtin_memset(sums, 0, static_cast<size_t>(strips * m * kStripRows) * sizeof(float));
        const int64_t block_bytes = strip_bytes / blocks;
        const uint8_t* next = data + strips * strip_bytes;
        for (int64_t b = 0; b < blocks; ++b, data += block_bytes, next += strips * block_bytes, x += x_stride) {
            const auto ahead = [&](int64_t s) { return fetches ? next + s * block_bytes : nullptr; };
            int64_t s = 0;
            for (; s + kShared <= strips; s += kShared)
                add_block<Input, kShared>(data + s * strip_bytes, strip_bytes, block_bytes, ahead(s), x, m,
                                          sums + s * m * kStripRows);
            for (; s < strips; ++s)
                add_block<Input, 1>(data + s * strip_bytes, strip_bytes, block_bytes, ahead(s), x, m,
                                    sums + s * m * kStripRows);
        }
        for (int64_t s = 0; s < strips; ++s)
            for (int64_t t = 0; t < m; ++t)
                __builtin_memcpy(y + t * y_stride + s * kStripRows, sums + (s * m + t) * kStripRows,
                                 kStripRows * sizeof(float));
    }

    /// So that a block of the panel stays in L1, with the sums.
    template <typename Input>
    static constexpr int kMostVectors = Input::kPlanes == 1 ? 48 : 24;

    template <typename Input>
    void multiply(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t x_stride, int64_t m,
                  float* y, int64_t y_stride) const {
        const int64_t blocks = w.cols / kBlock;
        const uint8_t* data = bytes(w.data) + first / kStripRows * w.strip_bytes;
        const uint8_t* panel = reinterpret_cast<const uint8_t*>(x);
        x_stride *= static_cast<int64_t>(sizeof(float));
        for (int64_t n = 0; n < count && m == 1; n += kStripRows, data += w.strip_bytes)
            one<Input>(data, w.strip_bytes / blocks, blocks, panel, x_stride, y + n);
        const PanelGroups groups(m, kMostVectors<Input>);
        for (int64_t n = 0; n < count && m > 1; n += kTogether * kStripRows, data += kTogether * w.strip_bytes) {
            const int64_t strips = smaller(kTogether, (count - n) / kStripRows);
            for (int64_t g = 0; g < groups.count; ++g) {
                const int64_t t = groups.first(g);
                many<Input>(data, strips, w.strip_bytes, blocks, g == 0, panel + t * Input::kStride, x_stride,
                            groups.first(g + 1) - t, y + t * y_stride + n, y_stride);
            }
        }
    }
};

/// Calls body(kernel) with the kernel of a matrix of GGUF blocks (strips_gguf_int8.inl).
template <typename Body>
void with_gguf_int8_kernel(quant::Format format, Body body);

/// Calls body(kernel) with the kernel of a matrix that has_integer_codes().
template <typename Body>
[[gnu::always_inline]] inline void with_int8_kernel(const quant::Matrix& w, Body body) {
    using quant::Format;
    if (w.format == Format::kE2M1Pair && w.scale_format == Format::kE8M0)
        body(Int8Kernel<DigitsE2M1, E8M0Scales, 32>{{}, {DigitsE2M1::kUnit}});
    else if (w.format == Format::kE2M1Pair)
        body(Int8Kernel<DigitsE2M1, E4M3Scales, 16>{{}, {DigitsE2M1::kUnit}});
    else if (w.format == Format::kInt4Pair && w.scale_cols == 32)
        body(Int8Kernel<DigitsInt4, BF16Scales, 32>{});
    else if (w.format == Format::kInt4Pair)
        body(Int8Kernel<DigitsInt4, Grouped<BF16Scales, 4>, 32>{});
    else if (w.format == Format::kQ8_0)
        body(Int8Kernel<DigitsQ8, F16Scales, 32>{});
    else
        with_gguf_int8_kernel(w.format, body);
}

void matmul_int8(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t x_stride, int64_t m,
                 float* y, int64_t y_stride) noexcept {
    with_int8_kernel(
        w, [&](const auto& kernel) __attribute__((always_inline)) {
            kernel.template multiply<Int8Input>(w, first, count, x, x_stride, m, y, y_stride);
        });
    apply_multiplier(w, m, count, y, y_stride);
}

void round_int8(const float* x, Int8Group* out, int64_t n) noexcept {
    typedef int8_t Narrow __attribute__((vector_size(kLanes)));
    typedef int32_t Four __attribute__((vector_size(16)));
    typedef int16_t Sums __attribute__((vector_size(8)));
    constexpr int kColumns = quant::kInt8Columns;
    for (int64_t k = 0; k < n; k += kColumns, x += kColumns, ++out) {
        const float largest = largest_magnitude(x, kColumns);
        const float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
        alignas(64) int32_t codes[kColumns];
        F poison = {};  // NaN if a number is not finite
        for (int i = 0; i < kColumns; i += kLanes) {
            const F numbers = load(x + i);
            const I rounded = round_to_int(numbers * broadcast(inverse));
            const Narrow narrow = __builtin_convertvector(rounded, Narrow);
            __builtin_memcpy(codes + i, &rounded, sizeof rounded);
            __builtin_memcpy(out->codes + i, &narrow, sizeof narrow);
            poison += numbers * broadcast(0.0f);
        }
        out->scale = inverse * largest != 0.0f ? largest / 127.0f : 0.0f;
        if (mask_bits(poison != poison)) out->scale = __builtin_nanf("");
        Four halves[2] = {};
        for (int i = 0; i < kColumns; i += 4) {
            Four four;
            __builtin_memcpy(&four, codes + i, sizeof four);
            halves[i / 16] += four;
        }
        const Four pairs = __builtin_shufflevector(halves[0], halves[1], 0, 2, 4, 6) +
                           __builtin_shufflevector(halves[0], halves[1], 1, 3, 5, 7);
        const Sums sums = __builtin_convertvector(pairs, Sums);
        __builtin_memcpy(out->sums, &sums, sizeof sums);
        for (int i = 0; i < 2; ++i) out->sums[4 + i] = static_cast<int16_t>(sums[i] + sums[2 + i]);
    }
}
