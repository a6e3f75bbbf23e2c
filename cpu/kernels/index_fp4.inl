// Scores of index keys in FP4 for queries that FP4 holds as well (deepseek-v4.md 3.1, points 3 and 4). Twice a number
// is an integer of at most 12: products of 32 columns are added as integers, four at a time and exactly, and the sums
// of such groups, times two powers of two, as floats in order. Keys meet heads as in attention.inl.

constexpr int kFp4Quads = kGroup / 4;
constexpr int kFp4AtOnce = kTileTokens;  // keys; those have integer sums besides
using Fp4Dot = OffsetDot<12>;
/// Of a panel, in floats: of each block of heads, for each group of columns, four digits of a head to a lane, then its
/// scales.
constexpr int64_t kFp4PanelGroup = (kFp4Quads + 1) * kHeadBlock;

typedef uint8_t Sixteen __attribute__((vector_size(kGroup / 2)));

/// Twice the numbers of a group, plus 12.
struct Fp4Digits {
    Sixteen even, odd;  // columns
};

[[gnu::always_inline]] inline Fp4Digits fp4_digits(const ByteTable& table, const uint8_t* codes) {
    const U words = bits_as<U>(make_byte_table(codes));  // in every sixteen bytes
    const U even = look_up_bytes(table, words & 0x0f0f0f0f), odd = look_up_bytes(table, words >> 4 & 0x0f0f0f0f);
    return {(Sixteen)__builtin_shufflevector(even, even, 0, 1, 2, 3),
            (Sixteen)__builtin_shufflevector(odd, odd, 0, 1, 2, 3)};
}

void fp4_panel(const float* q, int64_t heads, int64_t width, float* panel) noexcept {
    const ByteTable table = make_byte_table(kE2M1Digits);
    const int64_t groups = width / kGroup, blocks = (heads + kHeadBlock - 1) / kHeadBlock;
    __builtin_memset(panel, 0, static_cast<size_t>(blocks * groups * kFp4PanelGroup) * sizeof(float));
    for (int64_t h = 0; h < heads; ++h) {
        float* out = panel + h / kHeadBlock * groups * kFp4PanelGroup + h % kHeadBlock;
        for (int64_t g = 0; g < groups; ++g, q += kGroup, out += kFp4PanelGroup) {
            uint8_t code[kGroup / 2 + 1];
            encode_fp4_row(q, kGroup, code);
            const Fp4Digits digits = fp4_digits(table, code);
            for (int i = 0; i < kFp4Quads; ++i)
                __builtin_memcpy(out + i * kHeadBlock, reinterpret_cast<const uint8_t*>(&digits) + 4 * i, 4);
            out[kFp4Quads * kHeadBlock] = 0.25f * e8m0_number(code[kGroup / 2]);  // of twice times twice the numbers
        }
    }
}

/// A key as groups of digits, of which start() takes the sums.
inline void decode_fp4_digits(const ByteTable& table, const uint8_t* row, int64_t groups, Int8Group* out) {
    const uint8_t* scales = row + groups * kGroup / 2;
    for (int64_t g = 0; g < groups; ++g, row += kGroup / 2) {
        const Fp4Digits digits = fp4_digits(table, row);
        typedef uint64_t Two __attribute__((vector_size(sizeof(Sixteen))));
        const Two bytes_of_two = (Two)(digits.even + digits.odd), low = {0x00ff00ff00ff00ff, 0x00ff00ff00ff00ff};
        const Two words = (bytes_of_two & low) + (bytes_of_two >> 8 & low);  // none above 4 * 24
        const uint64_t sum = (words[0] + words[1]) * 0x0001000100010001 >> 48;
        const int16_t sums[2] = {static_cast<int16_t>(static_cast<int64_t>(sum) - 12 * kGroup), 0};
        __builtin_memcpy(out[g].sums + 4, sums, sizeof sums);
        const Sixteen even = digits.even - 12, odd = digits.odd - 12;
        __builtin_memcpy(out[g].codes, &even, sizeof even);
        __builtin_memcpy(out[g].codes + sizeof even, &odd, sizeof odd);
        out[g].scale = e8m0_number(scales[g]);
    }
}

/// sums[j][.] = products of a block of heads with keys j < n of `groups` groups; the last key fills up to kKeys.
template <int kKeys>
[[gnu::always_inline]] inline void fp4_products(const float* panel, const Int8Group* keys, int64_t n, int64_t groups,
                                                F sums[kKeys][kHeadVectors]) {
    const Int8Group* key[kKeys];
    F total[kKeys][kHeadVectors] = {};
    for (int j = 0; j < kKeys; ++j) key[j] = keys + smaller(j, n - 1) * groups;
    for (int64_t g = 0; g < groups; ++g, panel += kFp4PanelGroup) {
        typename Fp4Dot::Sums sum[kKeys][kHeadVectors];
        for (int j = 0; j < kKeys; ++j) {
            for (int v = 0; v < kHeadVectors; ++v) sum[j][v] = Fp4Dot::start(key[j][g].sums + 4);
        }
        unrolled<kFp4Quads>([&](int i) __attribute__((always_inline)) {
            U q[kHeadVectors];
            for (int v = 0; v < kHeadVectors; ++v) q[v] = (U)as_int(load(panel + i * kHeadBlock + v * kLanes));
            unrolled<kKeys>([&](int j) __attribute__((always_inline)) {
                for (int v = 0; v < kHeadVectors; ++v)
                    sum[j][v] = Fp4Dot::add(sum[j][v], q[v], key[j][g].codes + 4 * i);
            });
        });
        for (int v = 0; v < kHeadVectors; ++v) {
            const F scale = load(panel + kFp4Quads * kHeadBlock + v * kLanes);
            for (int j = 0; j < kKeys; ++j)
                total[j][v] = fma(to_float(Fp4Dot::total(sum[j][v])), scale * broadcast(key[j][g].scale), total[j][v]);
        }
    }
    for (int j = 0; j < kKeys; ++j) {
        for (int v = 0; v < kHeadVectors; ++v) sums[j][v] = total[j][v];
    }
}

void index_scores_fp4(const float* panel, const float* gates, int64_t heads, const std::byte* const* rows,
                      int64_t count, int64_t width, Int8Group* work, float* scores) noexcept {
    const ByteTable table = make_byte_table(kE2M1Digits);
    const int64_t groups = width / kGroup;
    for (int64_t j = 0; j < count; ++j) decode_fp4_digits(table, bytes(rows[j]), groups, work + j * groups);
    gated_scores<kFp4AtOnce>(
        gates, heads, count,
        scores, [&](int64_t j, int64_t n, int64_t h, auto most, auto& sums) __attribute__((always_inline)) {
            fp4_products<most.value>(panel + h / kHeadBlock * groups * kFp4PanelGroup, work + j * groups, n, groups,
                                     sums);
        });
}
