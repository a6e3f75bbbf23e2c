// Packed FP8 and FP4 matrices times vectors rounded to e4m3, on tiles of bf16: C [vectors, 16 rows] += A [vectors, 32
// columns] * B [32 columns, 16 rows]. A line of B is what strips_pairs.inl decodes: a pair of columns of 16 rows; a
// line of A is the pairs of a vector, so panels of this tier are [K / 32][m][16 pairs].
//
// What an output is: for every unit of columns that shares scales (32 of MXFP4, 16 of NVFP4, a block of 128 of FP8) the
// sum of products as the tiles add them, then total += scale * unit, in order. A multiplication of tiles takes the
// first numbers of 16 pairs through one chain of multiply-adds, the second ones through another, and adds both to the
// sum. One vector alone does the same with the numbers themselves, faster than through tiles: so none of their results
// differ (subnormal sums aside, which tiles make zero).

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t column_bytes[16] = {};
    uint8_t rows[16] = {};
};

constexpr int kTileLines = 16, kTileFloats = kTileLines * kStripRows;  // of C and B; a line of either has 64 bytes

/// FP4 codes by a table of floats.
struct SinglesE2M1 : OneRun {
    static constexpr int kColumns = 8;
    Table table = make_table(kE2M1);
    [[gnu::always_inline]] U prepare(U words, int half) const { return half ? words >> 4 : words; }
    [[gnu::always_inline]] F column(U words, int j) const { return look_up_words(table, words >> (8 * (j % 4))); }
};

/// Singles: the same codes as Codes, column by column.
template <typename Codes, typename Singles, typename Scales, int unit>
struct TileKernel {
    Codes codes;
    Singles singles;
    Scales scales;

    static constexpr int kUnits = kBlock / unit;
    static constexpr int kPairs = unit < 32 ? unit / 2 : 16;  // of columns, that a multiplication takes
    static constexpr int kSteps = unit / (2 * kPairs);        // multiplications of a unit
    static constexpr int kBlockPairs = kBlock / 2;
    static constexpr int kLines = kBlock / Codes::kColumns;
    static constexpr int kCodeBytes = kLines * kLine + Codes::kMoreBytes;
    static constexpr int kVectorsTogether = 256;  // of a panel: their sums and a block of theirs stay in L1 and L2

    /// The lines of unit u of a block to `tile` [64][16].
    [[gnu::always_inline]] void decode(const uint8_t* block, int u, float* tile) const {
        for (int l = u * kLines / kUnits; l < (u + 1) * kLines / kUnits; ++l) {
            fetch_ahead(block + l * kLine);
            for_vectors_of(
                codes, codes.load(block, l, 0), [&](int j, F w) __attribute__((always_inline)) {
                    store(tile + (l * kVectors<Codes> + j) * kStripRows, w);
                });
        }
    }

    /// product = unit u of a block: `a` [4][vectors][16 pairs], vector_floats of a step of 32 columns apart, times `b`.
    [[gnu::always_inline]] static void multiply_unit(const float* a, int64_t vector_floats, const float* b, int u,
                                                     float* product) {
        constexpr int64_t kBytes = kLine;
        const auto at = [&](int s) { return a + (u * unit + 32 * s) / 32 * vector_floats + u * unit % 32 / 2; };
        b += u * unit / 2 * kStripRows;
        if (u % 2 == 0) {  // in turn on two sets of tiles
            _tile_zero(0);
            for (int s = 0; s < kSteps; ++s) {
                _tile_loadd(1, at(s), kBytes);
                _tile_loadd(2, b + s * kPairs * kStripRows, kBytes);
                _tile_dpbf16ps(0, 1, 2);
            }
            _tile_stored(0, product, kBytes);
        } else {
            _tile_zero(3);
            for (int s = 0; s < kSteps; ++s) {
                _tile_loadd(4, at(s), kBytes);
                _tile_loadd(5, b + s * kPairs * kStripRows, kBytes);
                _tile_dpbf16ps(3, 4, 5);
            }
            _tile_stored(3, product, kBytes);
        }
    }

    /// One strip times one vector.
    void one(const Strip& strip, int64_t block_bytes, int64_t blocks, const float* x, float* y) const {
        constexpr int kColumns = 2 * kPairs, kStepLines = kColumns / Singles::kColumns;
        constexpr int kTogether = 4;  // multiplications whose chains hide each other's latency
        F total = {};
        const uint8_t* p = strip.data;
        for (int64_t b = 0; b < blocks; ++b, p += block_bytes) {
            for (int64_t i = kLines * kLine; i < block_bytes; i += kLine) fetch_ahead(p + i);
            F sum = {};  // of a unit of several multiplications
            for (int first = 0; first < kBlock / kColumns; first += kTogether) {
                F chains[kTogether][2] = {};
                for (int l = 0; l < kStepLines; ++l) {
                    unrolled<kTogether>([&](int i) __attribute__((always_inline)) {
                        const int line = (first + i) * kStepLines + l;
                        fetch_ahead(p + line * kLine);
                        const float* columns = x + line * Singles::kColumns;
                        for_vectors_of(
                            singles, singles.load(p, line, 0), [&](int j, F w) __attribute__((always_inline)) {
                                F& chain = chains[i][j / 2 % 2];
                                chain = fma(w, broadcast(columns[j]), chain);
                            });
                    });
                }
                unrolled<kTogether>([&](int i) __attribute__((always_inline)) {
                    const int u = (first + i) / kSteps;
                    sum += chains[i][0] + chains[i][1];
                    if ((first + i + 1) % kSteps != 0) return;
                    total = fma(Scales::kInBlock ? scales.of(p + kCodeBytes, u, 0) : broadcast(strip.shared_scale(b)),
                                sum, total);
                    sum = F{};
                });
            }
            x += kBlock;
        }
        store(y, total);
    }

