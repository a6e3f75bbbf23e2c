// Packed MXFP4 and FP8 with scales of e8m0 times vectors, on tiles of bf16 (strips_tiles.inl) whose sums stay in their
// tiles: the weights' numbers have their scales in them, powers of two, and are still exact in bf16. Storing a tile and
// adding it to sums elsewhere takes longer than the multiplications.
//
// What an output is: for every 32 columns and every part of the vectors in turn, total += the sum of products as the
// tiles add them. The panel: of every group of vectors (SumGroups) [K / 32][parts][its vectors][16 pairs].

/// The strips of a pass. Behind the last one it is that again.
struct PassStrips {
    const quant::Matrix& w;
    int64_t row, count;  // the first one's first row; how many
    int64_t blocks = w.cols / kBlock, block_bytes = w.strip_bytes / blocks;

    [[gnu::always_inline]] const uint8_t* block(int64_t strip, int64_t b) const {
        return bytes(w.data) + (row / kStripRows + smaller(strip, count - 1)) * w.strip_bytes + b * block_bytes;
    }
    /// The e8m0 code beside the matrix of a block.
    [[gnu::always_inline]] uint8_t shared_scale(int64_t strip, int64_t b) const {
        const int64_t first = row + smaller(strip, count - 1) * kStripRows;
        return bytes(w.scales)[first / w.scale_rows * w.scale_stride + b * kBlock / w.scale_cols];
    }
    /// How far behind block b of `strips` strips to fetch.
    [[gnu::always_inline]] int64_t ahead(int64_t b, int64_t strips) const {
        const int64_t on = (kFetchAhead + block_bytes / 2) / block_bytes;
        return (b + on < blocks ? on : on + (strips - 1) * blocks) * block_bytes;
    }
};

/// Scales of e8m0, within what bf16 has room for besides the numbers: codes from `least` to `most`.
template <int32_t least, int32_t most>
struct ScaleRange {
    static constexpr int32_t kMost = most;

    [[gnu::always_inline]] static F scales(I codes) {
        const I lowest = I{} + least, highest = I{} + most;
        const I below = codes < lowest;
        const I above = codes > highest;
        return as_float(((codes & ~below & ~above) | (lowest & below) | (highest & above)) << 23);
    }
    /// Of unit u of a block.
    [[gnu::always_inline]] static F of(const uint8_t* p, int u, int) { return scales(load_u8(p + u * kStripRows)); }
    /// What the exponents of 16 rows are short of those of `most`, in both halves of the words.
    [[gnu::always_inline]] static U short_of_most(U codes_in_halves) {
        const F wanted = subtract_halves(both_halves(most << 7), codes_in_halves >> 1);
        return (U)wanted - (U)subtract_halves(wanted, (U)both_halves((most - least) << 7));
    }
};
using E2M1ScaleRange = ScaleRange<2, 252>;
using E4M3ScaleRange = ScaleRange<10, 246>;

/// MXFP4: 2^125 times the number by its code, less what the scale is short of 2^125. A zero stays one.
struct SummedE2M1 {
    HalfTable table = make_table();

    static constexpr int kLineColumns = 8, kLines = kStepColumns / kLineColumns;  // of a step
    static constexpr bool kOneAlone = false;  // a vector alone is multiplied in another way

    static HalfTable make_table() {
        uint16_t numbers[16];
        for (int i = 0; i < 16; ++i)
            numbers[i] = static_cast<uint16_t>(i % 8 == 0 ? 0 : kE2M1AsBF16[i] + (E2M1ScaleRange::kMost - 127) * 0x80);
        return make_half_table(numbers);
    }

