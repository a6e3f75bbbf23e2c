// Vectors of kLanes floats and what can be said about them in the compiler's own terms. Included by each ISA unit
// inside its anonymous namespace, after kLanes; the unit then adds the operations that need its instructions.

typedef float F __attribute__((vector_size(kLanes * 4)));
typedef int32_t I __attribute__((vector_size(kLanes * 4)));
typedef uint32_t U __attribute__((vector_size(kLanes * 4)));
typedef uint64_t D __attribute__((vector_size(kLanes * 4)));  // pairs of lanes
typedef uint64_t Words __attribute__((vector_size(32)));      // 32 integers of a byte each, eight to a word

constexpr int kGroup = 32;  // columns that are decoded together
constexpr int kGroupVectors = kGroup / kLanes;

struct Group {
    F v[kGroupVectors];
};

/// body(0), ..., body(n - 1) written out, so that arrays indexed by it stay in registers.
template <int n, typename Body>
[[gnu::always_inline]] inline void unrolled(const Body& body) {
    if constexpr (n > 0) {
        unrolled<n - 1>(body);
        body(n - 1);
    }
}

template <int n>
struct Number {
    static constexpr int value = n;
};

// ---- single numbers (own copies: an inline function of a header would leave the unit as a weak symbol) ----------

template <typename To, typename From>
[[gnu::always_inline]] inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

[[gnu::always_inline]] inline uint16_t read_u16(const void* p) {
    uint16_t value;
    __builtin_memcpy(&value, p, sizeof value);
    return value;
}

[[gnu::always_inline]] inline uint32_t read_u32(const void* p) {
    uint32_t value;
    __builtin_memcpy(&value, p, sizeof value);
    return value;
}

[[gnu::always_inline]] inline float bf16_number(const void* p) {
    return bits_as<float>(static_cast<uint32_t>(read_u16(p)) << 16);
}

/// Code 255 (NaN) reads as infinity; loaders refuse it.
[[gnu::always_inline]] inline float e8m0_number(uint8_t code) {
    return bits_as<float>(code == 0 ? 0x00400000u : static_cast<uint32_t>(code) << 23);
}

/// The NaN codes read as 480; loaders refuse them.
[[gnu::always_inline]] inline float e4m3_number(uint8_t code) {
    const float magnitude = bits_as<float>(static_cast<uint32_t>(code & 0x7f) << 20) * 0x1p120f;
    return code & 0x80 ? -magnitude : magnitude;
}

[[gnu::always_inline]] inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- vectors ------------------------------------------------------------------------------------------------------

[[gnu::always_inline]] inline F broadcast(float x) { return x - F{}; }
[[gnu::always_inline]] inline F as_float(I x) { return (F)x; }
[[gnu::always_inline]] inline I as_int(F x) { return (I)x; }

/// a where the mask is set (-1), else b.
[[gnu::always_inline]] inline F select(I mask, F a, F b) { return as_float((as_int(a) & mask) | (as_int(b) & ~mask)); }

[[gnu::always_inline]] inline F load(const float* p) {
    F x;
    __builtin_memcpy(&x, p, sizeof x);
    return x;
}

[[gnu::always_inline]] inline void store(float* p, F x) { __builtin_memcpy(p, &x, sizeof x); }

/// The first n < kLanes numbers, then zeros.
inline F load_first(const float* p, int64_t n) {
    float buffer[kLanes] = {};
    for (int64_t i = 0; i < n; ++i) buffer[i] = p[i];
    return load(buffer);
}

inline void store_first(float* p, F x, int64_t n) {
    float buffer[kLanes];
    store(buffer, x);
    for (int64_t i = 0; i < n; ++i) p[i] = buffer[i];
}

/// Calls body(i, load, store) for every vector of [0, n); the last one may be shorter, and is padded with zeros.
template <typename Body>
[[gnu::always_inline]] inline void for_vectors(int64_t n, Body body) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) {
        body(
            [i](const float* p) __attribute__((always_inline)) { return load(p + i); },
            [i](float* p, F x) __attribute__((always_inline)) { store(p + i, x); }, int64_t{kLanes});
    }
    if (i < n) {
        body([i, n](const float* p) { return load_first(p + i, n - i); },
             [i, n](float* p, F x) { store_first(p + i, x, n - i); }, n - i);
    }
}

/// Calls body(i, vector) for all of x [n], the last vector filled up with zeros.
template <typename Body>
[[gnu::always_inline]] inline void for_numbers(const float* x, int64_t n, Body body) {
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes) body(i, load(x + i));
    if (i < n) body(i, load_first(x + i, n - i));
}
