// Sums over and maps of float vectors.

/// Rows become columns: in log2(kLanes) rounds row i meets row i + kLanes / 2.
[[gnu::always_inline]] inline void transpose(F rows[kLanes]) {
    unrolled<__builtin_ctz(kLanes)>([&](int) __attribute__((always_inline)) {
        F next[kLanes];
        unrolled<kLanes / 2>([&](int i) __attribute__((always_inline)) {
            next[2 * i] = interleave_low(rows[i], rows[i + kLanes / 2]);
            next[2 * i + 1] = interleave_high(rows[i], rows[i + kLanes / 2]);
        });
        unrolled<kLanes>([&](int i) __attribute__((always_inline)) { rows[i] = next[i]; });
    });
}

/// Sum of the lanes by the tree of sum_lanes().
[[gnu::always_inline]] inline float sum_of(F x) {
    const F copies[4] = {x, x, x, x};
    float sums[4];
    sum_lanes(copies, sums);
    return sums[0];
}

float dot(const float* a, const float* b, int64_t n) noexcept {
    F sum = {};
    for_vectors(n, [&](auto get, auto, int64_t) { sum = fma(get(a), get(b), sum); });
    return sum_of(sum);
}

float sum_squares(const float* x, int64_t n) noexcept { return dot(x, x, n); }

void axpy(float a, const float* x, float* y, int64_t n) noexcept {
    const F factor = broadcast(a);
    for_vectors(n, [&](auto get, auto put, int64_t) { put(y, fma(factor, get(x), get(y))); });
}

void scale(float a, const float* x, const float* w, float* y, int64_t n) noexcept {
    const F factor = broadcast(a);
    if (w) {
        for_vectors(n, [&](auto get, auto put, int64_t) { put(y, factor * get(x) * get(w)); });
    } else {
        for_vectors(n, [&](auto get, auto put, int64_t) { put(y, factor * get(x)); });
    }
}

