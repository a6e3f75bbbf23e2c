// Products on tiles of bf16: C [vectors, 16 rows] += A [vectors, 32 columns]
// * B [32 columns, 16 rows]. A line of B is what strips_pairs.inl decodes, a pair of columns of 16 rows; a line of A is
// the pairs of a vector.
//
// Packed FP8 matrices with other scales than powers of two (those: strips_summed.inl) times vectors rounded to e4m3:
// the panel is [K / 32][m][16 pairs]. One vector alone lies as it is. What an output is: for every block of 128 columns
// the sum of products as the tiles add them, then total += scale * sum, block by block. A multiplication of tiles takes
// the first numbers of 16 pairs through one chain of multiply-adds, the second ones through another, and adds both to
// the sum. One vector alone does the same with the numbers themselves, faster than through tiles: so none of their
// results differ (subnormal sums aside, which tiles make zero).

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

// The compilers want a literal for the number of a tile.
#define FOR_ALL_TILES(CASE) CASE(0) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5) CASE(6) CASE(7)
#define FOR_ALL_SUMS(CASE, A, B) CASE(0, A, B) CASE(1, A, B) CASE(2, A, B) CASE(3, A, B)

template <int tile>
[[gnu::always_inline]] inline void zero_tile() {
#define CASE(N) \
    if constexpr (tile == N) _tile_zero(N);
    FOR_ALL_TILES(CASE)
#undef CASE
}
/// Behind all stores that come before it, of which GCC's own is not told.
template <int tile>
[[gnu::always_inline]] inline void load_tile(const float* from, int64_t stride = kLine) {
    __asm__ volatile("" ::: "memory");
#define CASE(N) \
    if constexpr (tile == N) _tile_loadd(N, from, stride);
    FOR_ALL_TILES(CASE)
#undef CASE
}
template <int tile>
[[gnu::always_inline]] inline void store_tile(float* to) {
    constexpr int64_t kBytes = kLine;
#define CASE(N) \
    if constexpr (tile == N) _tile_stored(N, to, kBytes);
    FOR_ALL_TILES(CASE)
#undef CASE
}
/// Tile c (of 0 to 3) += tile a (4 or 5) * tile b (6 or 7).
template <int c, int a, int b>
[[gnu::always_inline]] inline void multiply_tiles() {
    static_assert(c < 4 && (a == 4 || a == 5) && (b == 6 || b == 7));
#define CASE(C, A, B) \
    if constexpr (c == C && a == A && b == B) _tile_dpbf16ps(C, A, B);
    FOR_ALL_SUMS(CASE, 4, 6)
    FOR_ALL_SUMS(CASE, 4, 7)
    FOR_ALL_SUMS(CASE, 5, 6)
    FOR_ALL_SUMS(CASE, 5, 7)
#undef CASE
}

/// unrolled() with Number<0>() to Number<n - 1>().
template <int n, typename Body>
[[gnu::always_inline]] inline void unrolled_numbers(const Body& body) {
    if constexpr (n > 0) {
        unrolled_numbers<n - 1>(body);
        body(Number<n - 1>());
    }
}

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

struct TilesE4M3 {
    PairsE4M3 codes;
    StripE4M3 singles;

    static constexpr int kLines = kBlock / PairsE4M3::kColumns;
    static constexpr int kSteps = kBlock / kStepColumns;

    /// One strip times one vector.
    void one(const Strip& strip, int64_t block_bytes, int64_t blocks, const float* x, float* y) const {
        constexpr int kStepLines = kStepColumns / StripE4M3::kColumns;
        F total = {};
        const uint8_t* p = strip.data;
        for (int64_t b = 0; b < blocks; ++b, p += block_bytes, x += kBlock) {
            F chains[kSteps][2] = {};  // of all steps at once, to hide each other's latency
            for (int l = 0; l < kStepLines; ++l) {
                unrolled<kSteps>([&](int s) __attribute__((always_inline)) {
                    const int line = s * kStepLines + l;
                    fetch_ahead(p + (l * kSteps + s) * kLine);
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
            total = fma(broadcast(strip.shared_scale(b)), sum, total);
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
            load_tile<4>(a + s * step_floats);
            load_tile<6>(first + s * kTileFloats);
            multiply_tiles<c, 4, 6>();
            load_tile<7>(second + s * kTileFloats);
            multiply_tiles<c + 1, 4, 7>();
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
            const F factors[] = {broadcast(strips[0].shared_scale(b)), broadcast(strips[1].shared_scale(b))};
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
