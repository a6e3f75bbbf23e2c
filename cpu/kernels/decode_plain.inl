// Decoders of the formats without blocks: numbers, and codes with scales beside them.
//
// A decoder has a type Chunk (what one row needs for up to 256 columns), begin() that fills it and group() that gives
// 32 columns as float32, before the multiplier of the matrix; offset() is the place of a column in the packed row.
// Chunks start at multiples of 256 columns, so blocks never straddle them.

constexpr int kChunk = 256;

[[gnu::always_inline]] inline const uint8_t* bytes(const std::byte* p) { return reinterpret_cast<const uint8_t*>(p); }

/// Columns [column, column + count) of a matrix.
struct Span {
    int64_t column;
    int count;                // <= kChunk
    int64_t scale_index;      // column / scale_cols
    int64_t scale_remainder;  // column % scale_cols
};

inline Span make_span(const quant::Matrix& w, int64_t column) {
    Span span = {column, static_cast<int>(smaller(kChunk, w.cols - column)), 0, 0};
    if (w.scales) {
        span.scale_index = column / w.scale_cols;
        span.scale_remainder = column % w.scale_cols;
    }
    return span;
}

/// Where one row's codes and scales begin.
struct Row {
    const uint8_t* codes;
    const uint8_t* scales;
    const uint8_t* zero_points;
    int zero_shift;
};

inline Row make_row(const quant::Matrix& w, int64_t n) {
    Row row = {bytes(w.data) + n * w.row_bytes, nullptr, nullptr, 0};
    if (w.scales) row.scales = bytes(w.scales) + n / w.scale_rows * w.scale_stride;
    if (w.zero_points) {
        row.zero_points = bytes(w.zero_points) + n / 8 * ((w.cols + w.scale_cols - 1) / w.scale_cols) * 4;
        row.zero_shift = static_cast<int>(4 * (n % 8));
    }
    return row;
}

[[gnu::always_inline]] inline Group scaled(Group group, float scale) {
    for (F& v : group.v) v = v * broadcast(scale);
    return group;
}

// ---- numbers ------------------------------------------------------------------------------------------------------

struct F32Codes {
    static constexpr int kBits = 32;
    static constexpr float kUnit = 1.0f;
    [[gnu::always_inline]] Group group(const uint8_t* p) const {
        Group out;
        for (int i = 0; i < kGroupVectors; ++i) __builtin_memcpy(&out.v[i], p + 4 * kLanes * i, sizeof(F));
        return out;
    }
};

struct F16Codes {
    static constexpr int kBits = 16;
    static constexpr float kUnit = 1.0f;
    [[gnu::always_inline]] Group group(const uint8_t* p) const {
        Group out;
        for (int i = 0; i < kGroupVectors; ++i) out.v[i] = load_f16(p + 2 * kLanes * i);
        return out;
    }
};

[[gnu::always_inline]] inline F load_bf16(const void* p) { return as_float(load_u16(p) << 16); }

struct BF16Codes {
    static constexpr int kBits = 16;
    static constexpr float kUnit = 1.0f;
    [[gnu::always_inline]] Group group(const uint8_t* p) const {
        Group out;
        for (int i = 0; i < kGroupVectors; ++i) out.v[i] = load_bf16(p + 2 * kLanes * i);
        return out;
    }
};

/// In units of 2^-8: e4m3_group() moves the fields of the codes to those of f16, whose bias is larger by 8. The unit
/// goes into the scales, which must be below 2^119.
struct E4M3Codes {
    static constexpr int kBits = 8;
    static constexpr float kUnit = 256.0f;
    [[gnu::always_inline]] Group group(const uint8_t* p) const { return e4m3_group(p); }
};

constexpr float kE2M1[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                             -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};
/// The same numbers as e4m3 codes.
/// Twice the numbers, plus 12.
constexpr uint8_t kE2M1Digits[16] = {12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0};
constexpr uint8_t kE2M1AsE4M3[16] = {0, 48, 56, 60, 64, 68, 72, 76, 128, 176, 184, 188, 192, 196, 200, 204};
constexpr float kSigned4[16] = {-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7};
constexpr float kUnsigned4[16] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
constexpr int8_t kIq4Codes[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};
constexpr float kIq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

