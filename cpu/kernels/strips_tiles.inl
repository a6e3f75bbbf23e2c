// Packed FP8 matrices times vectors rounded to e4m3, on tiles of bf16: C [vectors, 16 rows] += A [vectors, 32 columns]
// * B [32 columns, 16 rows]. A line of B is what strips_pairs.inl decodes, a pair of columns of 16 rows; a line of A is
// the pairs of a vector, so the panel is [K / 32][m][16 pairs]. One vector alone lies as it is.
//
// What an output is: for every block of 128 columns the sum of products as the tiles add them, then total += scale *
// sum, block by block. A multiplication of tiles takes the first numbers of 16 pairs through one chain of
// multiply-adds, the second ones through another, and adds both to the sum. One vector alone does the same with the
// numbers themselves, faster than through tiles: so none of their results differ (subnormal sums aside, which tiles
// make zero).

constexpr int kTileLines = 16, kTileFloats = kTileLines * kStripRows;  // of C and B; a line of either has 64 bytes
constexpr int kStepColumns = 32, kStepPairs = kStepColumns / 2;        // of a multiplication
constexpr int kBlockPairs = kBlock / 2;
constexpr int kVectorsTogether = 256;  // of a panel: their sums and a block of theirs stay in L1 and L2

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t column_bytes[16] = {};
    uint8_t rows[16] = {};

    void set(int tile, int64_t lines, int line_bytes) {
        rows[tile] = static_cast<uint8_t>(lines);
        column_bytes[tile] = static_cast<uint16_t>(line_bytes);
    }
};

// Instructions name their tiles: 0 to 3 are C, 4 is A, 6 and 7 are B. The processor has more than these and renames
// them. What holds it up is a load of a tile while a store to an address that is the same in its last 12 bits waits for
// its numbers. So products are stored when the loads of the next multiplications have been issued.

template <int c>
[[gnu::always_inline]] inline void zero_tile() {
    if constexpr (c == 0) _tile_zero(0);
    if constexpr (c == 1) _tile_zero(1);
    if constexpr (c == 2) _tile_zero(2);
    if constexpr (c == 3) _tile_zero(3);
}
/// Tile c += tile 4 * tile b.
template <int c, int b>
[[gnu::always_inline]] inline void multiply_tiles() {
    if constexpr (c == 0 && b == 6) _tile_dpbf16ps(0, 4, 6);
    if constexpr (c == 1 && b == 6) _tile_dpbf16ps(1, 4, 6);
    if constexpr (c == 2 && b == 6) _tile_dpbf16ps(2, 4, 6);
    if constexpr (c == 3 && b == 6) _tile_dpbf16ps(3, 4, 6);
    if constexpr (c == 1 && b == 7) _tile_dpbf16ps(1, 4, 7);
    if constexpr (c == 3 && b == 7) _tile_dpbf16ps(3, 4, 7);
}
template <int c>
[[gnu::always_inline]] inline void store_tile(float* to) {
    constexpr int64_t kBytes = kLine;
    if constexpr (c == 0) _tile_stored(0, to, kBytes);
    if constexpr (c == 1) _tile_stored(1, to, kBytes);
    if constexpr (c == 2) _tile_stored(2, to, kBytes);
    if constexpr (c == 3) _tile_stored(3, to, kBytes);
}
/// Behind all stores that come before it, of which GCC's own is not told.
#define LOAD_TILE(tile, from)                    \
    do {                                         \
        __asm__ volatile("" ::: "memory");       \
        _tile_loadd(tile, from, int64_t{kLine}); \
    } while (false)

template <int n>
struct Number {
    static constexpr int value = n;
};

/// Groups of up to 16 of `m` vectors, all of as many: the last one may begin with vectors of the one before.
struct TileGroups {
    int64_t m, rows, count;

    explicit TileGroups(int64_t vectors)
        : m(vectors), rows(smaller(kTileLines, vectors)), count((vectors + rows - 1) / rows) {}
    [[gnu::always_inline]] int64_t first(int64_t g) const { return smaller(g * rows, m - rows); }
};

/// Lines [first, last) of a block to `pairs` [64][16].
template <typename Codes>
[[gnu::always_inline]] inline void decode_pairs(const Codes& codes, const uint8_t* block, int first, int last,
                                                float* pairs) {
    for (int l = first; l < last; ++l) {
        fetch_ahead(block + l * kLine);
        for_vectors_of(
            codes, codes.load(block, l, 0), [&](int j, F w) __attribute__((always_inline)) {
                store(pairs + (l * kVectors<Codes> + j) * kStripRows, w);
            });
    }
}

template <typename Scales>
struct TilesE4M3 {
    PairsE4M3 codes;
    StripE4M3 singles;
    Scales scales;

    static constexpr int kLines = kBlock / PairsE4M3::kColumns;
    static constexpr int kSteps = kBlock / kStepColumns;

    [[gnu::always_inline]] F scale(const Strip& strip, const uint8_t* block, int64_t b) const {
        return Scales::kInBlock ? scales.of(block + kLines * kLine, 0, 0) : broadcast(strip.shared_scale(b));
    }

