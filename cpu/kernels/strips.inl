// Packed matrices (src/quant/strips.h) times vectors: one row to a lane, so a strip of 16 rows is kParts vectors, and
// the numbers of x are broadcast. An output is a sum over units of columns (a group of scales, or 64), added in order:
// inside a unit one chain of multiply-adds through the columns, then total += scale * unit. This order depends on the
// column alone, so an output depends neither on m nor on the split of the rows.
//
//   m = 1: codes are decoded into registers and multiplied at once; some units at a time hide the latency of the
//   chains. m > 1: a block of 16 x 128 is decoded into a tile in L1, which all vectors then pass.
//
// Vectors come as a panel (cpu/kernels.h): what a pass broadcasts lies together, where rows of a power of two would
// share a few cache sets and banks.

constexpr int kStripRows = quant::kStripRows, kBlock = quant::kStripBlock, kLine = quant::kLineBytes;
constexpr int kParts = kStripRows / kLanes;
constexpr int kAhead = 4096;                                          // bytes that the stream is fetched ahead
constexpr int kStripTokens = kParts == 1 ? 12 : kParts == 2 ? 6 : 2;  // accumulators that fit into the registers
constexpr int kTileGroups = 96 / kStripTokens;                        // whose sums stay in L1 beside the tile

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

/// Formats whose columns need nothing done to all of a word first.
struct WholeWords {
    using Products = SingleColumns;
    static constexpr float kNumberUnit = 1.0f;
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

/// Byte j of every word as e4m3, times 2^-120: the fields stand where those of a float do. So that products stay far
/// from the subnormal floats, x comes multiplied by 2^60 (quant::strip_input_factor); the scales bring the other 2^60.
[[gnu::always_inline]] inline F e4m3_column(U words, int j) {
    const I top = (I)(j == 3 ? words : words << (24 - 8 * j));
    return as_float((top >> 4) & static_cast<int32_t>(0x87f00000));
}

constexpr float kE4M3Unit = 0x1p60f;

struct StripE4M3 : WholeWords {
    static constexpr int kColumns = 4, kUnit = 64;
    static constexpr float kNumberUnit = kE4M3Unit;
    [[gnu::always_inline]] F column(U words, int j) const { return e4m3_column(words, j); }
};

struct StripQ8 : WholeWords {
    static constexpr int kColumns = 4, kUnit = 32;
    [[gnu::always_inline]] F column(U words, int j) const {
        return to_float((I)(j == 3 ? words : words << (24 - 8 * j)) >> 24);
    }
};

/// Nibbles that a table of 16 bytes turns into one-byte numbers, four columns at a time.
template <int unit>
struct StripE2M1 {
    using Products = SingleColumns;
    static constexpr int kColumns = 8, kUnit = unit;
    static constexpr float kNumberUnit = kE4M3Unit;
    ByteTable table = make_byte_table(kE2M1AsE4M3);
    [[gnu::always_inline]] F column(U bytes, int j) const { return e4m3_column(bytes, j % 4); }
    /// Half 0: columns 0..3, half 1: columns 4..7.
    [[gnu::always_inline]] U prepare(U words, int half) const {
        return look_up_bytes(table, (half ? words >> 4 : words) & 0x0f0f0f0f);
    }
};

template <int unit>
struct StripInt4 {
    using Products = SingleColumns;
    static constexpr int kColumns = 8, kUnit = unit;
    static constexpr float kNumberUnit = 1.0f;
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
        return e4m3_column((U)codes, 0) * broadcast(0x1p120f) * broadcast(unit);
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

/// Calls body(j, F) for the vectors of a line.
template <typename Codes, typename Body>
[[gnu::always_inline]] inline void for_vectors_of(const Codes& codes, U words, Body body) {
    constexpr int kHalves = Codes::kColumns == 8 ? 2 : 1, kHalf = kVectors<Codes> / kHalves;
    unrolled<kHalves>([&](int half) __attribute__((always_inline)) {
        const auto prepared = codes.prepare(words, half);
        unrolled<kHalf>([&](int j) __attribute__((always_inline)) {
            body(half * kHalf + j, codes.column(prepared, half * kHalf + j));
        });
    });
}

/// sums[t][16] += the tile of all units, [128 / kStep][16], times x[.][t] for the `count` <= tokens vectors of a group;
/// the other sums of the group come out as garbage.
template <typename Products, int unit, int tokens>
void pass(int64_t count, const float* tile, const F (*unit_scales)[kParts], const float* x, float* sums) {
    for (int u = 0; u < kBlock / unit; ++u) {
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
                float* at = sums + t * kStripRows + v * kLanes;
                store(at, fma(unit_scales[u][v], sum[t][v], load(at)));
            }
        });
    }
}