    /// Lines [first, last) of a step of block b of a strip to `pairs` [16][16].
    [[gnu::always_inline]] void decode(const PassStrips& w, int64_t strip, int64_t b, int64_t step, int first, int last,
                                       int64_t ahead, float* pairs) const {
        const uint8_t* block = w.block(strip, b);
        const uint8_t* scales = block + kBlock / kLineColumns * kLine + step * kStripRows;
        if (step == 0 && first == 0) __builtin_prefetch(scales + ahead, 0, 3);
        const U less = E2M1ScaleRange::short_of_most(bytes_in_halves(scales));
        unrolled<kLines>([&](int l) __attribute__((always_inline)) {
            if (l < first || l >= last) return;
            const uint8_t* line = block + (step * kLines + l) * kLine;
            __builtin_prefetch(line + ahead, 0, 3);
            const U words = load_line(line), next = load_line(line + 1);  // a byte on: behind codes there are scales
            const U columns[] = {words, next, high_nibbles(words), high_nibbles(next)};
            unrolled<4>([&](int j) __attribute__((always_inline)) {
                store(pairs + (l * 4 + j) * kStripRows, subtract_halves(look_up_halves(table, columns[j]), less));
            });
        });
    }
};

/// A number as the sum of three of bf16, eight bits of it each; with a NaN among them if it is not finite.
struct ThreeParts {
    F part[3];

    [[gnu::always_inline]] explicit ThreeParts(F x) {
        for (F& one : part) {
            one = (F)((U)x & 0xffff0000);
            x -= one;
        }
    }
};

/// FP8 with scales of e8m0: 2^119 times the magnitude by its code, less what the scale is short of 2^119.
template <bool scale_in_strip>
struct SummedE4M3 {
    E4M3Table table = make_e4m3_table(0x1p119f);
    StripE4M3 singles;

    static constexpr int kLineColumns = 4, kLines = kStepColumns / kLineColumns;
    static constexpr bool kOneAlone = true;

    [[gnu::always_inline]] static const uint8_t* scales_of(const uint8_t* block) {
        return block + kBlock / kLineColumns * kLine;
    }

    [[gnu::always_inline]] void decode(const PassStrips& w, int64_t strip, int64_t b, int64_t step, int first, int last,
                                       int64_t ahead, float* pairs) const {
        const uint8_t* block = w.block(strip, b);
        U less;
        if constexpr (scale_in_strip) {
            if (step == 0 && first == 0) __builtin_prefetch(scales_of(block) + ahead, 0, 3);
            less = E4M3ScaleRange::short_of_most(bytes_in_halves(scales_of(block)));
        } else {
            less = E4M3ScaleRange::short_of_most((U)both_halves(w.shared_scale(strip, b) << 8));
        }
        unrolled<kLines>([&](int l) __attribute__((always_inline)) {
            if (l < first || l >= last) return;
            const uint8_t* line = block + (step * kLines + l) * kLine;
            __builtin_prefetch(line + ahead, 0, 3);
            const U codes = load_line(line), signs = (U)both_halves(0x8000);
            const SplitBF16 split = look_up_magnitudes(table, codes);
            store(pairs + 2 * l * kStripRows, (F)((U)subtract_halves(even_bytes(split), less) | (codes << 8 & signs)));
            store(pairs + (2 * l + 1) * kStripRows, (F)((U)subtract_halves(odd_bytes(split), less) | (codes & signs)));
        });
    }

    [[gnu::always_inline]] F scale(const PassStrips& w, int64_t b) const {
        if constexpr (scale_in_strip) return E4M3ScaleRange::of(scales_of(w.block(0, b)), 0, 0);
        return E4M3ScaleRange::scales(I{} + int32_t{w.shared_scale(0, b)});
    }

