// Matrix times vectors. Every output is a sum over chunks of 256 columns, added in order in float32; inside a chunk the
// lanes of one accumulator go through the columns in order and are summed by a fixed tree. This order depends on the
// column alone, so an output does not depend on m, on the split of the rows, or on the tile that it was computed in.
//
//   m = 1: four rows at a time, decoded into registers and multiplied at once.
//   m > 1: sixteen rows of a chunk are decoded into a tile in L1, which all vectors then pass.

constexpr int kRows = 4;
constexpr int kTileRows = 16;

// ---- dot products in blocks -------------------------------------------------------------------------------------

/// sums[t][r] = <a[r], b + t * b_stride> over n columns.
template <int kTokens>
[[gnu::always_inline]] inline void dot_block(const float* const a[kRows], const float* b, int64_t b_stride, int64_t n,
                                             float sums[kTokens][kRows]) {
    F sum[kTokens][kRows] = {};
    int64_t k = 0;
    for (; k + kLanes <= n; k += kLanes) {
        for (int t = 0; t < kTokens; ++t) {
            const F x = load(b + t * b_stride + k);
            for (int r = 0; r < kRows; ++r) sum[t][r] = fma(load(a[r] + k), x, sum[t][r]);
        }
    }
    if (k < n) {
        for (int t = 0; t < kTokens; ++t) {
            const F x = load_first(b + t * b_stride + k, n - k);
            for (int r = 0; r < kRows; ++r) sum[t][r] = fma(load_first(a[r] + k, n - k), x, sum[t][r]);
        }
    }
    for (int t = 0; t < kTokens; ++t) sum_lanes(sum[t], sums[t]);
}

