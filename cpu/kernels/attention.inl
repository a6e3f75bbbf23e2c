// Products of keys with heads, and channel-wise pooling. Keys are shared by all heads: the caller decodes a tile of
// them once, and every key that is loaded meets several heads. Heads lie across lanes (a head panel), so softmax and
// scores need no sum over lanes; keys and weights are broadcast. Every sum is over columns or keys in order, so it
// depends neither on how many heads or keys are computed together nor on where in a block they are.

// ---- heads across lanes -------------------------------------------------------------------------------------------

constexpr int kHeadVectors = 2;  // of a block of a panel
constexpr int kHeadBlock = kHeadVectors * kLanes;
constexpr int kAtOnce = 2 * kTileTokens;  // keys (heads) whose sums fit into the registers, kHeadVectors each

void head_panel(const float* q, int64_t heads, int64_t width, float* panel) noexcept {
    for (int64_t first = 0; first < heads; first += kLanes) {
        float* out = panel + first / kHeadBlock * kHeadBlock * width + first % kHeadBlock;
        const int64_t count = smaller(kLanes, heads - first);
        for (int64_t c = 0; c < width; c += kLanes) {
            const int64_t columns = smaller(kLanes, width - c);
            F rows[kLanes];
            for (int64_t i = 0; i < kLanes; ++i) {
                const float* row = q + (first + i) * width + c;
                rows[i] = i >= count ? F{} : columns == kLanes ? load(row) : load_first(row, columns);
            }
            transpose(rows);
            for (int64_t i = 0; i < columns; ++i) store(out + (c + i) * kHeadBlock, rows[i]);
        }
    }
    const int64_t filled = (heads + kLanes - 1) / kLanes * kLanes;
    if (filled % kHeadBlock == 0) return;
    float* out = panel + filled / kHeadBlock * kHeadBlock * width + filled % kHeadBlock;
    for (int64_t c = 0; c < width; ++c) store(out + c * kHeadBlock, F{});
}

template <int n>
struct Count {
    static constexpr int value = n;
};

/// Covers [0, count) by calls of body(begin, n, Count<most>), n <= most <= kMost: nearly equal groups, since few sums
/// together do not hide the latency of their multiply-adds.
template <int kMost = kAtOnce, typename Body>
[[gnu::always_inline]] inline void in_groups(int64_t count, Body body) {
    if (count < 1) return;
    const PanelGroups groups(count, kMost);
    for (int64_t g = 0; g < groups.count; ++g) {
        const int64_t begin = groups.first(g), n = groups.first(g + 1) - begin;
        if (n <= kMost * 2 / 3)
            body(begin, n, Count<kMost * 2 / 3>{});
        else if (n <= kMost * 5 / 6)
            body(begin, n, Count<kMost * 5 / 6>{});
        else
            body(begin, n, Count<kMost>{});
    }
}

/// sums[j][.] = products of a block of heads with keys j < n over `width` columns; the last key fills up to kKeys.
template <int kKeys>
[[gnu::always_inline]] inline void block_products(const float* panel, const float* keys, int64_t stride, int64_t n,
                                                  int64_t width, F sums[kKeys][kHeadVectors]) {
    const float* key[kKeys];
    F sum[kKeys][kHeadVectors] = {};
    for (int j = 0; j < kKeys; ++j) key[j] = keys + smaller(j, n - 1) * stride;
    for (int64_t c = 0; c < width; ++c, panel += kHeadBlock) {
        F q[kHeadVectors];
        for (int v = 0; v < kHeadVectors; ++v) q[v] = load(panel + v * kLanes);
        unrolled<kKeys>([&](int j) __attribute__((always_inline)) {
            const F number = broadcast(key[j][c]);
            for (int v = 0; v < kHeadVectors; ++v) sum[j][v] = fma(number, q[v], sum[j][v]);
        });
    }
    for (int j = 0; j < kKeys; ++j) {
        for (int v = 0; v < kHeadVectors; ++v) sums[j][v] = sum[j][v];
    }
}

/// Columns go in chunks, so that the chunk of a block of heads stays in L1 while the keys pass.
void attention_scores(const float* panel, int64_t heads, const float* keys, int64_t keys_stride, int64_t count,
                      int64_t width, float scale, float* logits, int64_t logits_stride) noexcept {
    constexpr int64_t kColumns = 128;
    for (int64_t c = 0; c < width; c += kColumns) {
        const int64_t columns = smaller(kColumns, width - c);
        const F factor = broadcast(c + columns < width ? 1.0f : scale);
        for (int64_t h = 0; h < heads; h += kHeadBlock) {
            const float* block = panel + h * width + c * kHeadBlock;
            in_groups(
                count, [&](int64_t first, int64_t n, auto most) __attribute__((always_inline)) {
                    F sums[most.value][kHeadVectors];
                    block_products<most.value>(block, keys + first * keys_stride + c, keys_stride, n, columns, sums);
                    for (int64_t j = 0; j < n; ++j) {
                        float* out = logits + (first + j) * logits_stride + h;
                        for (int v = 0; v < kHeadVectors; ++v, out += kLanes)
                            store(out, factor * (c == 0 ? sums[j][v] : load(out) + sums[j][v]));
                    }
                });
        }
    }
}