    /// One strip times one vector as the tiles do it: the first numbers of 16 pairs go through one chain of
    /// multiply-adds, the second ones through another, and both are added to the sum.
    template <int parts>
    void one(const PassStrips& w, const float* x, float* y) const {
        constexpr int kSteps = kBlock / kStepColumns;
        constexpr int kTogether = parts == 1 ? kSteps : 2;  // steps whose chains hide each other's latency
        F total = {};
        for (int64_t b = 0; b < w.blocks; ++b, x += kBlock) {
            float split[parts][kBlock];
            for (int k = 0; k < kBlock && parts == 3; k += kLanes) {
                const ThreeParts three(load(x + k));
                for (int part = 0; part < parts; ++part) store(split[part] + k, three.part[part]);
            }
            const auto numbers = [&](int part) __attribute__((always_inline)) { return parts == 3 ? split[part] : x; };
            const uint8_t* block = w.block(0, b);
            const F factor = scale(w, b);
            for (int first = 0; first < kSteps; first += kTogether) {
                F chains[kTogether][parts][2] = {};
                for (int l = 0; l < kLines; ++l) {
                    unrolled<kTogether>([&](int s) __attribute__((always_inline)) {
                        const int line = (first + s) * kLines + l;
                        fetch_ahead(block + (first * kLines + l * kTogether + s) * kLine);
                        for_vectors_of(
                            singles, singles.load(block, line, 0), [&](int j, F number) __attribute__((always_inline)) {
                                unrolled<parts>([&](int part) __attribute__((always_inline)) {
                                    F& chain = chains[s][part][j / 2 % 2];
                                    chain = fma(number, broadcast(numbers(part)[line * kLineColumns + j]), chain);
                                });
                            });
                    });
                }
                unrolled<kTogether>([&](int s) __attribute__((always_inline)) {
                    unrolled<parts>([&](int part) __attribute__((always_inline)) {
                        total = fma(factor, chains[s][part][0] + chains[s][part][1], total);
                    });
                });
            }
            for (int64_t i = kBlock / kLineColumns * kLine; i < w.block_bytes; i += kLine) fetch_ahead(block + i);
        }
        store(y, total);
    }
};

/// One group of up to 16 of `m` vectors, or an even number of them.
struct SumGroups {
    int64_t m, count;

    explicit SumGroups(int64_t vectors)
        : m(vectors), count(vectors <= kTileLines ? 1 : (vectors + 2 * kTileLines - 1) / (2 * kTileLines) * 2) {}
    [[gnu::always_inline]] int64_t first(int64_t g) const { return m * g / count; }
    [[gnu::always_inline]] int64_t size(int64_t g) const { return first(g + 1) - first(g); }
    /// The tiles have as many lines: one more than some groups, read from what is behind them, and of no use.
    int64_t most() const { return (m + count - 1) / count; }

    /// Where the panel of group g begins, of `steps` steps.
    [[gnu::always_inline]] int64_t panel_at(int64_t g, int parts, int64_t steps) const {
        return first(g) * steps * parts * kStepPairs;
    }
    /// Where the pairs of vector i are: of every step and of its parts in turn, `stride` numbers apart.
    struct Pairs {
        int64_t first, stride;
    };
    Pairs pairs_of(int64_t i, int parts, int64_t steps) const {
        const int64_t g = ((i + 1) * count - 1) / m;
        return {panel_at(g, parts, steps) + (i - first(g)) * kStepPairs, size(g) * kStepPairs};
    }
};

/// `parts`: what a vector is the sum of.
template <typename Weights, int parts>
struct SummedTiles {
    Weights weights;

    static constexpr int kSteps = kBlock / kStepColumns;
    static constexpr int kQuarters = 4;  // of what is decoded during a step

    /// One step of four strips times one group of vectors, or of two times two groups: tiles 0 to 3 are their sums.
    /// a: of either group [parts][vectors][16 pairs]; b: of each strip [16][16]. Calls between(n) for the quarters of
    /// what else is to be done, where the tiles leave time for it.
    template <int strips, typename Between>
    [[gnu::always_inline]] static void multiply_step(const float* const a[2], const int64_t vectors[2], const float* b,
                                                     const Between& between) {
        unrolled<2 * parts>([&](int i) __attribute__((always_inline)) {
            const int part = strips == 2 ? i / 2 : i % parts;
            const bool second = strips == 2 ? i % 2 : i / parts;  // group, or pair of strips
            if (strips == 2 ? i == 0 : part == 0) {
                const float* pair = b + (strips == 4 && second ? 2 * kTileFloats : 0);
                load_tile<6>(pair);
                load_tile<7>(pair + kTileFloats);
            }
            const int group = strips == 2 && second;
            const float* rows = a[group] + part * vectors[group] * kStepPairs;
            if (second) {
                load_tile<5>(rows);
                multiply_tiles<2, 5, 6>();
                multiply_tiles<3, 5, 7>();
            } else {
                load_tile<4>(rows);
                multiply_tiles<0, 4, 6>();
                multiply_tiles<1, 4, 7>();
            }
            for (int n = kQuarters * i / (2 * parts); n < kQuarters * (i + 1) / (2 * parts); ++n) between(n);
        });
    }