    /// One strip times m <= kVectorsTogether vectors of a panel of `panel_vectors`; tiles have `rows` vectors.
    void multiply_strip(const Strip& strip, int64_t block_bytes, int64_t blocks, const float* x, int64_t panel_vectors,
                        int64_t m, int64_t rows, float* y, int64_t y_stride) const {
        alignas(64) float tiles[2][kBlockPairs * kStripRows], products[2][kTileFloats];
        alignas(64) float sums[kVectorsTogether * kStripRows];
        __builtin_memset(sums, 0, static_cast<size_t>(m * kStripRows) * sizeof(float));
        const uint8_t* p = strip.data;
        for (int u = 0; u < kUnits; ++u) decode(p, u, tiles[0]);
        for (int64_t b = 0; b < blocks; ++b, p += block_bytes, x += panel_vectors * kBlockPairs) {
            for (int64_t i = kLines * kLine; i < block_bytes; i += kLine) fetch_ahead(p + i);
            F factors[kUnits];
            for (int u = 0; u < kUnits; ++u)
                factors[u] = Scales::kInBlock ? scales.of(p + kCodeBytes, u, 0) : broadcast(strip.shared_scale(b));
            unrolled<kUnits>([&](int u) __attribute__((always_inline)) {
                for (int64_t done = 0; done < m; done += rows) {
                    const int64_t first =
                        smaller(done, m - rows);  // the last tile may begin with vectors that are done
                    multiply_unit(x + first * 16, panel_vectors * 16, tiles[b % 2], u, products[u % 2]);
                    for (int64_t t = done; t < first + rows; ++t) {
                        float* sum = sums + t * kStripRows;
                        store(sum, fma(factors[u], load(products[u % 2] + (t - first) * kStripRows), load(sum)));
                    }
                }
                // A block ahead: what is written takes a while until tiles can read it. Behind the unit's own reads,
                // which would wait for writes 4 KB away that come before them.
                if (b + 1 < blocks) decode(p + block_bytes, u, tiles[(b + 1) % 2]);
            });
        }
        for (int64_t t = 0; t < m; ++t) store(y + t * y_stride, load(sums + t * kStripRows));
    }

    void multiply(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t m, float* y,
                  int64_t y_stride) const {
        const int64_t blocks = w.cols / kBlock, block_bytes = w.strip_bytes / blocks;
        if (m == 1) {
            for (int64_t n = 0; n < count; n += kStripRows)
                one(Strip(w, first + n, Codes::kNumberUnit), block_bytes, blocks, x, y + n);
            return;
        }
        for (int64_t begin = 0; begin < m; begin += kVectorsTogether) {
            const int64_t vectors = smaller(kVectorsTogether, m - begin), rows = smaller(kTileLines, vectors);
            TileConfig config;
            for (const int c : {0, 3}) {
                config.column_bytes[c] = config.column_bytes[c + 2] = kLine;
                config.column_bytes[c + 1] = kPairs * 4;
                config.rows[c] = config.rows[c + 1] = static_cast<uint8_t>(rows);
                config.rows[c + 2] = kPairs;
            }
            _tile_loadconfig(&config);
            for (int64_t n = 0; n < count; n += kStripRows)
                multiply_strip(Strip(w, first + n, Codes::kNumberUnit), block_bytes, blocks, x + begin * 16, m, vectors,
                               rows, y + begin * y_stride + n, y_stride);
        }
        _tile_release();
    }
};

void matmul_tiles(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t, int64_t m, float* y,
                  int64_t y_stride) noexcept {
    using quant::Format;
    const auto multiply = [&](const auto& kernel) __attribute__((always_inline)) {
        kernel.multiply(w, first, count, x, m, y, y_stride);
    };
    if (w.format == Format::kE4M3 && w.scale_in_strip)
        multiply(TileKernel<PairsE4M3, StripE4M3, E8M0Scales, kBlock>{{}, {}, {1.0f}});
    else if (w.format == Format::kE4M3)
        multiply(TileKernel<PairsE4M3, StripE4M3, NoScales, kBlock>{});
    else if (w.scale_format == Format::kE8M0)
        multiply(TileKernel<PairsE2M1<32>, SinglesE2M1, E8M0Scales, 32>{{}, {}, {1.0f}});
    else
        multiply(TileKernel<PairsE2M1<16>, SinglesE2M1, E4M3Scales, 16>{{}, {}, {1.0f}});
    apply_multiplier(w, m, count, y, y_stride);
}

/// As peak(), but bf16 on tiles: four sums that all numbers of a tile go to.
int64_t tile_peak(Unit kind, int64_t rounds, float* sink) noexcept {
    if (kind != Unit::kBF16) return peak(kind, rounds, sink);
    TileConfig config;
    for (int i = 0; i < 6; ++i) config.column_bytes[i] = kLine, config.rows[i] = kTileLines;
    alignas(64) float numbers[kTileFloats] = {};
    _tile_loadconfig(&config);
    _tile_loadd(4, numbers, kLine);
    _tile_loadd(5, numbers, kLine);
    for (int64_t round = 0; round < rounds; ++round) {
        _tile_dpbf16ps(0, 4, 5);
        _tile_dpbf16ps(1, 4, 5);
        _tile_dpbf16ps(2, 4, 5);
        _tile_dpbf16ps(3, 4, 5);
    }
    _tile_stored(0, numbers, kLine);
    _tile_release();
    *sink = numbers[0];
    return rounds * 4 * 2 * kTileLines * kTileLines * 32;
}
