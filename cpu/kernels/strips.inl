// Packed matrices (src/quant/strips.h) times vectors: one row to a lane, so a strip of 16 rows is kParts vectors, and
// the numbers of x are broadcast. An output is a sum over units of columns (a group of scales, or 64), added in order:
// inside a unit one chain of multiply-adds through the columns, then total += scale * unit. Formats with minimums then
// add offset * (sum of the unit's x). This order depends on the column alone, so an output depends neither on m nor on
// the split of the rows.
//
//   m = 1: codes are decoded into registers and multiplied at once; some units at a time hide the latency of the
//   chains. m > 1: a block of 16 x 128 is decoded into a tile in L1, which all vectors then pass.
//
// Vectors come as a panel (cpu/kernels.h): what a pass broadcasts lies together, where rows of a power of two would
// share a few cache sets and banks.

constexpr int kStripRows = quant::kStripRows, kBlock = quant::kStripBlock, kLine = quant::kLineBytes;
constexpr int kParts = kStripRows / kLanes;
constexpr int kStripTokens = kParts == 1 ? 12 : kParts == 2 ? 6 : 2;  // accumulators that fit into the registers
constexpr int kTileGroups = 96 / kStripTokens;                        // whose sums stay in L1 beside the tile

/// The stream kFetchAhead bytes on. A line for a line that is used, as many at once would hold up the loads behind
/// them, and in the order of memory whatever order they are used in: out of order the memory is read at a third of its
/// speed (Zen 4).
[[gnu::always_inline]] inline void fetch_ahead(const uint8_t* line) { __builtin_prefetch(line + kFetchAhead, 0, 3); }
/// Of lines of `columns`. Nibbles take longer to decode, and some processors are fastest with those in L2, further on.
template <int columns>
[[gnu::always_inline]] inline void fetch_ahead(const uint8_t* line) {
    if constexpr (columns >= 8 && kFetchNibblesAhead > 0)
        __builtin_prefetch(line + kFetchNibblesAhead, 0, 2);
    else
        fetch_ahead(line);
}

[[gnu::always_inline]] inline U load_line(const uint8_t* p) {
    U words;
    __builtin_memcpy(&words, p, sizeof words);
    return words;
}

// ---- products -----------------------------------------------------------------------------------------------------

/// A vector of weights is one column of 16 rows, a number of the panel one of x.
struct SingleColumns {
    static constexpr int kStep = 1;      // columns of a vector
    static constexpr int kTogether = 2;  // units whose chains hide each other's latency when m = 1
    [[gnu::always_inline]] static F number(const float* x) { return broadcast(*x); }
    [[gnu::always_inline]] static F add(F w, F x, F sum) { return fma(w, x, sum); }
};

// ---- codes: words of a line -> vector j of it ----------------------------------------------------------------------
//
// kColumns: columns of a line; kUnit: columns of a chain of multiply-adds; kNumberUnit: what the numbers that come out
// are still to be multiplied with.

/// Codes that lie in one run of lines. `load`: line `line` of a block, for part v of the rows.
struct OneRun {
    using Products = SingleColumns;
    static constexpr float kNumberUnit = 1.0f;
    static constexpr int kMoreBytes = 0;  // of a block's codes, besides the lines of kColumns
    [[gnu::always_inline]] U load(const uint8_t* block, int line, int v) const {
        return load_line(block + line * kLine + v * kLanes * 4);
    }
};

/// Formats whose columns need nothing done to all of a word first.
struct WholeWords : OneRun {
    [[gnu::always_inline]] U prepare(U words, int) const { return words; }
};

struct StripF32 : WholeWords {
    static constexpr int kColumns = 1, kUnit = 64;
    [[gnu::always_inline]] F column(U words, int) const { return (F)words; }
};

struct StripBF16 : WholeWords {
    static constexpr int kColumns = 2, kUnit = 64;
    [[gnu::always_inline]] F column(U words, int j) const { return (F)(j == 0 ? words << 16 : words & 0xffff0000); }
};

struct StripF16 : WholeWords {
    static constexpr int kColumns = 2, kUnit = 64;
    [[gnu::always_inline]] F column(U words, int j) const {
        return f16_of_words(j == 0 ? words & 0xffff : words >> 16);
    }
};

