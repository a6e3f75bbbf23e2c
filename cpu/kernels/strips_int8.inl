// Packed matrices with integer codes times vectors rounded to int8 (quant::Int8Group): exact sums of products inside a
// unit of columns, then total += (scale of the row * scale of the vector) * sum, unit by unit. So an output depends
// neither on m nor on the split of the rows, and is the same on every tier up to the rounding of those few operations.
//
// The ISA unit gives two ways to add products of four columns (a word of codes, a quad of the vector):
//   OffsetDot<o>  codes are value + o, none of them above 2 o; what they are too much is known before: o * (sums of x)
//   SignedDot     codes are two's complement bytes

using quant::Int8Group;

constexpr int kInt8Stride = kBlock / quant::kInt8Columns * static_cast<int>(sizeof(Int8Group));  // a vector's block

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

/// `unit` columns share a scale and, if the format has any, an offset (HasOffsets).
template <typename Digits, typename Scales, int unit>
struct Int8Kernel {
    using Dot = typename Digits::Dot;
    Digits digits;
    Scales scales;

    static constexpr int kUnits = kBlock / unit, kQuads = unit / 4, kLines = kQuads / Digits::kHalves;
    static constexpr int kCodeBytes = kUnits * kLines * kLine + Digits::kMoreBytes;
    static constexpr bool kOffsets = HasOffsets<Scales>;
    static constexpr int kTokens = 48, kTogether = 4;  // block of the panel and sums: in L1

    struct Factors {
        F scale, offset;
    };
    [[gnu::always_inline]] Factors factors(const uint8_t* block, int u, int v) const {
        Factors f = {scales.of(block + kCodeBytes, u, v), {}};
        if constexpr (kOffsets)
            f.offset = fma(f.scale, broadcast(Digits::kCentre), scales.offset(block + kCodeBytes, u, v));
        return f;
    }

    /// Codes of unit u for part v of the rows, by quads.
    [[gnu::always_inline]] void decode(const uint8_t* block, int u, int v, U codes[kQuads]) const {
        unrolled<kLines>([&](int l) __attribute__((always_inline)) {
            const auto words = digits.load(block, u * kLines + l, v);
            unrolled<Digits::kHalves>([&](int half) __attribute__((always_inline)) {
                codes[l * Digits::kHalves + half] = digits.prepare(words, half);
            });
        });
    }

    /// total + scale * the unit times unit u of one vector's block + offset * the sum of that unit.
    [[gnu::always_inline]] static F add_unit(const U codes[kQuads], const Factors& factors, const Int8Group* block,
                                             int u, F total) {
        const Int8Group& group = block[u * unit / quant::kInt8Columns];
        const int first = u * unit % quant::kInt8Columns;
        const int16_t* code_sums = group.sums + (unit == quant::kInt8Columns ? 4 : first / 8);
        auto sums = Dot::start(code_sums);
        unrolled<kQuads>([&](int i) __attribute__((always_inline)) {
            sums = Dot::add(sums, codes[i], group.codes + first + 4 * i);
        });
        total = fma(to_float(Dot::total(sums)), factors.scale * broadcast(group.scale), total);
        if constexpr (kOffsets) {
            const float sum = group.scale * static_cast<float>(code_sums[0] + code_sums[1]);
            total = fma(factors.offset, broadcast(sum), total);
        }
        return total;
    }

    void one(const uint8_t* p, int64_t block_bytes, int64_t blocks, const uint8_t* x, int64_t x_stride,
             float* y) const {
        F total[kParts] = {};
        for (int64_t b = 0; b < blocks; ++b, p += block_bytes, x += x_stride) {
            for (int64_t i = kUnits * kLines * kLine; i < block_bytes; i += kLine) fetch_ahead(p + i);
            for (int u = 0; u < kUnits; ++u) {
                for (int l = 0; l < kLines; ++l) fetch_ahead(p + (u * kLines + l) * kLine);
                unrolled<kParts>([&](int v) __attribute__((always_inline)) {
                    U codes[kQuads];
                    decode(p, u, v, codes);
                    total[v] = add_unit(codes, factors(p, u, v), groups(x), u, total[v]);
                });
            }
        }
        for (int v = 0; v < kParts; ++v) store(y + v * kLanes, total[v]);
    }

