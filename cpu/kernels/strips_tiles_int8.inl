// Packed matrices with integer codes times many vectors of integers (strips_int8.inl, strips_fixed.inl), on tiles of
// int8: C [vectors, 16 rows] = A [vectors, a unit of columns] * B [a unit, 16 rows]. A line of B is a word of four
// codes for each of 16 rows, as Digits::prepare() gives them but signed; a line of A is a vector's codes where the
// panel has them. Sums of a unit are exact, and what follows is done as Int8Kernel::add_unit() does it, so an output is
// what one vector alone gives.
//
// A tile is stored for every unit (and plane) and added to sums elsewhere, which takes longer than multiplying it.

/// Tile c += tile 6 * tile 7, of signed bytes.
template <int c>
[[gnu::always_inline]] inline void multiply_tiles_of_bytes() {
#define CASE(C) \
    if constexpr (c == C) _tile_dpbssd(C, 6, 7);
    CASE(0) CASE(1) CASE(2) CASE(3) CASE(4) CASE(5)
#undef CASE
}

template <typename Kernel, typename Input>
struct TilesInt8 {
    using Dot = typename Kernel::Dot;
    using Factors = typename Kernel::Factors;
    const Kernel& kernel;

    static constexpr int kUnits = Kernel::kUnits, kUnit = kBlock / kUnits, kQuads = Kernel::kQuads;
    static constexpr int kPlanes = Input::kPlanes, kRoundUnits = 4;
    static constexpr int kTiles = kPlanes == 1 ? 4 : 2;  // units whose products are in tiles
    static constexpr int kAhead = kPlanes == 1 ? 3 : 2;  // units multiplied before one is added; the next is stored
    static constexpr int kStrips = 4;                    // that share a block of the panel in L1
    static constexpr int kMostVectors = kPlanes == 1 ? 96 : 32;

    /// What is faster than without tiles: matrices, and m vectors, whose last group has few of the one before.
    static constexpr bool kWins = kUnit == 32 || (kPlanes == 3 && !Kernel::kOffsets);
    static bool wins(int64_t m) {
        const int64_t lines = (m + kTileLines - 1) / kTileLines * kTileLines;
        return m >= kTileLines && (kUnit == 32 && kPlanes == 3 ? 4 * m >= 3 * lines : 8 * m >= 7 * lines);
    }

    struct alignas(64) Weights {
        U codes[kUnits][kQuads];
        Factors factors[kUnits];
    };
    /// A strip's block times a group of vectors, from unit `unit` on.
    struct Round {
        int64_t b = 0, strip = 0, group = 0;
        int unit = 0;
    };

    [[gnu::always_inline]] void decode(const uint8_t* block, int64_t block_bytes, int u, Weights& weights) const {
        const int64_t share = block_bytes / kUnits;
        for (int64_t i = 0; i < share; i += kLine) fetch_ahead(block + u * share + i);
        U codes[kQuads];
        kernel.decode(block, u, 0, codes);
        for (int i = 0; i < kQuads; ++i)
            weights.codes[u][i] =
                (U)_mm512_sub_epi8((__m512i)codes[i], _mm512_set1_epi8(static_cast<int8_t>(Dot::kOffset)));
        weights.factors[u] = kernel.factors(block, u, 0);
    }

    /// The group of columns that unit u belongs to, of the vector whose block begins at `block`.
    [[gnu::always_inline]] static const typename Input::Group& group_of(const uint8_t* block, int u) {
        return reinterpret_cast<const typename Input::Group*>(block)[u * kUnit / quant::kInt8Columns];
    }

    /// The tile of plane `plane` of unit u, which is i of its round = vectors from `block` on times the unit. Plane 0
    /// comes first.
    template <int i, int plane>
    [[gnu::always_inline]] static void multiply_unit(const uint8_t* block, int u, const Weights& weights) {
        constexpr int kTile = i % kTiles * kPlanes + plane;
        if constexpr (plane == 0) load_tile<7>(reinterpret_cast<const float*>(weights.codes[u]));
        zero_tile<kTile>();
        const int8_t* codes = Input::codes(group_of(block, u), plane) + u * kUnit % quant::kInt8Columns;
        load_tile<6>(reinterpret_cast<const float*>(codes), Input::kStride);
        multiply_tiles_of_bytes<kTile>();
    }

