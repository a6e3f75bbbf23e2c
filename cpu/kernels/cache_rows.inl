// Rows of a KV cache (src/quant/kv_row.h) and the transform before some of them. Same bits as the reference.

// ---- decoding ---------------------------------------------------------------------------------------------------

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
               float* out, int64_t out_stride) noexcept {
    using quant::KvFormat;
    const Table table = make_table(kE2M1);
    for (int64_t i = 0; i < count; ++i, out += out_stride) {
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

// ---- encoding, as quant::encode_kv_row ---------------------------------------------------------------------------

/// The first n of the numbers, cut to the size of a number of To.
template <typename To, typename From>
[[gnu::always_inline]] inline void store_narrow(uint8_t* out, From numbers, int64_t n) {
    const To narrow = __builtin_convertvector(numbers, To);
    if (n == kLanes)
        __builtin_memcpy(out, &narrow, sizeof narrow);
    else
        __builtin_memcpy(out, &narrow, static_cast<size_t>(n) * sizeof narrow / kLanes);
}

typedef uint16_t Halves __attribute__((vector_size(kLanes * 2)));
typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
typedef uint8_t HalfBytes __attribute__((vector_size(kLanes / 2)));

inline uint8_t* encode_bf16_numbers(const float* x, int64_t n, uint8_t* out) {
    for_numbers(x, n, [&](int64_t i, F numbers) {
        store_narrow<Halves>(out + 2 * i, (U)to_bf16(numbers) >> 16, smaller(kLanes, n - i));
    });
    return out + 2 * n;
}

/// Codes of numbers that e4m3 holds.
[[gnu::always_inline]] inline U e4m3_codes(F x) {
    const F magnitude = as_float(as_int(x) & 0x7fffffff), anchor = broadcast(0x1p14f);
    const I normal = (as_int(magnitude) >> 20) - 960, subnormal = as_int(magnitude + anchor) - as_int(anchor);
    const I code = select(magnitude < broadcast(0x1p-6f), subnormal, select(x != x, I{} + 0x7f, normal));
    return (U)code | ((U)as_int(x) >> 24 & 0x80);
}

inline uint8_t* encode_fp8_row(const float* x, int64_t width, int64_t rope, uint8_t* out) {
    constexpr int64_t kScaled = 64;
    const int64_t plain = width - rope;
    uint8_t* scales = out + plain + 2 * rope;
    for (int64_t k = 0; k < plain; k += kScaled) {
        const int64_t size = smaller(kScaled, plain - k);
        const PowerScale scale = e4m3_scale(largest_magnitude(x + k, size));
        for_numbers(x + k, size, [&](int64_t i, F numbers) {
            store_narrow<Bytes>(out + k + i, e4m3_codes(to_e4m3(numbers * broadcast(scale.inverse))),
                                smaller(kLanes, size - i));
        });
        *scales++ = static_cast<uint8_t>(bits_as<uint32_t>(scale.scale) >> 23);
    }
    encode_bf16_numbers(x + plain, rope, out + plain);
    return scales;
}

/// Nearest e2m1 code, ties to even, saturating; NaN as the largest.
[[gnu::always_inline]] inline U e2m1_codes(F x) {
    const U bits = (U)as_int(x), magnitude = bits & 0x7fffffff;
    const F anchor = broadcast(0x1p22f);  // whose last place is the step below 1
    const I small = as_int((F)magnitude + anchor) - as_int(anchor);
    const I large = (I)((magnitude + 0x1fffff + (magnitude >> 22 & 1)) >> 22) - 252;
    const I code = select((F)magnitude < broadcast(1.0f), small, select(large < 7, large, I{} + 7));
    return (U)code | (bits >> 28 & 8);
}

/// 2^k, the smallest power of two with max(largest, 6 * 2^-126) <= 6 * 2^k; and 2^-k.
inline PowerScale e2m1_scale(float largest) {
    const uint32_t bits = bits_as<uint32_t>(largest > 0x1.8p-124f ? largest : 0x1.8p-124f);
    const int k = static_cast<int>(bits >> 23) - (127 + 2) + ((bits & 0x7fffff) > 0x400000 ? 1 : 0);
    return {bits_as<float>(static_cast<uint32_t>(k + 127) << 23), bits_as<float>(static_cast<uint32_t>(127 - k) << 23)};
}

inline uint8_t* encode_fp4_row(const float* x, int64_t width, uint8_t* out) {
    uint8_t* scales = out + width / 2;
    for (int64_t k = 0; k < width; k += kGroup) {
        const int64_t size = smaller(kGroup, width - k);
        const PowerScale scale = e2m1_scale(largest_magnitude(x + k, size));
        for_numbers(x + k, size, [&](int64_t i, F numbers) {
            const D pairs = (D)e2m1_codes(numbers * broadcast(scale.inverse));
            const HalfBytes packed = __builtin_convertvector((pairs | pairs >> 28) & 0xff, HalfBytes);
            __builtin_memcpy(out + (k + i) / 2, &packed, static_cast<size_t>(smaller(kLanes, size - i)) / 2);
        });
        *scales++ = static_cast<uint8_t>(bits_as<uint32_t>(scale.scale) >> 23);
    }
    return scales;
}

inline uint8_t* encode_fp8_f32_row(const float* x, int64_t width, int64_t rope, uint8_t* out) {
    constexpr int64_t kScaled = 64;
    for (int64_t k = 0; k < width - rope; k += kScaled) {
        float group[kScaled];
        const int64_t size = smaller(kScaled, width - rope - k);
        round_e4m3_groups<kScaled>(x + k, 1.0f, group, size);
        __builtin_memcpy(out + 4 * k, group, static_cast<size_t>(size) * 4);
    }
    const int64_t plain = width - rope;
    __builtin_memcpy(out + 4 * plain, x + plain, static_cast<size_t>(rope) * 4);
    return out + 4 * width;
}

void encode_kv(quant::KvFormat format, const float* x, int64_t width, int64_t rope, std::byte* row) noexcept {
    using quant::KvFormat;
    auto* const begin = reinterpret_cast<uint8_t*>(row);
    uint8_t* end = begin;
    switch (format) {
        case KvFormat::kF32:
            __builtin_memcpy(begin, x, static_cast<size_t>(width) * 4);
            return;
        case KvFormat::kFp8F32:
            encode_fp8_f32_row(x, width, rope, begin);
            return;
        case KvFormat::kBF16:
            encode_bf16_numbers(x, width, begin);
            return;
        case KvFormat::kFp8:
            end = encode_fp8_row(x, width, rope, begin);
            break;
        case KvFormat::kFp4:
            end = encode_fp4_row(x, width, begin);
            break;
    }
    while ((end - begin) % 4 != 0) *end++ = 0;
}

void hadamard(float* x, int64_t n) noexcept {
    for (int64_t first = 0; first < n; first += kLanes * kLanes) {
        F rows[kLanes] = {};  // transposed, neighbours inside a vector become whole vectors
        const int64_t count = smaller(kLanes, (n - first + kLanes - 1) / kLanes), last = smaller(kLanes, n);
        for (int64_t i = 0; i < count; ++i) {
            const float* at = x + first + i * kLanes;
            rows[i] = n < kLanes ? load_first(at, n) : load(at);
        }
        transpose(rows);
        for (int half = 1; half < kLanes; half *= 2) {
            for (int i = 0; i < kLanes && half < last; ++i) {
                if (i & half) continue;
                const F a = rows[i], b = rows[i + half];
                rows[i] = a + b;
                rows[i + half] = a - b;
            }
        }
        transpose(rows);
        for (int64_t i = 0; i < count; ++i) {
            float* at = x + first + i * kLanes;
            n < kLanes ? store_first(at, rows[i], n) : store(at, rows[i]);
        }
    }
    for (int64_t half = kLanes; half < n; half *= 2) {
        for (int64_t i = 0; i < n; i += kLanes) {
            if (i & half) continue;
            const F a = load(x + i), b = load(x + i + half);
            store(x + i, a + b);
            store(x + i + half, a - b);
        }
    }
    const F factor = broadcast(1.0f) / square_root(broadcast(static_cast<float>(n)));
    for_vectors(n, [&](auto get, auto put, int64_t) { put(x, get(x) * factor); });
}