    /// One strip times one vector.
    void one(const Strip& strip, int64_t block_bytes, int64_t blocks, const float* x, float* y) const {
        constexpr int kStepLines = kStepColumns / StripE4M3::kColumns;
        F total = {};
        const uint8_t* p = strip.data;
        for (int64_t b = 0; b < blocks; ++b, p += block_bytes, x += kBlock) {
            for (int64_t i = kLines * kLine; i < block_bytes; i += kLine) fetch_ahead(p + i);
            F chains[kSteps][2] = {};  // of all steps at once, to hide each other's latency
            for (int l = 0; l < kStepLines; ++l) {
                unrolled<kSteps>([&](int s) __attribute__((always_inline)) {
                    const int line = s * kStepLines + l;
                    fetch_ahead(p + line * kLine);
                    const float* columns = x + line * StripE4M3::kColumns;
                    for_vectors_of(
                        singles, singles.load(p, line, 0), [&](int j, F w) __attribute__((always_inline)) {
                            F& chain = chains[s][j / 2 % 2];
                            chain = fma(w, broadcast(columns[j]), chain);
                        });
                });
            }
            F sum = {};
            unrolled<kSteps>([&](int s) __attribute__((always_inline)) { sum += chains[s][0] + chains[s][1]; });
            total = fma(scale(strip, p, b), sum, total);
        }
        store(y, total);
    }

    /// Tiles c and c + 1: the vectors at `a` [4][m][16 pairs], its steps step_floats apart, times two strips' [64][16].
    template <int c>
    [[gnu::always_inline]] static void multiply_block(const float* a, int64_t step_floats, const float* first,
                                                      const float* second) {
        zero_tile<c>();
        zero_tile<c + 1>();
        for (int s = 0; s < kSteps; ++s) {
            LOAD_TILE(4, a + s * step_floats);
            LOAD_TILE(6, first + s * kTileFloats);
            multiply_tiles<c, 6>();
            LOAD_TILE(7, second + s * kTileFloats);
            multiply_tiles<c + 1, 7>();
        }
    }

    /// Two strips times m <= kVectorsTogether vectors of a panel of `panel_vectors`. Without a second one it is the
    /// first again.
    void many(const Strip strips[2], int64_t block_bytes, int64_t blocks, const float* x, int64_t panel_vectors,
              TileGroups groups, float* const y[2], int64_t y_stride) const {
        alignas(64) float pairs[2][2][kBlockPairs * kStripRows], products[2][kTileFloats];
        alignas(64) float sums[2][kVectorsTogether * kStripRows];
        for (int s = 0; s < 2; ++s) {
            __builtin_memset(sums[s], 0, static_cast<size_t>(groups.m * kStripRows) * sizeof(float));
            decode_pairs(codes, strips[s].data, 0, kLines, pairs[0][s]);
        }
        for (int64_t b = 0; b < blocks; ++b, x += panel_vectors * kBlockPairs) {
            const F factors[] = {scale(strips[0], strips[0].data + b * block_bytes, b),
                                 scale(strips[1], strips[1].data + b * block_bytes, b)};
            const auto multiply = [&](auto c, int64_t g) __attribute__((always_inline)) {
                if (g < groups.count)
                    multiply_block<c.value>(x + groups.first(g) * kStepPairs, panel_vectors * kStepPairs,
                                            pairs[b % 2][0], pairs[b % 2][1]);
            };
            const auto add = [&](auto c, int64_t g) __attribute__((always_inline)) {
                if (g >= groups.count) return;
                store_tile<c.value>(products[0]);
                store_tile<c.value + 1>(products[1]);
                const int64_t first = groups.first(g);
                for (int s = 0; s < 2; ++s)
                    for (int64_t t = g * groups.rows; t < first + groups.rows; ++t) {
                        float* sum = sums[s] + t * kStripRows;
                        store(sum, fma(factors[s], load(products[s] + (t - first) * kStripRows), load(sum)));
                    }
            };
            multiply(Number<0>(), 0);
            for (int64_t g = 0; g < groups.count; g += 2) {
                multiply(Number<2>(), g + 1);
                add(Number<0>(), g);
                multiply(Number<0>(), g + 2);
                add(Number<2>(), g + 1);
            }
            // A block ahead: what is written takes a while until tiles can read it.
            if (b + 1 < blocks)
                for (int s = 0; s < 2; ++s)
                    decode_pairs(codes, strips[s].data + (b + 1) * block_bytes, 0, kLines, pairs[(b + 1) % 2][s]);
        }
        for (int s = 0; s < 2; ++s)
            for (int64_t t = 0; t < groups.m; ++t) store(y[s] + t * y_stride, load(sums[s] + t * kStripRows));
    }

    void multiply(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t m, float* y,
                  int64_t y_stride) const {
        const int64_t blocks = w.cols / kBlock, block_bytes = w.strip_bytes / blocks;
        const auto strip = [&](int64_t n) { return Strip(w, first + n, 1.0f); };
        if (m == 1) {
            for (int64_t n = 0; n < count; n += kStripRows) one(strip(n), block_bytes, blocks, x, y + n);
            return;
        }
        for (int64_t begin = 0; begin < m; begin += kVectorsTogether) {
            const TileGroups groups(smaller(kVectorsTogether, m - begin));
            TileConfig config;
            for (int tile = 0; tile < 5; ++tile) config.set(tile, groups.rows, kLine);
            for (int tile = 6; tile < 8; ++tile) config.set(tile, kTileLines, kLine);
            _tile_loadconfig(&config);
            for (int64_t n = 0; n < count; n += 2 * kStripRows) {
                const int64_t second = smaller(n + kStripRows, count - kStripRows);
                const Strip strips[] = {strip(n), strip(second)};
                float* const out[] = {y + begin * y_stride + n, y + begin * y_stride + second};
                many(strips, block_bytes, blocks, x + begin * kStepPairs, m, groups, out, y_stride);
            }
        }
        _tile_release();
    }
};