/// e4m3 codes, four to a word, as the ISA unit takes them apart.
struct StripE4M3 : OneRun {
    static constexpr int kColumns = 4, kUnit = 64;
    E4M3Columns columns;
    [[gnu::always_inline]] auto prepare(U words, int) const { return columns.prepare(words); }
    [[gnu::always_inline]] F column(const auto& prepared, int j) const { return columns.column(prepared, j); }
};

struct StripQ8 : WholeWords {
    static constexpr int kColumns = 4, kUnit = 32;
    [[gnu::always_inline]] F column(U words, int j) const {
        return to_float((I)(j == 3 ? words : words << (24 - 8 * j)) >> 24);
    }
};

/// Nibbles that a table of 16 bytes turns into e4m3, four columns at a time; none of them is subnormal. Their fields
/// are moved to where a float has its own, so a number comes out times 2^-120. So that products stay far from the
/// subnormal floats, x comes multiplied by 2^60 (quant::strip_input_factor); the scales bring the other 2^60.
constexpr float kE2M1Unit = 0x1p60f;
template <int unit>
struct StripE2M1 : OneRun {
    static constexpr int kColumns = 8, kUnit = unit;
    static constexpr float kNumberUnit = kE2M1Unit;
    ByteTable table = make_byte_table(kE2M1AsE4M3);
    [[gnu::always_inline]] F column(U bytes, int j) const { return e4m3_fields(bytes, j % 4); }
    /// Half 0: columns 0..3, half 1: columns 4..7.
    [[gnu::always_inline]] U prepare(U words, int half) const {
        return look_up_bytes(table, (half ? words >> 4 : words) & 0x0f0f0f0f);
    }
};

template <int unit>
struct StripInt4 : OneRun {
    static constexpr int kColumns = 8, kUnit = unit, kCentre = 8;
    [[gnu::always_inline]] F column(U words, int j) const {
        const int shift = 28 - (j % 4 * 8 + j / 4 * 4);
        return to_float((I)(shift == 0 ? words : words << shift) >> 28);
    }
    /// Offset binary to two's complement.
    [[gnu::always_inline]] U prepare(U words, int) const { return words ^ 0x88888888; }
};

// ---- scales: of unit u of a block, for part v of the rows --------------------------------------------------------

struct NoScales {
    static constexpr bool kInBlock = false;
    [[gnu::always_inline]] F of(const uint8_t*, int, int) const { return broadcast(1.0f); }
};

/// 2^(code - 127); code 0 is a subnormal float.
struct E8M0Scales {
    static constexpr bool kInBlock = true;
    float unit;  // of the codes
    [[gnu::always_inline]] F of(const uint8_t* p, int u, int v) const {
        const I codes = load_u8(p + u * kStripRows + v * kLanes);
        return as_float(codes << 23 | ((codes == 0) & 0x00400000)) * broadcast(unit);
    }
};

struct E4M3Scales {
    static constexpr bool kInBlock = true;
    float unit;
    [[gnu::always_inline]] F of(const uint8_t* p, int u, int v) const {
        const I codes = load_u8(p + u * kStripRows + v * kLanes);
        return e4m3_column((U)codes, 0) * broadcast(unit);
    }
};

struct F16Scales {
    static constexpr bool kInBlock = true;
    [[gnu::always_inline]] F of(const uint8_t* p, int u, int v) const {
        return load_f16(p + 2 * (u * kStripRows + v * kLanes));
    }
};

struct BF16Scales {
    static constexpr bool kInBlock = true;
    [[gnu::always_inline]] F of(const uint8_t* p, int u, int v) const {
        return load_bf16(p + 2 * (u * kStripRows + v * kLanes));
    }
};

/// Units that share a group of scales.
template <typename Scales, int per_group>
struct Grouped {
    static constexpr bool kInBlock = true;
    Scales scales;
    [[gnu::always_inline]] F of(const uint8_t* p, int u, int v) const { return scales.of(p, u / per_group, v); }
};

/// Scales whose matrices have minimums besides: offset() is what the sum of x is multiplied with, for codes that are
/// not negative. The kernels take codes less their kCentre.
template <typename Scales>
concept HasOffsets = requires(const Scales& scales, const uint8_t* p) {
    scales.offset(p, 0, 0);
};