/// body(t, r, sum) for every pair of `a_count` rows (at most kRows) and `b_count` vectors, t ascending.
template <typename Body>
[[gnu::always_inline]] inline void dot_all(const float* a, int64_t a_stride, int64_t a_count, const float* b,
                                           int64_t b_stride, int64_t b_count, int64_t n, Body body) {
    const float* rows[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = a + smaller(r, a_count - 1) * a_stride;
    float sums[kTileTokens][kRows];
    int64_t t = 0;
    for (; t + kTileTokens <= b_count; t += kTileTokens) {
        dot_block<kTileTokens>(rows, b + t * b_stride, b_stride, n, sums);
        for (int i = 0; i < kTileTokens; ++i) {
            for (int64_t r = 0; r < a_count; ++r) body(t + i, r, sums[i][r]);
        }
    }
    for (; t < b_count; ++t) {
        dot_block<1>(rows, b + t * b_stride, b_stride, n, sums);
        for (int64_t r = 0; r < a_count; ++r) body(t, r, sums[0][r]);
    }
}

// ---- weights ------------------------------------------------------------------------------------------------------

constexpr int kPaddedBytes = kChunk * 4;

/// The packed codes of a span. A span that ends inside a group of 32 is copied, so that decoding may read on.
template <typename Decoder>
[[gnu::always_inline]] inline const uint8_t* span_codes(const Row& row, const Span& span, uint8_t* padded) {
    const uint8_t* data = row.codes + Decoder::offset(span.column);
    if (span.count % kGroup == 0) return data;
    const bool half_byte = span.count % 2 == 1 && Decoder::offset(2) == 1;  // an odd number of nibbles
    const int64_t used = Decoder::offset(span.count) + (half_byte ? 1 : 0);
    __builtin_memset(padded, 0, kPaddedBytes);
    for (int64_t i = 0; i < used; ++i) padded[i] = data[i];
    return padded;
}

template <typename Decoder>
inline void decode_span(const Decoder& decoder, const quant::Matrix& w, const Row& row, const Span& span, float* out) {
    alignas(64) uint8_t padded[kPaddedBytes];
    typename Decoder::Chunk chunk;
    decoder.begin(chunk, w, row, span, span_codes<Decoder>(row, span, padded));
    int g = 0;
    for (; g < span.count / kGroup; ++g) {
        const Group group = decoder.group(chunk, g);
        for (int i = 0; i < kGroupVectors; ++i) store(out + g * kGroup + i * kLanes, group.v[i]);
    }
    if (g * kGroup < span.count) {
        const Group group = decoder.group(chunk, g);
        for (int i = 0; i < span.count - g * kGroup; ++i) out[g * kGroup + i] = group.v[i / kLanes][i % kLanes];
    }
}

template <typename Decoder>
inline void decode_row_with(const Decoder& decoder, const quant::Matrix& w, int64_t n, float* out) {
    const Row row = make_row(w, n);
    for (int64_t k = 0; k < w.cols; k += kChunk) decode_span(decoder, w, row, make_span(w, k), out + k);
    if (w.multiplier != 1.0f) {
        for (int64_t k = 0; k < w.cols; ++k) out[k] *= w.multiplier;
    }
}

// ---- one vector ---------------------------------------------------------------------------------------------------

/// Fetches what the next tile of rows will read of the same columns: the hardware does not follow from row to row.
template <typename Decoder>
[[gnu::always_inline]] inline void prefetch(const Row& row, const Span& span, int64_t distance) {
    const uint8_t* data = row.codes + Decoder::offset(span.column) + distance;
    for (int64_t i = 0; i < Decoder::offset(kChunk); i += 64) __builtin_prefetch(data + i, 0, 2);
}

/// y[r] = <W[first + r], x> for r < count <= kRows. Fewer rows than kRows: the last one is computed again.
template <typename Decoder>
inline void multiply_one(const Decoder& decoder, const quant::Matrix& w, int64_t first, int64_t count, const float* x,
                         float* y) {
    Row rows[kRows];
    for (int r = 0; r < kRows; ++r) rows[r] = make_row(w, first + smaller(r, count - 1));
    float total[kRows] = {};
    for (int64_t k = 0; k < w.cols; k += kChunk) {
        const Span span = make_span(w, k);
        alignas(64) uint8_t padded[kRows][kPaddedBytes];
        alignas(64) float padded_x[kChunk];
        const float* part = x + k;
        if (span.count % kGroup != 0) {
            for (int i = 0; i < kChunk; ++i) padded_x[i] = i < span.count ? part[i] : 0.0f;
            part = padded_x;
        }
        typename Decoder::Chunk chunks[kRows];
        for (int r = 0; r < kRows; ++r) {
            decoder.begin(chunks[r], w, rows[r], span, span_codes<Decoder>(rows[r], span, padded[r]));
            prefetch<Decoder>(rows[r], span, kRows * w.row_bytes);
        }
        F sum[kRows] = {};
        for (int g = 0; g * kGroup < span.count; ++g) {
            unrolled<kRows>([&](int r) __attribute__((always_inline)) {
                const Group group = decoder.group(chunks[r], g);
                unrolled<kGroupVectors>([&](int i) __attribute__((always_inline)) {
                    sum[r] = fma(group.v[i], load(part + g * kGroup + i * kLanes), sum[r]);
                });
            });
        }
        float sums[kRows];
        sum_lanes(sum, sums);
        for (int r = 0; r < kRows; ++r) total[r] += sums[r];
    }
    for (int64_t r = 0; r < count; ++r) y[r] = total[r];
}

// ---- many vectors -------------------------------------------------------------------------------------------------

struct Vectors {
    const float* x;  // [m, x_stride]
    int64_t x_stride;
    int64_t m;
    float* y;  // [m, y_stride]
    int64_t y_stride;
};

/// y[t][r] (+)= <tile[r], x[t]> for `count` <= kTileRows rows of a chunk; v.x and v.y point at its first column, row.
inline void multiply_tile(const float* tile, int64_t count, int columns, bool first_chunk, const Vectors& v) {
    // A few vectors at a time, so that their chunk stays in L1 while the rows pass.
    for (int64_t t = 0; t < v.m; t += kTileTokens) {
        for (int64_t r = 0; r < count; r += kRows) {
            dot_all(tile + r * kChunk, kChunk, smaller(kRows, count - r), v.x + t * v.x_stride, v.x_stride,
                    smaller(kTileTokens, v.m - t), columns, [&](int64_t i, int64_t j, float sum) {
                        float& y = v.y[(t + i) * v.y_stride + r + j];
                        y = first_chunk ? 0.0f + sum : y + sum;
                    });
        }
    }
}

template <typename Decoder>
inline void multiply_many(const Decoder& decoder, const quant::Matrix& w, int64_t first, int64_t count,
                          const Vectors& v) {
    alignas(64) float tile[kTileRows * kChunk];
    for (int64_t n = 0; n < count; n += kTileRows) {
        const int64_t rows = smaller(kTileRows, count - n);
        for (int64_t k = 0; k < w.cols; k += kChunk) {
            const Span span = make_span(w, k);
            for (int64_t r = 0; r < rows; ++r) {
                const Row row = make_row(w, first + n + r);
                prefetch<Decoder>(row, span, kTileRows * w.row_bytes);
                decode_span(decoder, w, row, span, tile + r * kChunk);
            }
            multiply_tile(tile, rows, span.count, k == 0, {v.x + k, v.x_stride, v.m, v.y + n, v.y_stride});
        }
    }
}

// ---- entries of the table -----------------------------------------------------------------------------------------

inline void apply_multiplier(const quant::Matrix& w, int64_t m, int64_t count, float* y, int64_t y_stride) {
    if (w.multiplier == 1.0f) return;
    for (int64_t t = 0; t < m; ++t) {
        for (int64_t n = 0; n < count; ++n) y[t * y_stride + n] *= w.multiplier;
    }
}

void matmul(const quant::Matrix& w, int64_t first, int64_t count, const float* x, int64_t x_stride, int64_t m, float* y,
            int64_t y_stride) noexcept {
    if (m < 1) return;
    if (w.layout == quant::Layout::kStrips) {
        with_strip_kernel(w,
                          [&](const auto& kernel) { kernel.multiply(w, first, count, x, x_stride, m, y, y_stride); });
    } else {
        with_decoder(w, [&](const auto& decoder) {
            if (m > 1) return multiply_many(decoder, w, first, count, {x, x_stride, m, y, y_stride});
            for (int64_t n = 0; n < count; n += kRows) {
                multiply_one(decoder, w, first + n, smaller(kRows, count - n), x, y + n);
            }
        });
    }
    apply_multiplier(w, m, count, y, y_stride);
}

void decode_row(const quant::Matrix& w, int64_t row, float* out) noexcept {
    with_decoder(w, [&](const auto& decoder) { decode_row_with(decoder, w, row, out); });
}
