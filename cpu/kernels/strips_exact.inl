// Packed FP4 matrices times vectors rounded to e4m3. Every vector is the sum of two parts: numbers from 2^-10 of the
// block's largest power of two on, and smaller ones. The sum of products of a unit of columns (32 of MXFP4, 16 of
// NVFP4) and one part is exact, however it is made, so a few vectors and many give the same numbers in different ways
// (results that are subnormal aside, which tiles make zero). MXFP4: total += scale * (sum of one part), then of the
// other; NVFP4, whose scales are no powers of two: total += scale * (sum of both).
//
//   few    vectors as integers: those of a block of 128 are below 2^18 times their unit, signed digits of eight bits,
//          and twice an FP4 number plus 12 is a byte. Products of bytes are summed in integers.
//   many   MXFP4: strips_summed.inl. NVFP4: tiles of bf16 (strips_tiles.inl) that are stored after every unit.
//          The panel is [K / 32][2][m][16 pairs].

constexpr int kFewVectors = 4;

/// Columns of a block of a vector: their numbers divided by the unit are digits[0], of small ones (below 2^7), and 16 *
/// (digits[1] + 256 digits[2]), of large ones.
struct BlockDigits {
    int8_t digits[3][kBlock];
    int32_t sums[2][kBlock / 16];  // of digits[0], and of the others, of 16 columns each
    float unit;                    // of twice the products; NaN: not all numbers are finite
    float unused[15];
};
static_assert(sizeof(BlockDigits) == kBlock * sizeof(float));

/// The exponent field of the largest power of two in a block.
inline uint32_t exponent_of_block(const float* numbers) {
    const uint32_t field = bits_as<uint32_t>(largest_magnitude(numbers, kBlock)) >> 23;
    return field > 60 ? field : 60;  // e4m3 with its scale is far above, or zero
}

[[gnu::always_inline]] inline void put_digit(I digits, int8_t* out) {
    typedef int8_t Narrow __attribute__((vector_size(kLanes)));
    const Narrow narrow = __builtin_convertvector(digits, Narrow);
    __builtin_memcpy(out, &narrow, sizeof narrow);
}

inline void put_digits(const float* numbers, BlockDigits* out) {
    const uint32_t field = exponent_of_block(numbers);
    const F inverse = broadcast(bits_as<float>((271 - field) << 23));  // 2^17 / 2^(field - 127)
    F poison = {};
    for (int k = 0; k < kBlock; k += kLanes) {
        const F x = load(numbers + k);
        poison += x * broadcast(0.0f);
        const I number = round_to_int(x * inverse), small_mask = (number < 128) & (number > -128);
        const I small = number & small_mask, large = (number & ~small_mask) >> 4, low = large << 24 >> 24;
        put_digit(small, out->digits[0] + k);
        put_digit(low, out->digits[1] + k);
        put_digit((large - low) >> 8, out->digits[2] + k);
        out->sums[0][k / kLanes] = add_lanes(small);
        out->sums[1][k / kLanes] = add_lanes(large);
    }
    out->unit = mask_bits(poison != poison) ? __builtin_nanf("") : bits_as<float>((field - 18) << 23);
}

/// The pairs of 32 columns, which are exact in bf16.
[[gnu::always_inline]] inline void put_pairs(F first, F last, float* out) {
    const U low = (U)__builtin_shufflevector(first, last, 0, 1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 21, 24, 25, 28, 29);
    const U high = (U)__builtin_shufflevector(first, last, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19, 22, 23, 26, 27, 30, 31);
    store(out, (F)(low >> 16 | high));
}

template <typename Scales, int unit>
struct ExactE2M1 {
    static_assert(kLanes == kStripRows);
    PairsE2M1<unit> codes;
    Scales scales;
    SpareBitsTable twice_plus_12 = make_spare_bits_table(kE2M1Digits);

    static constexpr int kUnits = kBlock / unit;
    static constexpr int kColumns = PairsE2M1<unit>::kColumns, kLines = kBlock / kColumns;  // of a line; of a block
    static constexpr int kUnitPairs = unit / 2;
    static constexpr bool kInTiles = unit == 32;  // the sums of many vectors stay there