/// The sum of a unit of one vector: four chains of columns.
template <int unit>
[[gnu::always_inline]] inline float sum_of_unit(const float* x) {
    typedef float Chains __attribute__((vector_size(16)));
    Chains sums = {};
    for (int k = 0; k < unit; k += 4) {
        Chains four;
        __builtin_memcpy(&four, x + k, sizeof four);
        sums += four;
    }
    return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

/// The same for the `count` vectors of a group of a panel, one to a lane.
template <int unit>
[[gnu::always_inline]] inline F sums_of_units(const float* x, int64_t count) {
    static_assert(kLanes >= kStripTokens && kLanes <= kPanelSlack);
    F sums[4] = {};
    for (int k = 0; k < unit; k += 4)
        for (int j = 0; j < 4; ++j) sums[j] += load(x + (k + j) * count);
    return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

// ---- one strip ----------------------------------------------------------------------------------------------------

/// Where a strip's blocks are, and the scale beside the matrix that the 16 rows share in a block (1 without).
struct Strip {
    const uint8_t* data;
    const uint8_t* shared_scales;
    quant::Format shared_format;
    int64_t shared_cols;
    float unit;  // of the codes

    Strip(const quant::Matrix& w, int64_t n, float code_unit)
        : data(bytes(w.data) + n / kStripRows * w.strip_bytes),
          shared_scales(w.scales ? bytes(w.scales) + n / w.scale_rows * w.scale_stride : nullptr),
          shared_format(w.scale_format),
          shared_cols(w.scale_cols),
          unit(code_unit) {}

    /// Times the unit.
    float shared_scale(int64_t block) const {
        if (!shared_scales) return 1.0f;
        const int64_t i = block * kBlock / shared_cols;
        switch (shared_format) {
            case quant::Format::kE8M0:
                return e8m0_number(shared_scales[i]) * unit;
            case quant::Format::kBF16:
                return bf16_number(shared_scales + 2 * i) * unit;
            case quant::Format::kF16:
                return f16_number(shared_scales + 2 * i) * unit;
            default:
                return bits_as<float>(read_u32(shared_scales + 4 * i)) * unit;
        }
    }
};

/// Vectors of weights of a line.
template <typename Codes>
constexpr int kVectors = Codes::kColumns / Codes::Products::kStep;

/// Calls body(j, F) for the vectors of a line; four columns are prepared at a time.
template <typename Codes, typename Line, typename Body>
[[gnu::always_inline]] inline void for_vectors_of(const Codes& codes, const Line& line, Body body) {
    constexpr int kPrepared = (Codes::kColumns < 4 ? Codes::kColumns : 4) / Codes::Products::kStep;
    unrolled<kVectors<Codes> / kPrepared>([&](int i) __attribute__((always_inline)) {
        const auto prepared = codes.prepare(line, i);
        unrolled<kPrepared>([&](int j) __attribute__((always_inline)) {
            body(i * kPrepared + j, codes.column(prepared, i * kPrepared + j));
        });
    });
}

/// Scales and, if the format has any, offsets of the units of a block.
template <int units, bool has_offsets>
struct UnitFactors {
    F scales[units][kParts], offsets[has_offsets ? units : 1][kParts];
};

/// sums[t][16] += the tile of all units, [128 / kStep][16], times x[.][t] for the `count` <= tokens vectors of a group;
/// the other sums of the group come out as garbage.
template <typename Products, int unit, int tokens, bool offsets>
void pass(int64_t count, const float* tile, const UnitFactors<kBlock / unit, offsets>& factors, const float* x,
          float* sums) {
    F totals[tokens][kParts];
    const auto for_totals = [&](auto body) __attribute__((always_inline)) {
        unrolled<tokens>([&](int t) __attribute__((always_inline)) {
            for (int v = 0; v < kParts; ++v) body(totals[t][v], sums + t * kStripRows + v * kLanes);
        });
    };
    for_totals([](F & total, const float* at) __attribute__((always_inline)) { total = load(at); });
    for (int u = 0; u < kBlock / unit; ++u) {
        float x_sums[kLanes];
        if constexpr (offsets) store(x_sums, sums_of_units<unit>(x, count));
        F sum[tokens][kParts] = {};
        for (int k = 0; k < unit / Products::kStep; ++k, tile += kStripRows, x += count) {
            F w[kParts];
            for (int v = 0; v < kParts; ++v) w[v] = load(tile + v * kLanes);
            unrolled<tokens>([&](int t) __attribute__((always_inline)) {
                const F number = Products::number(x + t);
                for (int v = 0; v < kParts; ++v) sum[t][v] = Products::add(w[v], number, sum[t][v]);
            });
        }
        unrolled<tokens>([&](int t) __attribute__((always_inline)) {
            for (int v = 0; v < kParts; ++v) {
                totals[t][v] = fma(factors.scales[u][v], sum[t][v], totals[t][v]);
                if constexpr (offsets) totals[t][v] = fma(factors.offsets[u][v], broadcast(x_sums[t]), totals[t][v]);
            }
        });
    }
    for_totals([](F total, float* at) __attribute__((always_inline)) { store(at, total); });
}

/// With as few chains as the group has vectors, but fewer than kFew * kParts do not hide the latency of the
/// multiply-adds: they would take as long.
template <typename Products, int unit, bool offsets, int tokens = kStripTokens>
void pass_group(int64_t count, const float* tile, const UnitFactors<kBlock / unit, offsets>& factors, const float* x,
                float* sums) {
    constexpr int kFew = (kStripTokens + 1) / 2;
    if constexpr (tokens > kFew)
        if (count < tokens) return pass_group<Products, unit, offsets, tokens - 1>(count, tile, factors, x, sums);
    pass<Products, unit, tokens>(count, tile, factors, x, sums);
}

template <typename Codes, typename Scales>
struct StripKernel {
    using Products = typename Codes::Products;
    Codes codes;
    Scales scales;

    static constexpr int kTogether = Products::kTogether;
    static constexpr int kUnits = kBlock / Codes::kUnit;
    static constexpr int kLines = Codes::kUnit / Codes::kColumns;  // of a unit
    static constexpr int kCodeBytes = kBlock / Codes::kColumns * kLine + Codes::kMoreBytes;
    static constexpr bool kOffsets = HasOffsets<Scales>;

    [[gnu::always_inline]] F scale(const uint8_t* block, float shared, int u, int v) const {
        return Scales::kInBlock ? scales.of(block + kCodeBytes, u, v) : broadcast(shared);
    }
    [[gnu::always_inline]] F offset(const uint8_t* block, F scale, int u, int v) const {
        return fma(scale, broadcast(Codes::kCentre), scales.offset(block + kCodeBytes, u, v));
    }

    void one(const Strip& strip, int64_t block_bytes, int64_t blocks, const float* x, int64_t x_stride,
             float* y) const {
        F total[kParts] = {};
        const uint8_t* p = strip.data;
        for (int64_t b = 0; b < blocks; ++b, p += block_bytes, x += x_stride) {
            const float shared = strip.shared_scale(b);
            for (int u = 0; u < kUnits; u += kTogether) {
                F sum[kTogether][kParts] = {};
                for (int l = 0; l < kLines; ++l) {
                    unrolled<kTogether>([&](int i) __attribute__((always_inline)) {
                        const int line = (u + i) * kLines + l;
                        fetch_ahead<Codes::kColumns>(p + (u * kLines + l * kTogether + i) * kLine);
                        const float* part = x + ((u + i) * Codes::kUnit + l * Codes::kColumns) / Products::kStep;
                        unrolled<kParts>([&](int v) __attribute__((always_inline)) {
                            for_vectors_of(
                                codes, codes.load(p, line, v), [&](int j, F w) __attribute__((always_inline)) {
                                    sum[i][v] = Products::add(w, Products::number(part + j), sum[i][v]);
                                });
                        });
                    });
                }
                unrolled<kTogether>([&](int i) __attribute__((always_inline)) {
                    [[maybe_unused]] const float* part = x + (u + i) * Codes::kUnit;
                    unrolled<kParts>([&](int v) __attribute__((always_inline)) {
                        const F factor = scale(p, shared, u + i, v);
                        total[v] = fma(factor, sum[i][v], total[v]);
                        if constexpr (kOffsets)
                            total[v] =
                                fma(offset(p, factor, u + i, v), broadcast(sum_of_unit<Codes::kUnit>(part)), total[v]);
                    });
                });
            }
            for (int64_t i = kUnits * kLines * kLine; i < block_bytes; i += kLine) fetch_ahead<Codes::kColumns>(p + i);
        }
        for (int v = 0; v < kParts; ++v) store(y + v * kLanes, total[v]);
    }

    /// Groups [first, last) of a panel, at most kTileGroups.
    void many(const Strip& strip, int64_t block_bytes, int64_t blocks, const float* x, int64_t x_stride,
              PanelGroups groups, int64_t first, int64_t last, float* y, int64_t y_stride) const {
        constexpr int kBlockVectors = kBlock / Products::kStep;
        alignas(64) float tile[kBlockVectors * kStripRows], sums[kTileGroups][kStripTokens * kStripRows] = {};
        const uint8_t* p = strip.data;
        for (int64_t b = 0; b < blocks; ++b, p += block_bytes, x += x_stride) {
            for (int l = 0; l < kUnits * kLines; ++l) {
                fetch_ahead<Codes::kColumns>(p + l * kLine);
                for (int v = 0; v < kParts; ++v) {
                    for_vectors_of(
                        codes, codes.load(p, l, v), [&](int j, F w) __attribute__((always_inline)) {
                            store(tile + (l * kVectors<Codes> + j) * kStripRows + v * kLanes, w);
                        });
                }
            }
            for (int64_t i = kUnits * kLines * kLine; i < block_bytes; i += kLine) fetch_ahead<Codes::kColumns>(p + i);
            UnitFactors<kUnits, kOffsets> factors;
            const float shared = strip.shared_scale(b);
            for (int u = 0; u < kUnits; ++u) {
                for (int v = 0; v < kParts; ++v) {
                    factors.scales[u][v] = scale(p, shared, u, v);
                    if constexpr (kOffsets) factors.offsets[u][v] = offset(p, factors.scales[u][v], u, v);
                }
            }
            for (int64_t g = first; g < last; ++g) {
                const int64_t t = groups.first(g), count = groups.first(g + 1) - t;
                pass_group<Products, Codes::kUnit>(count, tile, factors, x + t * kBlockVectors, sums[g - first]);
            }
        }
        for (int64_t g = first; g < last; ++g) {
            const int64_t begin = groups.first(g), end = groups.first(g + 1);
            for (int64_t t = begin; t < end; ++t)
                for (int v = 0; v < kParts; ++v)
                    store(y + t * y_stride + v * kLanes, load(sums[g - first] + (t - begin) * kStripRows + v * kLanes));
        }
    }

    void multiply(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t x_stride, int64_t m,
                  float* y, int64_t y_stride) const {
        const int64_t blocks = w.cols / kBlock, block_bytes = w.strip_bytes / blocks;
        for (int64_t n = 0; n < count; n += kStripRows) {
            const Strip strip(w, first + n, Codes::kNumberUnit);
            if (m == 1) {
                one(strip, block_bytes, blocks, x, x_stride, y + n);
                continue;
            }
            const PanelGroups groups(m, kStripTokens);
            for (int64_t g = 0; g < groups.count; g += kTileGroups)
                many(strip, block_bytes, blocks, x, x_stride, groups, g, smaller(groups.count, g + kTileGroups), y + n,
                     y_stride);
        }
    }
};

/// The same for GGUF blocks (strips_gguf.inl).
template <typename Body>
void with_gguf_strip_kernel(quant::Format format, Body body);

/// Calls body(kernel) with the kernel of a packed matrix.
template <typename Body>
[[gnu::always_inline]] inline void with_strip_kernel(const quant::Matrix& w, Body body) {
    using quant::Format;
    switch (w.format) {
        case Format::kE2M1Pair:
            if (w.scale_format == Format::kE8M0) return body(StripKernel<StripE2M1<32>, E8M0Scales>{{}, {kE2M1Unit}});
            return body(StripKernel<StripE2M1<16>, E4M3Scales>{{}, {kE2M1Unit}});
        case Format::kInt4Pair:
            if (w.scale_cols == 32) return body(StripKernel<StripInt4<32>, BF16Scales>{});
            return body(StripKernel<StripInt4<64>, Grouped<BF16Scales, 2>>{});
        case Format::kE4M3:
            if (w.scale_in_strip) return body(StripKernel<StripE4M3, Grouped<E8M0Scales, 2>>{{}, {{1.0f}}});
            return body(StripKernel<StripE4M3, NoScales>{});
        case Format::kQ8_0:
            return body(StripKernel<StripQ8, F16Scales>{});
        case Format::kBF16:
            return body(StripKernel<StripBF16, NoScales>{});
        case Format::kF16:
            return body(StripKernel<StripF16, NoScales>{});
        case Format::kF32:
            return body(StripKernel<StripF32, NoScales>{});
        default:
            return with_gguf_strip_kernel(w.format, body);
    }
}