/// Fewer chains than kFew * kParts do not hide the latency of the multiply-adds: they would take as long.
template <typename Products, int unit>
void pass_group(int64_t count, const float* tile, const F (*unit_scales)[kParts], const float* x, float* sums) {
    constexpr int kFew = (kStripTokens * 2 + 2) / 3, kMiddle = (kStripTokens * 5 + 5) / 6;
    if (count <= kFew)
        pass<Products, unit, kFew>(count, tile, unit_scales, x, sums);
    else if (count <= kMiddle)
        pass<Products, unit, kMiddle>(count, tile, unit_scales, x, sums);
    else
        pass<Products, unit, kStripTokens>(count, tile, unit_scales, x, sums);
}

template <typename Codes, typename Scales>
struct StripKernel {
    using Products = typename Codes::Products;
    Codes codes;
    Scales scales;

    static constexpr int kTogether = Products::kTogether;
    static constexpr int kUnits = kBlock / Codes::kUnit;
    static constexpr int kLines = Codes::kUnit / Codes::kColumns;  // of a unit
    static constexpr int kCodeBytes = kBlock / Codes::kColumns * kLine;

    [[gnu::always_inline]] F scale(const uint8_t* block, float shared, int u, int v) const {
        return Scales::kInBlock ? scales.of(block + kCodeBytes, u, v) : broadcast(shared);
    }

    void one(const Strip& strip, int64_t block_bytes, int64_t blocks, const float* x, int64_t x_stride,
             float* y) const {
        F total[kParts] = {};
        const uint8_t* p = strip.data;
        for (int64_t b = 0; b < blocks; ++b, p += block_bytes, x += x_stride) {
            for (int64_t i = 0; i < block_bytes; i += kLine) __builtin_prefetch(p + kAhead + i, 0, 3);
            const float shared = strip.shared_scale(b);
            for (int u = 0; u < kUnits; u += kTogether) {
                F sum[kTogether][kParts] = {};
                for (int l = 0; l < kLines; ++l) {
                    unrolled<kTogether>([&](int i) __attribute__((always_inline)) {
                        const uint8_t* line = p + ((u + i) * kLines + l) * kLine;
                        const float* part = x + ((u + i) * Codes::kUnit + l * Codes::kColumns) / Products::kStep;
                        unrolled<kParts>([&](int v) __attribute__((always_inline)) {
                            for_vectors_of(
                                codes,
                                load_line(line + v * kLanes * 4), [&](int j, F w) __attribute__((always_inline)) {
                                    sum[i][v] = Products::add(w, Products::number(part + j), sum[i][v]);
                                });
                        });
                    });
                }
                unrolled<kTogether>([&](int i) __attribute__((always_inline)) {
                    unrolled<kParts>([&](int v) __attribute__((always_inline)) {
                        total[v] = fma(scale(p, shared, u + i, v), sum[i][v], total[v]);
                    });
                });
            }
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
            for (int64_t i = 0; i < block_bytes; i += kLine) __builtin_prefetch(p + kAhead + i, 0, 3);
            for (int l = 0; l < kBlock / Codes::kColumns; ++l) {
                for (int v = 0; v < kParts; ++v) {
                    for_vectors_of(
                        codes,
                        load_line(p + l * kLine + v * kLanes * 4), [&](int j, F w) __attribute__((always_inline)) {
                            store(tile + (l * kVectors<Codes> + j) * kStripRows + v * kLanes, w);
                        });
                }
            }
            F unit_scales[kUnits][kParts];
            const float shared = strip.shared_scale(b);
            for (int u = 0; u < kUnits; ++u)
                for (int v = 0; v < kParts; ++v) unit_scales[u][v] = scale(p, shared, u, v);
            for (int64_t g = first; g < last; ++g) {
                const int64_t t = groups.first(g), count = groups.first(g + 1) - t;
                pass_group<Products, Codes::kUnit>(count, tile, unit_scales, x + t * kBlockVectors, sums[g - first]);
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

/// Calls body(kernel) with the kernel of a packed matrix.
template <typename Body>
[[gnu::always_inline]] inline void with_strip_kernel(const quant::Matrix& w, Body body) {
    using quant::Format;
    switch (w.format) {
        case Format::kE2M1Pair:
            if (w.scale_format == Format::kE8M0) return body(StripKernel<StripE2M1<32>, E8M0Scales>{{}, {kE4M3Unit}});
            return body(StripKernel<StripE2M1<16>, E4M3Scales>{{}, {kE4M3Unit}});
        case Format::kInt4Pair:
            if (w.scale_cols == 32) return body(StripKernel<StripInt4<32>, BF16Scales>{});
            return body(StripKernel<StripInt4<64>, Grouped<BF16Scales, 2>>{});
        case Format::kE4M3:
            return body(StripKernel<StripE4M3, NoScales>{});
        case Format::kQ8_0:
            return body(StripKernel<StripQ8, F16Scales>{});
        case Format::kBF16:
            return body(StripKernel<StripBF16, NoScales>{});
        case Format::kF16:
            return body(StripKernel<StripF16, NoScales>{});
        default:
            return body(StripKernel<StripF32, NoScales>{});
    }
}