/// scores[j] = sum_h gates[h] * max(0, products of head h with key j); products(first key, n, first head, Count<most>,
/// sums) gives those of a block of heads.
template <int kMost, typename Products>
[[gnu::always_inline]] inline void gated_scores(const float* gates, int64_t heads, int64_t count, float* scores,
                                                Products products) {
    constexpr int64_t kKeys = 64;  // whose totals are kept
    for (int64_t first = 0; first < count; first += kKeys, scores += kKeys) {
        const int64_t here = smaller(kKeys, count - first);
        F totals[kKeys + 3] = {};
        for (int64_t h = 0; h < heads; h += kHeadBlock) {
            F gate[kHeadVectors];
            for (int v = 0; v < kHeadVectors; ++v) {
                const int64_t at = h + v * kLanes, left = heads - at;
                gate[v] = left >= kLanes ? load(gates + at) : left > 0 ? load_first(gates + at, left) : F{};
            }
            in_groups<kMost>(
                here, [&](int64_t j, int64_t n, auto most) __attribute__((always_inline)) {
                    F sums[most.value][kHeadVectors];
                    products(first + j, n, h, most, sums);
                    for (int64_t i = 0; i < n; ++i) {
                        for (int v = 0; v < kHeadVectors; ++v)
                            totals[j + i] = fma(gate[v], max(sums[i][v], F{}), totals[j + i]);
                    }
                });
        }
        for (int64_t j = 0; j < here; j += 4) {
            float sums[4];
            sum_lanes(totals + j, sums);
            for (int64_t i = 0; i < smaller(4, here - j); ++i)
                scores[j + i] = sums[i] == sums[i] ? sums[i] : -__builtin_inff();
        }
    }
}

void index_scores(const float* panel, const float* gates, int64_t heads, const float* keys, int64_t count,
                  int64_t width, float* scores) noexcept {
    gated_scores<kAtOnce>(
        gates, heads, count,
        scores, [&](int64_t j, int64_t n, int64_t h, auto most, auto& sums) __attribute__((always_inline)) {
            block_products<most.value>(panel + h * width, keys + j * width, width, n, width, sums);
        });
}

void softmax_keys(float* logits, int64_t stride, int64_t count, int64_t heads, float* maximum, float* sum,
                  float* shrink) noexcept {
    for (int64_t h = 0; h < heads; h += kLanes) {
        const F before = load(maximum + h);
        F top = before;
        for (int64_t j = 0; j < count; ++j) top = max(load(logits + j * stride + h), top);
        const F factor = exponential(before - top);
        F total = load(sum + h) * factor;
        for (int64_t j = 0; j < count; ++j) {
            const F e = exponential(load(logits + j * stride + h) - top);
            store(logits + j * stride + h, e);
            total = total + e;
        }
        store(maximum + h, top);
        store(sum + h, total);
        store(shrink + h, factor);
    }
}

/// `n` <= kHeads heads times kVectors vectors of channels, accumulated over all keys in registers; the last head fills
/// up.
template <int kHeads, int kVectors>
[[gnu::always_inline]] inline void values_block(const float* p, int64_t p_stride, const float* shrink, int64_t n,
                                                const float* keys, int64_t keys_stride, int64_t count, int64_t width,
                                                float* out) {
    F sum[kHeads][kVectors];
    const float* weights[kHeads];
    for (int h = 0; h < kHeads; ++h) {
        const int64_t head = smaller(h, n - 1);
        weights[h] = p + head;
        for (int v = 0; v < kVectors; ++v) sum[h][v] = broadcast(shrink[head]) * load(out + head * width + v * kLanes);
    }
    for (int64_t j = 0; j < count; ++j) {
        F key[kVectors];
        for (int v = 0; v < kVectors; ++v) key[v] = load(keys + j * keys_stride + v * kLanes);
        unrolled<kHeads>([&](int h) __attribute__((always_inline)) {
            const F weight = broadcast(weights[h][j * p_stride]);
            for (int v = 0; v < kVectors; ++v) sum[h][v] = fma(weight, key[v], sum[h][v]);
        });
    }
    for (int64_t h = 0; h < n; ++h) {
        for (int v = 0; v < kVectors; ++v) store(out + h * width + v * kLanes, sum[h][v]);
    }
}

/// A strip of channels of all keys stays in L1 while the heads pass.
void attention_values(const float* p, int64_t p_stride, const float* shrink, int64_t heads, const float* keys,
                      int64_t keys_stride, int64_t count, int64_t width, float* out) noexcept {
    int64_t c = 0;
    for (; c + 2 * kLanes <= width; c += 2 * kLanes) {
        in_groups(
            heads, [&](int64_t h, int64_t n, auto most) __attribute__((always_inline)) {
                values_block<most.value, 2>(p + h, p_stride, shrink + h, n, keys + c, keys_stride, count, width,
                                            out + h * width + c);
            });
    }
    for (; c < width; c += kLanes) {
        const int64_t left = smaller(kLanes, width - c);
        for (int64_t h = 0; h < heads; ++h) {
            F sum = broadcast(shrink[h]) * load_first(out + h * width + c, left);
            for (int64_t j = 0; j < count; ++j)
                sum = fma(broadcast(p[j * p_stride + h]), load_first(keys + j * keys_stride + c, left), sum);
            store_first(out + h * width + c, sum, left);
        }
    }
}

void pool(const float* const* values, const float* const* scores, int64_t count, int64_t width, float* out) noexcept {
    for_vectors(width, [&](auto get, auto put, int64_t) {
        F maximum = broadcast(-3.4028235e38f);  // finite: scores of -inf then have weight 0
        for (int64_t i = 0; i < count; ++i) {
            if (scores[i]) maximum = max(maximum, get(scores[i]));
        }
        F weights = {}, sum = {};
        for (int64_t i = 0; i < count; ++i) {
            if (!scores[i]) continue;
            const F weight = exponential(get(scores[i]) - maximum);
            weights = weights + weight;
            sum = fma(weight, get(values[i]), sum);
        }
        put(out, sum / max(broadcast(1e-30f), weights));
    });
}
