// The largest of many numbers, and the exponentials that sampling weighs them by.

/// Floats as integers of the same order, -0 as 0, NaN as `nan`.
[[gnu::always_inline]] inline I ordered(F x, int32_t nan) {
    const I bits = as_int(x + F{});
    const I key = bits ^ ((bits >> 31) & 0x7fffffff), is_nan = x != x;
    return (key & ~is_nan) | (nan & is_nan);
}

constexpr int32_t kLowestKey = -0x7fffffff - 1;         // of no number
constexpr int32_t kMinusInfinityKey = -0x7f800000 - 1;  // ordered(-infinity)

[[gnu::always_inline]] inline I lane_numbers() {
    I numbers;
    for (int i = 0; i < kLanes; ++i) numbers[i] = i;
    return numbers;
}

[[gnu::always_inline]] inline I select(I mask, I a, I b) { return (a & mask) | (b & ~mask); }

int64_t largest(const float* x, int64_t n) noexcept {
    const I lanes = lane_numbers();
    I best = I{} + kLowestKey, where = lanes;
    for_numbers(
        x, n, [&](int64_t i, F numbers) __attribute__((always_inline)) {
            const I index = lanes + static_cast<int32_t>(i);
            const I key = select(index < static_cast<int32_t>(n), ordered(numbers, 0x7fffffff), I{} + kLowestKey);
            const I better = key > best;
            best = select(better, key, best);
            where = select(better, index, where);
        });
    int winner = 0;
    for (int l = 1; l < kLanes; ++l) {
        if (best[l] > best[winner] || (best[l] == best[winner] && where[l] < where[winner])) winner = l;
    }
    return where[winner];
}

/// Calls body(keys) for all of keys [n], the last vector filled up with kLowestKey.
template <typename Body>
[[gnu::always_inline]] inline void for_keys(const int32_t* keys, int64_t n, Body body) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        I key;
        __builtin_memcpy(&key, keys + i, sizeof key);
        body(key);
    }
    if (i == n) return;
    I key = I{} + kLowestKey;
    __builtin_memcpy(&key, keys + i, static_cast<size_t>(n - i) * sizeof(int32_t));
    body(key);
}

[[gnu::always_inline]] inline int64_t sum_of_lanes(I x) {
    int64_t sum = 0;
    for (int l = 0; l < kLanes; ++l) sum += x[l];
    return sum;
}

/// The keys in [low, high] to the front: never behind the place that they are read from.
inline void keep_range(int32_t* keys, int64_t n, int32_t low, int32_t high) {
    int32_t* out = keys;
    const int32_t* from = keys;
    for_keys(keys, n, [&](I key) __attribute__((always_inline)) {
        const int64_t left = keys + n - from;
        uint32_t bits = mask_bits(~((key < low) | (key > high)));
        if (left < kLanes) bits &= (1u << left) - 1;
        for (; bits != 0; bits &= bits - 1) *out++ = from[__builtin_ctz(bits)];
        from += kLanes;
    });
}

/// A search over the integers that stand for floats: every pass over the keys counts those at or above three borders
/// and leaves a quarter of the range; when a quarter of the keys is left, the others go. It ends early when a border
/// has exactly k.
float kth_largest(const float* x, int64_t n, int64_t k, int32_t* work) noexcept {
    constexpr int kBorders = 3;
    I lowest = I{} + 0x7fffffff, highest = I{} + kLowestKey;
    const I lanes = lane_numbers();
    for_numbers(
        x, n, [&](int64_t i, F numbers) __attribute__((always_inline)) {
            const int64_t count = smaller(kLanes, n - i);
            const I key = ordered(numbers, kMinusInfinityKey), there = lanes < static_cast<int32_t>(count);
            __builtin_memcpy(work + i, &key, static_cast<size_t>(count) * sizeof(int32_t));
            lowest = select(there & (key < lowest), key, lowest);
            highest = select(there & (key > highest), key, highest);
        });
    int64_t low = lowest[0], high = highest[0];
    for (int l = 1; l < kLanes; ++l) {
        low = lowest[l] < low ? lowest[l] : low;
        high = highest[l] > high ? highest[l] : high;
    }
    int64_t from_low = n, above_high = 0;  // keys >= low, at least k; keys > high, fewer than k
    while (low < high && from_low != k) {
        int64_t border[kBorders];
        I count[kBorders] = {};
        for (int b = 0; b < kBorders; ++b) border[b] = low + ((high - low) * (b + 1) + kBorders) / (kBorders + 1);
        for_keys(
            work, n, [&](I key) __attribute__((always_inline)) {
                for (int b = 0; b < kBorders; ++b) count[b] -= key > static_cast<int32_t>(border[b] - 1);
            });
        for (int b = kBorders - 1; b >= 0; --b) {
            const int64_t reached = sum_of_lanes(count[b]);
            if (reached >= k) {
                low = border[b];
                from_low = reached;
                break;
            }
            high = border[b] - 1;
            above_high = reached;
        }
        if ((from_low - above_high) * 4 > n) continue;
        keep_range(work, n, static_cast<int32_t>(low), static_cast<int32_t>(high));
        k -= above_high;
        n = from_low -= above_high;
        above_high = 0;
    }
    I least = I{} + 0x7fffffff;  // the least key from `low` on is the k-th
    for_keys(
        work, n, [&](I key) __attribute__((always_inline)) {
            least = select((key >= static_cast<int32_t>(low)) & (key < least), key, least);
        });
    int32_t key = least[0];
    for (int l = 1; l < kLanes; ++l) key = least[l] < key ? least[l] : key;
    return bits_as<float>(key ^ ((key >> 31) & 0x7fffffff));
}

int64_t at_least(const float* x, int64_t n, float least, int32_t* out) noexcept {
    const int32_t* const begin = out;
    const F border = broadcast(least);
    for_numbers(
        x, n, [&](int64_t i, F numbers) __attribute__((always_inline)) {
            uint32_t bits = mask_bits(numbers >= border);
            if (n - i < kLanes) bits &= (1u << (n - i)) - 1;
            for (; bits != 0; bits &= bits - 1) *out++ = static_cast<int32_t>(i) + __builtin_ctz(bits);
        });
    return out - begin;
}

float exp_sum(const float* x, int64_t n, float largest, float factor, float least, float* out) noexcept {
    const F top = broadcast(largest), slope = broadcast(factor), border = broadcast(least);
    F sum = {};
    for_vectors(n, [&](auto get, auto put, int64_t left) {
        const F number = get(x);
        F e = select(number >= border, exponential((number - top) * slope), F{});
        put(out, e);
        if (left < kLanes) e = get(out);  // zeros behind the end
        sum = sum + e;
    });
    return sum_of(sum);
}