    /// `strips` <= kStrips strips that follow one another times m <= kMostVectors vectors.
    void many(const uint8_t* data, int64_t strips, int64_t strip_bytes, int64_t blocks, const uint8_t* x,
              int64_t x_stride, TileGroups groups, float* y, int64_t y_stride) const {
        const int64_t block_bytes = strip_bytes / blocks;
        Weights weights[2][kStrips];
        alignas(64) float products[2][kPlanes][kTileFloats], sums[kStrips][kMostVectors / kTileLines][kTileFloats];
        [[maybe_unused]] float sums_of_x[kUnits][kMostVectors];
        for (int64_t s = 0; s < strips; ++s) {
            __builtin_memset(sums[s], 0, static_cast<size_t>(groups.count * kTileFloats) * sizeof(float));
            for (int u = 0; u < kUnits; ++u) decode(data + s * strip_bytes, block_bytes, u, weights[0][s]);
        }
        const auto next_of = [&](Round round) __attribute__((always_inline)) {
            round.unit += kRoundUnits;
            if (round.unit < kUnits) return round;
            round.unit = 0;
            if (++round.group < groups.count) return round;
            round.group = 0;
            if (++round.strip < strips) return round;
            round.strip = 0;
            ++round.b;
            return round;
        };
        const auto vectors_of = [&](const Round& round) __attribute__((always_inline)) {
            return x + round.b * x_stride + groups.first(round.group) * Input::kStride;
        };
        const auto multiply = [&](auto i, auto plane, const Round& round) __attribute__((always_inline)) {
            multiply_unit<i.value, plane.value>(vectors_of(round), round.unit + i.value,
                                                weights[round.b % 2][round.strip]);
        };
        const auto put = [&](auto i, auto plane) __attribute__((always_inline)) {
            store_tile<i.value % kTiles * kPlanes + plane.value>(products[i.value % 2][plane.value]);
        };
        const auto for_planes = [](auto body) __attribute__((always_inline)) { unrolled_numbers<kPlanes>(body); };
        Round round;
        unrolled_numbers<kAhead>([&](auto i) __attribute__((always_inline)) {
            for_planes([&](auto plane) __attribute__((always_inline)) { multiply(i, plane, round); });
        });
        for_planes([&](auto plane) __attribute__((always_inline)) { put(Number<0>(), plane); });
        while (round.b < blocks) {
            const Round next = next_of(round);
            const uint8_t* vectors = vectors_of(round);
            if constexpr (Kernel::kOffsets)
                if (round.strip == 0 && round.group == 0 && round.unit == 0)
                    for (int64_t t = 0; t < groups.m; ++t)
                        for (int u = 0; u < kUnits; ++u)
                            sums_of_x[u][t] =
                                Input::template sum<kUnit>(group_of(x + round.b * x_stride + t * Input::kStride, u),
                                                           u * kUnit % quant::kInt8Columns);
            const uint8_t* block_ahead = data + round.strip * strip_bytes + (round.b + 1) * block_bytes;
            const bool decodes = round.group == 0 && round.b + 1 < blocks;
            float* of_group = sums[round.strip][round.group];
            F totals[kTileLines];
            unrolled<kTileLines>([&](int t)
                                     __attribute__((always_inline)) { totals[t] = load(of_group + t * kStripRows); });
            unrolled_numbers<kRoundUnits>([&](auto i) __attribute__((always_inline)) {
                const int u = round.unit + i.value;
                const auto multiply_ahead = [&](auto plane) __attribute__((always_inline)) {
                    if constexpr (i.value + kAhead < kRoundUnits)
                        multiply(Number<i.value + kAhead>(), plane, round);
                    else if (next.b < blocks)
                        multiply(Number<i.value + kAhead - kRoundUnits>(), plane, next);
                };
                const float(&product)[kPlanes][kTileFloats] = products[i.value % 2];
                if (decodes) decode(block_ahead, block_bytes, u, weights[(round.b + 1) % 2][round.strip]);
                const Factors& factors = weights[round.b % 2][round.strip].factors[u];
                unrolled<kTileLines>([&](int t) __attribute__((always_inline)) {
                    for_planes([&](auto plane) __attribute__((always_inline)) {
                        if (t == kTileLines * (4 * plane.value + 1) / (4 * kPlanes)) multiply_ahead(plane);
                        if (t == kTileLines * (4 * plane.value + 2) / (4 * kPlanes)) put(Number<i.value + 1>(), plane);
                    });
                    typename Dot::Sums unit_sums[kPlanes];
                    for (int plane = 0; plane < kPlanes; ++plane)
                        unit_sums[plane] = (typename Dot::Sums)load(product[plane] + t * kStripRows);
                    const F scale = broadcast(group_of(vectors + t * Input::kStride, u).scale);
                    totals[t] = fma(Input::template total<Dot>(unit_sums), factors.scale * scale, totals[t]);
                    if constexpr (Kernel::kOffsets)
                        totals[t] =
                            fma(factors.offset, broadcast(sums_of_x[u][groups.first(round.group) + t]), totals[t]);
                });
            });
            unrolled<kTileLines>([&](int t)
                                     __attribute__((always_inline)) { store(of_group + t * kStripRows, totals[t]); });
            round = next;
        }
        for (int64_t s = 0; s < strips; ++s)
            for (int64_t g = 0; g < groups.count; ++g)
                for (int t = 0; t < kTileLines; ++t)
                    store(y + (groups.first(g) + t) * y_stride + s * kStripRows, load(sums[s][g] + t * kStripRows));
    }