    /// `strips` <= kTogether strips that follow one another, m <= kTokens vectors.
    void many(const uint8_t* data, int64_t strips, int64_t strip_bytes, int64_t blocks, const uint8_t* x,
              int64_t x_stride, int64_t m, float* y, int64_t y_stride) const {
        alignas(64) float sums[kTogether][kTokens * kStripRows];
        __builtin_memset(sums, 0, static_cast<size_t>(strips) * sizeof sums[0]);
        const int64_t block_bytes = strip_bytes / blocks;
        for (int64_t b = 0; b < blocks; ++b, data += block_bytes, x += x_stride) {
            for (int64_t s = 0; s < strips; ++s) {
                const uint8_t* p = data + s * strip_bytes;
                for (int64_t i = 0; i < block_bytes; i += kLine) fetch_ahead(p + i);
                for (int u = 0; u < kUnits; ++u) {
                    for (int v = 0; v < kParts; ++v) {
                        U codes[kQuads];
                        decode(p, u, v, codes);
                        const Factors unit_factors = factors(p, u, v);
                        for (int64_t t = 0; t < m; ++t) {
                            float* at = sums[s] + t * kStripRows + v * kLanes;
                            store(at, add_unit(codes, unit_factors, groups(x + t * kInt8Stride), u, load(at)));
                        }
                    }
                }
            }
        }
        for (int64_t s = 0; s < strips; ++s)
            for (int64_t t = 0; t < m; ++t)
                __builtin_memcpy(y + t * y_stride + s * kStripRows, sums[s] + t * kStripRows,
                                 kStripRows * sizeof(float));
    }

    static const Int8Group* groups(const uint8_t* p) { return reinterpret_cast<const Int8Group*>(p); }

    void multiply(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t x_stride, int64_t m,
                  float* y, int64_t y_stride) const {
        const int64_t blocks = w.cols / kBlock;
        const uint8_t* data = bytes(w.data) + first / kStripRows * w.strip_bytes;
        const uint8_t* panel = reinterpret_cast<const uint8_t*>(x);
        x_stride *= static_cast<int64_t>(sizeof(float));
        for (int64_t n = 0; n < count && m == 1; n += kStripRows, data += w.strip_bytes)
            one(data, w.strip_bytes / blocks, blocks, panel, x_stride, y + n);
        for (int64_t n = 0; n < count && m > 1; n += kTogether * kStripRows, data += kTogether * w.strip_bytes) {
            const int64_t strips = smaller(kTogether, (count - n) / kStripRows);
            for (int64_t t = 0; t < m; t += kTokens)
                many(data, strips, w.strip_bytes, blocks, panel + t * kInt8Stride, x_stride, smaller(m - t, kTokens),
                     y + t * y_stride + n, y_stride);
        }
    }
};

/// Calls body(kernel) with the kernel of a matrix of GGUF blocks (strips_gguf_int8.inl).
template <typename Body>
void with_gguf_int8_kernel(quant::Format format, Body body);

void matmul_int8(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t x_stride, int64_t m,
                 float* y, int64_t y_stride) noexcept {
    using quant::Format;
    const auto multiply = [&](const auto& kernel) __attribute__((always_inline)) {
        kernel.multiply(w, first, count, x, x_stride, m, y, y_stride);
    };
    if (w.format == Format::kE2M1Pair && w.scale_format == Format::kE8M0)
        multiply(Int8Kernel<DigitsE2M1, E8M0Scales, 32>{{}, {DigitsE2M1::kUnit}});
    else if (w.format == Format::kE2M1Pair)
        multiply(Int8Kernel<DigitsE2M1, E4M3Scales, 16>{{}, {DigitsE2M1::kUnit}});
    else if (w.format == Format::kInt4Pair && w.scale_cols == 32)
        multiply(Int8Kernel<DigitsInt4, BF16Scales, 32>{});
    else if (w.format == Format::kInt4Pair)
        multiply(Int8Kernel<DigitsInt4, Grouped<BF16Scales, 4>, 32>{});
    else if (w.format == Format::kQ8_0)
        multiply(Int8Kernel<DigitsQ8, F16Scales, 32>{});
    else
        with_gguf_int8_kernel(w.format, multiply);
    apply_multiplier(w, m, count, y, y_stride);
}

void round_int8(const float* x, Int8Group* out, int64_t n) noexcept {
    constexpr int kColumns = quant::kInt8Columns;
    for (int64_t k = 0; k < n; k += kColumns, x += kColumns, ++out) {
        const float largest = largest_magnitude(x, kColumns);
        const float inverse = largest > 1e-30f ? 127.0f / largest : 0.0f;
        int32_t codes[kColumns];
        F poison = {};  // NaN if a number is not finite
        for (int i = 0; i < kColumns; i += kLanes) {
            const F numbers = load(x + i);
            const I rounded = round_to_int(numbers * broadcast(inverse));
            __builtin_memcpy(codes + i, &rounded, sizeof rounded);
            poison += numbers * broadcast(0.0f);
        }
        out->scale = inverse * largest != 0.0f ? largest / 127.0f : 0.0f;
        for (int i = 0; i < kLanes; ++i) out->scale += poison[i];
        int sums[4] = {};
        for (int i = 0; i < kColumns; ++i) {
            out->codes[i] = static_cast<int8_t>(codes[i]);
            sums[i / 16 * 2 + i % 4 / 2] += out->codes[i];
        }
        for (int i = 0; i < 4; ++i) out->sums[i] = static_cast<int16_t>(sums[i]);
        for (int i = 0; i < 2; ++i) out->sums[4 + i] = static_cast<int16_t>(sums[i] + sums[2 + i]);
    }
}
