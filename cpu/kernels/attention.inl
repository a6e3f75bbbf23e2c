// Keys from the cache, their products with the heads, and channel-wise pooling. Keys are shared by all heads, so the
// caller decodes a tile of them once.

// ---- cache rows -----------------------------------------------------------------------------------------------

[[gnu::always_inline]] inline void decode_bf16_numbers(const uint8_t* in, int64_t n, float* out) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) store(out + i, load_bf16(in + 2 * i));
    for (; i < n; ++i) out[i] = bf16_number(in + 2 * i);
}

inline void decode_fp8_row(const uint8_t* in, int64_t width, int64_t rope, float* out) {
    const int64_t plain = width - rope;
    const uint8_t* scales = in + plain + 2 * rope;
    int64_t i = 0;
    for (; i + kGroup <= plain; i += kGroup) {
        const Group group = scaled(e4m3_group(in + i), e8m0_number(scales[i / 64]) * E4M3Codes::kUnit);
        for (int v = 0; v < kGroupVectors; ++v) store(out + i + v * kLanes, group.v[v]);
    }
    for (; i < plain; ++i) out[i] = e4m3_number(in[i]) * e8m0_number(scales[i / 64]);
    decode_bf16_numbers(in + plain, rope, out + plain);
}

inline void decode_fp4_row(const Table& table, const uint8_t* in, int64_t width, float* out) {
    const uint8_t* scales = in + width / 2;
    for (int64_t k = 0; k < width; k += kGroup) {
        const F scale = broadcast(e8m0_number(scales[k / kGroup]));
        uint8_t codes[16] = {};
        const int64_t count = smaller(kGroup, width - k);
        __builtin_memcpy(codes, in + k / 2, static_cast<size_t>(count / 2));
        const Group group = look_up(table, pair_codes(codes));
        for (int i = 0; i < kGroupVectors; ++i) {
            const int64_t left = count - i * kLanes;
            if (left >= kLanes) {
                store(out + k + i * kLanes, group.v[i] * scale);
            } else if (left > 0) {
                store_first(out + k + i * kLanes, group.v[i] * scale, left);
            }
        }
    }
}

void decode_kv(quant::KvFormat format, const std::byte* const* rows, int64_t count, int64_t width, int64_t rope,
               float* out) noexcept {
    using quant::KvFormat;
    const Table table = make_table(kE2M1);
    for (int64_t i = 0; i < count; ++i, out += width) {
        const uint8_t* row = bytes(rows[i]);
        switch (format) {
            case KvFormat::kF32:
            case KvFormat::kFp8F32:
                __builtin_memcpy(out, row, static_cast<size_t>(width) * 4);
                break;
            case KvFormat::kBF16:
                decode_bf16_numbers(row, width, out);
                break;
            case KvFormat::kFp8:
                decode_fp8_row(row, width, rope, out);
                break;
            case KvFormat::kFp4:
                decode_fp4_row(table, row, width, out);
                break;
        }
    }
}

// ---- heads times keys ---------------------------------------------------------------------------------------------

void attention_scores(const float* q, int64_t heads, const float* keys, int64_t count, int64_t width, float scale,
                      float* logits, int64_t logits_stride) noexcept {
    for (int64_t j = 0; j < count; j += kRows) {
        dot_all(keys + j * width, width, smaller(kRows, count - j), q, width, heads, width,
                [&](int64_t h, int64_t r, float sum) { logits[h * logits_stride + j + r] = scale * sum; });
    }
}

void index_scores(const float* q, const float* gates, int64_t heads, const float* keys, int64_t count, int64_t width,
                  float* scores) noexcept {
    for (int64_t j = 0; j < count; j += kRows) {
        float sums[kRows] = {};
        dot_all(keys + j * width, width, smaller(kRows, count - j), q, width, heads, width,
                [&](int64_t h, int64_t r, float sum) { sums[r] += gates[h] * (sum > 0.0f ? sum : 0.0f); });
        for (int64_t r = 0; r < smaller(kRows, count - j); ++r) scores[j + r] = sums[r];
    }
}

/// kHeads heads times kVectors vectors of channels, accumulated over all keys in registers.
template <int kHeads, int kVectors>
[[gnu::always_inline]] inline void values_block(const float* p, int64_t p_stride, const float* keys, int64_t count,
                                                int64_t width, float* out) {
    F sum[kHeads][kVectors];
    for (int h = 0; h < kHeads; ++h) {
        for (int v = 0; v < kVectors; ++v) sum[h][v] = load(out + h * width + v * kLanes);
    }
    for (int64_t j = 0; j < count; ++j) {
        F key[kVectors];
        for (int v = 0; v < kVectors; ++v) key[v] = load(keys + j * width + v * kLanes);
        for (int h = 0; h < kHeads; ++h) {
            const F weight = broadcast(p[h * p_stride + j]);
            for (int v = 0; v < kVectors; ++v) sum[h][v] = fma(weight, key[v], sum[h][v]);
        }
    }
    for (int h = 0; h < kHeads; ++h) {
        for (int v = 0; v < kVectors; ++v) store(out + h * width + v * kLanes, sum[h][v]);
    }
}

template <int kHeads>
[[gnu::always_inline]] inline void values_heads(const float* p, int64_t p_stride, const float* keys, int64_t count,
                                                int64_t width, float* out) {
    int64_t c = 0;
    for (; c + 2 * kLanes <= width; c += 2 * kLanes) {
        values_block<kHeads, 2>(p, p_stride, keys + c, count, width, out + c);
    }
    for (; c + kLanes <= width; c += kLanes) {
        values_block<kHeads, 1>(p, p_stride, keys + c, count, width, out + c);
    }
    if (c == width) return;
    for (int h = 0; h < kHeads; ++h) {
        F sum = load_first(out + h * width + c, width - c);
        for (int64_t j = 0; j < count; ++j) {
            sum = fma(broadcast(p[h * p_stride + j]), load_first(keys + j * width + c, width - c), sum);
        }
        store_first(out + h * width + c, sum, width - c);
    }
}

void attention_values(const float* p, int64_t p_stride, int64_t heads, const float* keys, int64_t count, int64_t width,
                      float* out) noexcept {
    int64_t h = 0;
    for (; h + 4 <= heads; h += 4) values_heads<4>(p + h * p_stride, p_stride, keys, count, width, out + h * width);
    for (; h < heads; ++h) values_heads<1>(p + h * p_stride, p_stride, keys, count, width, out + h * width);
}

// ---- softmax --------------------------------------------------------------------------------------------------------

float exp_sum(float* x, int64_t n, float maximum) noexcept {
    const F shift = broadcast(maximum);
    F sum = {};
    for_vectors(n, [&](auto get, auto put, int64_t left) {
        F e = exponential(get(x) - shift);
        put(x, e);
        if (left < kLanes) e = get(x);  // zeros behind the end
        sum = sum + e;
    });
    return sum_of(sum);
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