    /// Quarter n of what the strips have to decode of a step: to [strips][16][16].
    template <int strips>
    [[gnu::always_inline]] void decode_quarter(const PassStrips& w, int64_t step, int n, float* to) const {
        constexpr int kOfStrip = kQuarters / strips;
        const int s = n / kOfStrip, part = n % kOfStrip;
        const int64_t b = step / kSteps;
        weights.decode(w, s, b, step % kSteps, part * Weights::kLines / kOfStrip,
                       (part + 1) * Weights::kLines / kOfStrip, w.ahead(b, strips), to + s * kTileFloats);
    }

    template <typename Body>
    [[gnu::always_inline]] static void for_sums(Body body) {
        body(Number<0>());
        body(Number<1>());
        body(Number<2>());
        body(Number<3>());
    }

    /// Four strips times group g, or two times groups g and g + 1.
    template <int strips>
    void pass(const PassStrips& w, const float* x, const SumGroups& groups, int64_t g, float* y,
              int64_t y_stride) const {
        constexpr int kGroups = 4 / strips, kSlots = 8 / strips;  // steps that are decoded before tiles read them
        alignas(64) float pairs[kSlots][strips * kTileFloats], sums[4][kTileFloats];
        const int64_t steps = w.blocks * kSteps;
        const auto decode = [&](int64_t i, int n) __attribute__((always_inline)) {
            decode_quarter<strips>(w, smaller(i, steps - 1), n, pairs[i % kSlots]);
        };
        for (int64_t i = 0; i < kSlots - 1; ++i)
            for (int n = 0; n < kQuarters; ++n) decode(i, n);
        const int64_t vectors[] = {groups.size(g), groups.size(g + kGroups - 1)};
        const float* a[] = {x + groups.panel_at(g, parts, steps), x + groups.panel_at(g + kGroups - 1, parts, steps)};
        for_sums([](auto c) __attribute__((always_inline)) { zero_tile<c.value>(); });
        for (int64_t i = 0; i < steps; ++i) {
            multiply_step<strips>(
                a, vectors,
                pairs[i % kSlots], [&](int n) __attribute__((always_inline)) { decode(i + kSlots - 1, n); });
            for (int j = 0; j < 2; ++j) a[j] += parts * vectors[j] * kStepPairs;
        }
        for_sums([&](auto c) __attribute__((always_inline)) { store_tile<c.value>(sums[c.value]); });
        for (int64_t j = 0; j < kGroups; ++j)
            for (int64_t t = 0; t < vectors[j]; ++t)
                for (int s = 0; s < smaller(strips, w.count); ++s)
                    store(y + (groups.first(g + j) + t) * y_stride + s * kStripRows,
                          load(sums[j * strips + s] + t * kStripRows));
    }

    void multiply(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t m, float* y,
                  int64_t y_stride) const {
        if constexpr (Weights::kOneAlone) {
            for (int64_t n = 0; n < count && m == 1; n += kStripRows)
                weights.template one<parts>({w, first + n, 1}, x, y + n);
            if (m == 1) return;
        }
        const SumGroups groups(m);
        TileConfig config;
        for (int tile = 0; tile < 6; ++tile) config.set(tile, groups.most(), kLine);
        for (int tile = 6; tile < 8; ++tile) config.set(tile, kTileLines, kLine);
        _tile_loadconfig(&config);
        const int64_t together = (groups.count == 1 ? 4 : 2) * kStripRows;
        // A pair of groups passes all strips: its vectors stay in L2.
        for (int64_t g = 0; g < groups.count; g += 2)
            for (int64_t n = 0; n < count; n += together) {
                const PassStrips strips = {w, first + n, smaller(together, count - n) / kStripRows};
                groups.count == 1 ? pass<4>(strips, x, groups, g, y + n, y_stride)
                                  : pass<2>(strips, x, groups, g, y + n, y_stride);
            }
        _tile_release();
    }
};