/// Nearest even; NaN stays a (quiet) NaN.
[[gnu::always_inline]] inline F to_bf16(F x) {
    const U bits = (U)x;
    const U rounded = (bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff0000;
    const U quiet = (bits | 0x00400000) & 0xffff0000;
    const I nan = (I)((bits & 0x7fffffff) > 0x7f800000);
    return select(nan, (F)quiet, (F)rounded);
}

void round_bf16(float* x, int64_t n) noexcept {
    for_vectors(n, [&](auto get, auto put, int64_t) { put(x, to_bf16(get(x))); });
}

/// Nearest e4m3 number, ties to even, saturating; NaN stays.
[[gnu::always_inline]] inline F to_e4m3(F x) {
    const I sign = as_int(x) & static_cast<int32_t>(0x80000000);
    const F magnitude = as_float(as_int(x) & 0x7fffffff);
    // Adding a number whose last place is the wanted step makes the adder round: 2^23 steps, where a step is 2^-3 of
    // the power of two below x, and 2^-9 among the subnormals.
    const I exponent = as_int(max(broadcast(0x1p-6f), magnitude)) & 0x7f800000;
    const F anchor = as_float(exponent + (20 << 23));
    const F rounded = min(broadcast(448.0f), (magnitude + anchor) - anchor);
    return select(magnitude <= broadcast(448.0f), as_float(as_int(rounded) | sign),
                  select(magnitude != magnitude, x, as_float(as_int(broadcast(448.0f)) | sign)));
}

/// 2^k, the smallest power of two with max(largest, 1e-4) <= 448 * 2^k; and 2^-k.
struct PowerScale {
    float scale, inverse;
};

[[gnu::always_inline]] inline PowerScale e4m3_scale(float largest) {
    const uint32_t bits = bits_as<uint32_t>(largest > 1e-4f ? largest : 1e-4f);
    const int k = static_cast<int>(bits >> 23) - (127 + 8) + ((bits & 0x7fffff) > 0x600000 ? 1 : 0);
    return {bits_as<float>(static_cast<uint32_t>(k + 127) << 23), bits_as<float>(static_cast<uint32_t>(127 - k) << 23)};
}

/// NaN never wins a comparison, so it does not disturb the scale of its group.
inline float largest_magnitude(const float* x, int64_t n) {
    F largest = {};
    for_vectors(n, [&](auto get, auto, int64_t) { largest = max(as_float(as_int(get(x)) & 0x7fffffff), largest); });
    float lanes[kLanes];
    store(lanes, largest);
    for (int count = kLanes / 2; count > 0; count /= 2)
        for (int i = 0; i < count; ++i) lanes[i] = lanes[i] > lanes[i + count] ? lanes[i] : lanes[i + count];
    return lanes[0];
}

template <int64_t kGroupSize>
inline void round_e4m3_groups(const float* x, float factor, float* y, int64_t n) {
    for (int64_t i = 0; i < n; i += kGroupSize) {
        const int64_t size = smaller(kGroupSize, n - i);
        const PowerScale s = e4m3_scale(largest_magnitude(x + i, size));
        for_vectors(size, [&](auto get, auto put, int64_t) {
            put(y + i, to_e4m3(get(x + i) * broadcast(s.inverse)) * broadcast(s.scale * factor));
        });
    }
}

void round_e4m3(const float* x, float factor, float* y, int64_t n) noexcept { round_e4m3_groups<128>(x, factor, y, n); }

/// The factors of some pairs are made once; then every row is passed from front to end, since rows lie apart by powers
/// of two.
void rope(float* x, int64_t stride, int64_t count, const float* rotation, int64_t dims, float sign) noexcept {
    constexpr int64_t kTogether = 64;
    F signs;
    for (int i = 0; i < kLanes; ++i) signs[i] = i % 2 ? sign : -sign;
    for (int64_t first = 0; first < dims; first += kTogether) {
        const int64_t here = smaller(kTogether, dims - first);
        F cosines[kTogether / kLanes], sines[kTogether / kLanes];
        for_numbers(
            rotation + first, here, [&](int64_t i, F numbers) __attribute__((always_inline)) {
                const D both = (D)numbers;
                cosines[i / kLanes] = (F)((both & 0xffffffff) | both << 32);
                sines[i / kLanes] = (F)((both & 0xffffffff00000000) | both >> 32) * signs;
            });
        for (int64_t r = 0; r < count; ++r) {
            float* row = x + r * stride + first;
            for (int64_t i = 0; i < here; i += kLanes) {
                const int64_t left = here - i;
                const F numbers = left >= kLanes ? load(row + i) : load_first(row + i, left);
                const F swapped = (F)((D)numbers << 32 | (D)numbers >> 32);
                const F rotated = fma(numbers, cosines[i / kLanes], swapped * sines[i / kLanes]);
                left >= kLanes ? store(row + i, rotated) : store_first(row + i, rotated, left);
            }
        }
    }
}

void route_scores(float* z, int64_t n) noexcept {
    for_vectors(n, [&](auto get, auto put, int64_t) {
        // softplus(z) = max(z, 0) + log(1 + u), u = e^-|z|; log(1 + u) = 2 artanh(s), s = u / (2 + u) <= 1/3
        const F x = get(z), u = exponential(as_float(as_int(x) | static_cast<int32_t>(0x80000000)));
        const F s = u / (broadcast(2.0f) + u), square = s * s;
        F p = broadcast(1.0f / 15.0f);  // the next term is below 2e-9
        for (int i = 13; i >= 1; i -= 2) p = fma(p, square, broadcast(1.0f / static_cast<float>(i)));
        put(z, square_root(max(F{}, x) + broadcast(2.0f) * s * p));
    });
}

void swiglu(const float* gate, const float* up, float limit, float weight, float* out, int64_t n) noexcept {
    const F high = broadcast(limit), low = -high, one = broadcast(1.0f);
    for_vectors(n, [&](auto get, auto put, int64_t) {
        const F a = min(high, get(gate));
        const F b = max(low, min(high, get(up)));
        put(out, a / (one + exponential(-a)) * b * broadcast(weight));
    });
}