struct PairCodes {
    static constexpr int kBits = 4;
    static constexpr float kUnit = 1.0f;
    Table table;
    [[gnu::always_inline]] Group group(const uint8_t* p) const { return look_up(table, pair_codes(p)); }
};

// ---- scales -------------------------------------------------------------------------------------------------------

/// out[i] = number(index) for every kStep columns of the span, zeros behind them; `number` reads one scale.
template <int kStep, typename Number>
[[gnu::always_inline]] inline void read_scales(const quant::Matrix& w, const Span& span, float* out, Number number) {
    const int steps = (span.count + kStep - 1) / kStep;
    int64_t index = span.scale_index, remainder = span.scale_remainder;
    float value = number(index);
    for (int i = 0; i < steps; ++i) {
        if (remainder >= w.scale_cols) {
            remainder -= w.scale_cols;
            value = number(++index);
        }
        out[i] = value;
        remainder += kStep;
    }
    // The last group of 32 may be decoded beyond the columns; what it gives there must be finite.
    for (int i = steps; i < kChunk / kStep; ++i) out[i] = 0.0f;
}

template <int kStep>
[[gnu::noinline]] void fill_any_scales(const quant::Matrix& w, const uint8_t* p, const Span& span, float* out) {
    using quant::Format;
    switch (w.scale_format) {
        case Format::kE8M0:
            return read_scales<kStep>(w, span, out, [p](int64_t i) { return e8m0_number(p[i]); });
        case Format::kE4M3:
            return read_scales<kStep>(w, span, out, [p](int64_t i) { return e4m3_number(p[i]); });
        case Format::kBF16:
            return read_scales<kStep>(w, span, out, [p](int64_t i) { return bf16_number(p + 2 * i); });
        case Format::kF16:
            return read_scales<kStep>(w, span, out, [p](int64_t i) { return f16_number(p + 2 * i); });
        default:
            return read_scales<kStep>(w, span, out, [p](int64_t i) { return bits_as<float>(read_u32(p + 4 * i)); });
    }
}

/// The scales of a row over a span, one for every kStep columns. The trained forms of MXFP4 and FP8 have short cuts.
template <int kStep>
[[gnu::always_inline]] inline void fill_scales(const quant::Matrix& w, const uint8_t* p, const Span& span, float* out) {
    const bool full_e8m0 = w.scale_format == quant::Format::kE8M0 && span.count == kChunk;
    if (full_e8m0 && w.scale_cols == kStep) {
        for (int i = 0; i < kChunk / kStep; ++i) out[i] = e8m0_number(p[span.scale_index + i]);
    } else if (full_e8m0 && w.scale_cols == 128) {
        for (int i = 0; i < kChunk / kStep; ++i) out[i] = e8m0_number(p[span.scale_index + i * kStep / 128]);
    } else {
        fill_any_scales<kStep>(w, p, span, out);
    }
}

/// What vector i of group g needs of an array with one number for every kStep columns.
template <int kStep>
[[gnu::always_inline]] inline F step_values(const float* numbers, int g, int i) {
    if constexpr (kStep == 1) {
        return load(numbers + kGroup * g + kLanes * i);
    } else {
        return broadcast(numbers[kGroup / kStep * g + kLanes * i / kStep]);
    }
}

template <int kStep>
[[gnu::always_inline]] inline void apply_scales(Group& group, const float* scales, int g) {
    for (int i = 0; i < kGroupVectors; ++i) group.v[i] = group.v[i] * step_values<kStep>(scales, g, i);
}

// ---- decoders -----------------------------------------------------------------------------------------------------

template <typename PlainCodes>
struct Unscaled {
    static constexpr int64_t offset(int64_t column) { return column * PlainCodes::kBits / 8; }
    PlainCodes codes;