    void multiply(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t x_stride, int64_t m,
                  float* y, int64_t y_stride) const {
        TileConfig config;
        for (int tile = 0; tile < 6; ++tile) config.set(tile, kTileLines, kLine);
        config.set(6, kTileLines, kUnit);
        config.set(7, kQuads, kLine);
        _tile_loadconfig(&config);
        const uint8_t* data = bytes(w.data) + first / kStripRows * w.strip_bytes;
        for (int64_t n = 0; n < count; n += kStrips * kStripRows)
            many(data + n / kStripRows * w.strip_bytes, smaller(kStrips, (count - n) / kStripRows), w.strip_bytes,
                 w.cols / kBlock, reinterpret_cast<const uint8_t*>(x), x_stride * static_cast<int64_t>(sizeof(float)),
                 TileGroups(m), y + n, y_stride);
        _tile_release();
    }
};

template <typename Input>
[[gnu::always_inline]] inline void multiply_integers(const quant::Matrix& w, int64_t first, int64_t count,
                                                     const float* x, int64_t x_stride, int64_t m, float* y,
                                                     int64_t y_stride) {
    with_int8_kernel(
        w, [&](const auto& kernel) __attribute__((always_inline)) {
            using Kernel = std::remove_cvref_t<decltype(kernel)>;
            using Tiles = TilesInt8<Kernel, Input>;
            int64_t t = 0;
            const auto panel = [&] { return x + t * Input::kStride / static_cast<int>(sizeof(float)); };
            if constexpr (Tiles::kWins) {
                // Vectors that pass all strips together stay in L2.
                while (t < m) {
                    int64_t vectors = smaller(Tiles::kMostVectors, m - t);
                    if (!Tiles::wins(vectors) && vectors > 2 * kTileLines) vectors -= vectors % kTileLines;
                    if (!Tiles::wins(vectors)) break;
                    Tiles{kernel}.multiply(w, first, count, panel(), x_stride, vectors, y + t * y_stride, y_stride);
                    t += vectors;
                }
            }
            if (t < m)
                kernel.template multiply<Input>(w, first, count, panel(), x_stride, m - t, y + t * y_stride, y_stride);
        });
    apply_multiplier(w, m, count, y, y_stride);
}

void matmul_int8_tiles(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t x_stride,
                       int64_t m, float* y, int64_t y_stride) noexcept {
    multiply_integers<Int8Input>(w, first, count, x, x_stride, m, y, y_stride);
}

void matmul_fixed_tiles(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t x_stride,
                        int64_t m, float* y, int64_t y_stride) noexcept {
    multiply_integers<FixedInput>(w, first, count, x, x_stride, m, y, y_stride);
}