    /// One strip times m vectors, panel [K / 128][m] of BlockDigits.
    template <int m>
    void few(const Strip& strip, int64_t block_bytes, int64_t blocks, const BlockDigits* x, float* y,
             int64_t y_stride) const {
        F total[m] = {};
        const uint8_t* p = strip.data;
        for (int64_t b = 0; b < blocks; ++b, p += block_bytes, x += m) {
            for (int u = 0; u < kUnits; ++u) {
                I sums[m][3] = {};
                unrolled<m>([&](int t) __attribute__((always_inline)) {
                    for (int i = 0; i < 2; ++i) {
                        int32_t sum = 0;
                        for (int j = 0; j < unit / 16; ++j) sum += x[t].sums[i][u * unit / 16 + j];
                        sums[t][i] = I{} - 12 * sum;
                    }
                });
                unrolled<unit / kColumns>([&](int l) __attribute__((always_inline)) {
                    const uint8_t* line = p + (u * unit / kColumns + l) * kLine;
                    fetch_ahead(line);
                    const U words = load_line(line);
                    unrolled<2>([&](int half) __attribute__((always_inline)) {
                        const U bytes_ = look_up_spare_bits(twice_plus_12, half ? words >> 4 : words);
                        const int column = u * unit + l * kColumns + half * 4;
                        unrolled<m>([&](int t) __attribute__((always_inline)) {
                            unrolled<3>([&](int d) __attribute__((always_inline)) {
                                sums[t][d] = add_products_of_bytes(bytes_, x[t].digits[d] + column, sums[t][d]);
                            });
                        });
                    });
                });
                const F scale = scales.of(p + kLines * kLine, u, 0);
                unrolled<m>([&](int t) __attribute__((always_inline)) {
                    const I large = (sums[t][1] + (sums[t][2] << 8)) << 4;
                    const F unit_of_x = broadcast(x[t].unit);
                    if constexpr (kInTiles) {
                        total[t] = fma(scale, unit_of_x * to_float(large), total[t]);
                        total[t] = fma(scale, unit_of_x * to_float(sums[t][0]), total[t]);
                    } else {
                        total[t] = fma(scale, unit_of_x * to_float(large + sums[t][0]), total[t]);
                    }
                });
            }
            for (int64_t i = kLines * kLine; i < block_bytes; i += kLine) fetch_ahead(p + i);
        }
        unrolled<m>([&](int t) __attribute__((always_inline)) { store(y + t * y_stride, total[t]); });
    }

    /// Tile c = a unit of 16 vectors, at `a` and part_floats on, times its 16 rows [unit / 2][16].
    template <int c>
    [[gnu::always_inline]] static void multiply_unit(const float* a, int64_t part_floats, const float* b) {
        zero_tile<c>();
        load_tile<6>(b);
        load_tile<4>(a);
        multiply_tiles<c, 4, 6>();
        load_tile<4>(a + part_floats);
        multiply_tiles<c, 4, 6>();
    }