    struct Chunk {
        const uint8_t* data;
    };
    [[gnu::always_inline]] void begin(Chunk& chunk, const quant::Matrix&, const Row&, const Span&,
                                      const uint8_t* data) const {
        chunk.data = data;
    }
    [[gnu::always_inline]] Group group(const Chunk& chunk, int g) const {
        Group out = codes.group(chunk.data + offset(kGroup * g));
        if constexpr (PlainCodes::kUnit != 1.0f) out = scaled(out, PlainCodes::kUnit);
        return out;
    }
};

/// kStep columns share a scale: 32 (every size that 32 divides), 16 or 1 (any size).
template <typename PlainCodes, int kStep>
struct Scaled {
    static constexpr int64_t offset(int64_t column) { return column * PlainCodes::kBits / 8; }
    PlainCodes codes;

    struct Chunk {
        const uint8_t* data;
        float scales[kChunk / kStep];
    };
    [[gnu::always_inline]] void begin(Chunk& chunk, const quant::Matrix& w, const Row& row, const Span& span,
                                      const uint8_t* data) const {
        chunk.data = data;
        fill_scales<kStep>(w, row.scales, span, chunk.scales);
        if constexpr (PlainCodes::kUnit != 1.0f) {
            for (int i = 0; i < kChunk / kStep; ++i) chunk.scales[i] *= PlainCodes::kUnit;
        }
    }
    [[gnu::always_inline]] Group group(const Chunk& chunk, int g) const {
        Group out = codes.group(chunk.data + offset(kGroup * g));
        apply_scales<kStep>(out, chunk.scales, g);
        return out;
    }
};

/// Int4 with zero points: (code - zero) * scale.
template <int kStep>
struct ScaledZero {
    static constexpr int64_t offset(int64_t column) { return column / 2; }
    PairCodes codes;  // unsigned

    struct Chunk {
        const uint8_t* data;
        float scales[kChunk / kStep];
        float zeros[kChunk / kStep];
    };
    [[gnu::always_inline]] void begin(Chunk& chunk, const quant::Matrix& w, const Row& row, const Span& span,
                                      const uint8_t* data) const {
        chunk.data = data;
        fill_scales<kStep>(w, row.scales, span, chunk.scales);
        read_scales<kStep>(w, span, chunk.zeros, [&row](int64_t i) {
            return static_cast<float>((read_u32(row.zero_points + 4 * i) >> row.zero_shift) & 15);
        });
    }
    [[gnu::always_inline]] Group group(const Chunk& chunk, int g) const {
        Group out = codes.group(chunk.data + offset(kGroup * g));
        for (int i = 0; i < kGroupVectors; ++i) out.v[i] = out.v[i] - step_values<kStep>(chunk.zeros, g, i);
        apply_scales<kStep>(out, chunk.scales, g);
        return out;
    }
};

/// Calls body(decoder) with the decoder for the matrix's scales around `codes`.
template <typename PlainCodes, typename Body>
[[gnu::always_inline]] inline void with_scales(const quant::Matrix& w, const PlainCodes& codes, Body body) {
    if (!w.scales) return body(Unscaled<PlainCodes>{codes});
    if (w.scale_cols % 32 == 0 || w.scale_cols >= w.cols) return body(Scaled<PlainCodes, 32>{codes});
    if (w.scale_cols == 16) return body(Scaled<PlainCodes, 16>{codes});
    return body(Scaled<PlainCodes, 1>{codes});
}

template <typename Body>
[[gnu::always_inline]] inline void with_int4(const quant::Matrix& w, Body body) {
    if (!w.zero_points) return with_scales(w, PairCodes{make_table(kSigned4)}, body);
    const PairCodes codes = {make_table(kUnsigned4)};
    if (w.scale_cols % 32 == 0 || w.scale_cols >= w.cols) return body(ScaledZero<32>{codes});
    return body(ScaledZero<1>{codes});
}