    /// `count` <= 2 strips times m <= kVectorsTogether vectors of a panel of `panel_vectors`.
    void many(const Strip* strips, int count, int64_t block_bytes, int64_t blocks, const float* x,
              int64_t panel_vectors, TileGroups groups, float* y, int64_t y_stride) const {
        constexpr int kRounds = kUnits / 4;  // of four units, each with tiles of its own
        alignas(64) float pairs[2][2][kBlockPairs * kStripRows], products[2][kTileFloats] = {};
        alignas(64) float sums[2][kVectorsTogether * kStripRows] = {}, others[kTileFloats];
        for (int s = 0; s < count; ++s) decode_pairs(codes, strips[s].data, 0, kLines, pairs[0][s]);
        for (int64_t b = 0; b < blocks; ++b, x += panel_vectors * kBlock) {
            F factors[2][kUnits];
            for (int s = 0; s < count; ++s)
                for (int u = 0; u < kUnits; ++u)
                    factors[s][u] = scales.of(strips[s].data + b * block_bytes + kLines * kLine, u, 0);
            struct Item {
                int64_t strip, group;
                int first_unit;  // of four
            };
            const int64_t items = count * groups.count * kRounds;
            const auto item_of = [&](int64_t i) __attribute__((always_inline)) {
                const int64_t pass = i / kRounds;
                return Item{pass / groups.count, pass % groups.count, static_cast<int>(i % kRounds * 4)};
            };
            const auto multiply = [&](auto c, const Item& item) __attribute__((always_inline)) {
                const int u = item.first_unit + c.value, column = u * unit;
                const float* a = x +
                                 (column / kStepColumns * 2 * panel_vectors + groups.first(item.group)) * kStepPairs +
                                 column % kStepColumns / 2;
                multiply_unit<c.value>(a, panel_vectors * kStepPairs,
                                       pairs[b % 2][item.strip] + u * kUnitPairs * kStripRows);
            };
            Item item = item_of(0);
            multiply(Number<0>(), item);
            multiply(Number<1>(), item);
            for (int64_t i = 0; i < items; ++i) {
                const Item next = item_of(i + 1 < items ? i + 1 : i);
                const int64_t first = groups.first(item.group);
                float* of_group = sums[item.strip] + first * kStripRows;
                // Those that have their sums with the group before.
                const auto other_bytes =
                    static_cast<size_t>((item.group * groups.rows - first) * kStripRows) * sizeof(float);
                __builtin_memcpy(others, of_group, other_bytes);
                F sum[kTileLines];
                unrolled<kTileLines>([&](int t)
                                         __attribute__((always_inline)) { sum[t] = load(of_group + t * kStripRows); });
                const auto add = [&](auto c) __attribute__((always_inline)) {
                    float* product = products[c.value % 2];
                    store_tile<c.value>(product);
                    const F factor = factors[item.strip][item.first_unit + c.value];
                    unrolled<kTileLines>([&](int t) __attribute__((always_inline)) {
                        sum[t] = fma(factor, load(product + t * kStripRows), sum[t]);
                    });
                };
                multiply(Number<2>(), item);
                add(Number<0>());
                multiply(Number<3>(), item);
                add(Number<1>());
                if (i + 1 < items) multiply(Number<0>(), next);
                add(Number<2>());
                if (i + 1 < items) multiply(Number<1>(), next);
                add(Number<3>());
                unrolled<kTileLines>([&](int t)
                                         __attribute__((always_inline)) { store(of_group + t * kStripRows, sum[t]); });
                __builtin_memcpy(of_group, others, other_bytes);
                item = next;
            }
            // A block ahead: what is written takes a while until tiles can read it.
            if (b + 1 < blocks)
                for (int s = 0; s < count; ++s)
                    decode_pairs(codes, strips[s].data + (b + 1) * block_bytes, 0, kLines, pairs[(b + 1) % 2][s]);
        }
        for (int s = 0; s < count; ++s)
            for (int64_t t = 0; t < groups.m; ++t)
                store(y + t * y_stride + s * kStripRows, load(sums[s] + t * kStripRows));
    }

    void multiply(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t m, float* y,
                  int64_t y_stride) const {
        const int64_t blocks = w.cols / kBlock, block_bytes = w.strip_bytes / blocks;
        const auto strip = [&](int64_t n) { return Strip(w, first + n, 1.0f); };
        if (m <= kFewVectors) {
            const auto* digits = reinterpret_cast<const BlockDigits*>(x);
            for (int64_t n = 0; n < count; n += kStripRows) {
                const auto run = [&](auto vectors) {
                    few<vectors.value>(strip(n), block_bytes, blocks, digits, y + n, y_stride);
                };
                m == 1 ? run(Number<1>()) : m == 2 ? run(Number<2>()) : m == 3 ? run(Number<3>()) : run(Number<4>());
            }
            return;
        }
        if constexpr (kInTiles)
            SummedTiles<SummedE2M1, 2>{}.multiply(w, first, count, x, m, y, y_stride);
        else
            multiply_many(w, first, count, x, m, y, y_stride);
    }

    void multiply_many(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t m, float* y,
                       int64_t y_stride) const {
        const int64_t blocks = w.cols / kBlock, block_bytes = w.strip_bytes / blocks;
        const auto strip = [&](int64_t n) { return Strip(w, first + n, 1.0f); };
        for (int64_t begin = 0; begin < m; begin += kVectorsTogether) {
            const TileGroups groups(smaller(kVectorsTogether, m - begin));
            TileConfig config;
            for (int tile = 0; tile < 4; ++tile) config.set(tile, groups.rows, kLine);
            config.set(4, groups.rows, kUnitPairs * 4);
            config.set(6, kUnitPairs, kLine);
            _tile_loadconfig(&config);
            for (int64_t n = 0; n < count; n += 2 * kStripRows) {
                const bool two = n + kStripRows < count;
                const Strip strips[] = {strip(n), strip(two ? n + kStripRows : n)};
                many(strips, two ? 2 : 1, block_bytes, blocks, x + begin * kStepPairs, m, groups,
                     y + begin * y_stride + n, y_stride);
            }
        }
        _tile_release();
    }
};
