// Rows of KV caches (src/quant/kv_row.h) on a card: written by a warp, read four channels at a time. Every format gives
// bit for bit what encode_kv_row() and decode_kv_row() give, which say what the bytes mean.
//
// A warp holds a vector as LaneVector: lane l has channels l, l + 32, l + 64, ..., so that a group of 32 or 64 channels
// with a common scale is one or two numbers of every lane.
#pragma once

#include "cuda/kernels/block.h"
#include "cuda/kernels/codes.h"
#include "cuda/kernels/four.h"
#include "cuda/run.h"
#include "src/quant/kv_row.h"
#include "src/quant/scalar.h"

#include <cmath>

namespace thermocline::cuda {

using quant::KvFormat;

inline constexpr int kMaxVector = 512;  // channels of a key

struct LaneVector {
    static constexpr int kCount = kMaxVector / kWarp;
    float x[kCount];
};

/// from [width] -> all lanes; what is behind the width is zero.
template <typename Thread, typename From>
GPU_CODE LaneVector load_vector(Thread& t, const From& from, int width) {
    LaneVector v;
#pragma unroll
    for (int i = 0; i < LaneVector::kCount; ++i) {
        const int c = i * kWarp + t.lane();
        v.x[i] = c < width ? from[c] : 0.0f;
    }
    return v;
}

/// Walsh-Hadamard transform scaled by width^-0.5; width a power of two.
template <typename Thread>
GPU_CODE void hadamard(Thread& t, LaneVector& v, int width) {
    for (int half = 1; half < kWarp; half *= 2) {
        if (half >= width) break;
#pragma unroll
        for (int i = 0; i < LaneVector::kCount; ++i) {
            if (i * kWarp >= width) break;
            const float other = t.shuffle_xor(v.x[i], half);
            v.x[i] = t.lane() & half ? other - v.x[i] : v.x[i] + other;
        }
    }
    for (int half = 1; half < LaneVector::kCount; half *= 2) {
#pragma unroll
        for (int i = 0; i < LaneVector::kCount; ++i) {
            if (half * kWarp >= width || (i & half) != 0) continue;
            const float a = v.x[i], b = v.x[i + half];
            v.x[i] = a + b;
            v.x[i + half] = a - b;
        }
    }
    const float scale = 1.0f / sqrtf(static_cast<float>(width));
#pragma unroll
    for (int i = 0; i < LaneVector::kCount; ++i) v.x[i] *= scale;
}

/// e2m1_to_float() without its table.
GPU_CODE inline float e2m1_number(uint32_t code) {
    const float x = quant::expand_small_float<1, 1>(code & 7);
    return code & 8 ? -x : x;
}

/// For the scale of a group, which NaN does not disturb.
GPU_CODE inline float magnitude(float x) { return fmaxf(0.0f, fabsf(x)); }

/// The scale exponent of channels [64 i, 64 i + 64) of kFp8, of which [0, plain) count. i: pair of numbers of a lane.
template <typename Thread>
GPU_CODE int fp8_exponent(Thread& t, const LaneVector& v, int pair, int plain) {
    const int c = pair * 2 * kWarp + t.lane();
    const float low = c < plain ? magnitude(v.x[2 * pair]) : 0.0f;
    const float high = c + kWarp < plain ? magnitude(v.x[2 * pair + 1]) : 0.0f;
    return quant::fp8_scale_exponent(warp_max(t, fmaxf(low, high)));
}

/// Channels [c - lane, c - lane + 32) of a row of kFp4 and their scale.
template <typename Thread>
GPU_CODE void encode_fp4(Thread& t, float x, int c, int width, std::byte* out) {
    const int exponent = quant::fp4_scale_exponent(warp_max(t, c < width ? magnitude(x) : 0.0f));
    const int code = quant::float_to_e2m1(x * quant::pow2(-exponent));
    const int next = t.shuffle_xor(code, 1);
    if (c < width && c % 2 == 0) out[c / 2] = static_cast<std::byte>(code | next << 4);
    if (t.lane() == 0) out[width / 2 + c / kWarp] = std::byte{quant::exponent_to_e8m0(exponent)};
}

/// One warp writes a row of a cache. out aligned to 4 bytes.
template <typename Thread>
GPU_CODE void encode_row(Thread& t, KvFormat format, const LaneVector& v, int width, int rope, std::byte* out) {
    const int plain = format == KvFormat::kFp8 || format == KvFormat::kFp8F32 ? width - rope : 0;
    const int codes = format == KvFormat::kFp4 ? width / 2 : width + rope;  // bytes before the scales
#pragma unroll
    for (int pair = 0; pair < LaneVector::kCount / 2; ++pair) {
        if (pair * 2 * kWarp >= width) break;
        const int exponent = plain > 0 ? fp8_exponent(t, v, pair, plain) : 0;
        if (format == KvFormat::kFp8 && t.lane() == 0 && pair * 2 * kWarp < plain)
            out[codes + pair] = std::byte{quant::exponent_to_e8m0(exponent)};
#pragma unroll
        for (int i = 2 * pair; i < 2 * pair + 2; ++i) {
            const int c = i * kWarp + t.lane();
            if (i * kWarp >= width) break;
            if (format == KvFormat::kFp4) {
                encode_fp4(t, v.x[i], c, width, out);
            } else if (c < plain) {
                const uint8_t code = quant::float_to_e4m3(v.x[i] * quant::pow2(-exponent));
                if (format == KvFormat::kFp8)
                    out[c] = std::byte{code};
                else
                    reinterpret_cast<float*>(out)[c] = quant::e4m3_to_float(code) * quant::pow2(exponent);
            } else if (c < width) {
                if (format == KvFormat::kBF16 || format == KvFormat::kFp8)
                    reinterpret_cast<uint16_t*>(out + plain)[c - plain] = quant::float_to_bf16(v.x[i]);
                else
                    reinterpret_cast<float*>(out)[c] = v.x[i];
            }
        }
    }
    if (format != KvFormat::kFp8 && format != KvFormat::kFp4) return;
    const int group = format == KvFormat::kFp8 ? 2 * kWarp : kWarp;
    const int used = codes + ((format == KvFormat::kFp8 ? plain : width) + group - 1) / group;
    if (t.lane() < (4 - used % 4) % 4) out[used + t.lane()] = std::byte{0};
}

/// What the vector is after encode_row() and decoding.
template <typename Thread>
GPU_CODE void round_vector(Thread& t, KvFormat format, LaneVector& v, int width, int rope) {
    if (format == KvFormat::kF32) return;
    const int plain = format == KvFormat::kFp8 || format == KvFormat::kFp8F32 ? width - rope : 0;
#pragma unroll
    for (int pair = 0; pair < LaneVector::kCount / 2; ++pair) {
        if (pair * 2 * kWarp >= width) break;
        const int exponent = plain > 0 ? fp8_exponent(t, v, pair, plain) : 0;
#pragma unroll
        for (int i = 2 * pair; i < 2 * pair + 2; ++i) {
            float& x = v.x[i];
            const int c = i * kWarp + t.lane();
            if (format == KvFormat::kFp4) {
                const int own = quant::fp4_scale_exponent(warp_max(t, c < width ? magnitude(x) : 0.0f));
                x = e2m1_number(quant::float_to_e2m1(x * quant::pow2(-own))) * quant::pow2(own);
            } else if (c < plain) {
                x = quant::e4m3_to_float(quant::float_to_e4m3(x * quant::pow2(-exponent))) * quant::pow2(exponent);
            } else if (format != KvFormat::kFp8F32) {
                x = quant::round_bf16(x);
            }
        }
    }
}

/// Row `index` of a cache that is no ring, without the 64-bit divisions of row().
GPU_CODE inline const std::byte* entry_row(const CacheView& cache, int index) {
    const auto entry = static_cast<uint32_t>(index), rows = static_cast<uint32_t>(cache.page_rows);
    return cache.pages[entry / rows] + entry % rows * cache.row_bytes;
}

/// Channels [c, c + 4) of a row, c a multiple of 4; width and rope as well.
GPU_CODE inline Four decode_four(KvFormat format, const std::byte* row, int c, int width, int rope) {
    Four four;
    if (format == KvFormat::kF32 || format == KvFormat::kFp8F32)
        return load_four(reinterpret_cast<const float*>(row) + c);
    if (format == KvFormat::kFp4) {
        const uint32_t codes = load_at<uint16_t>(row + c / 2);
        const float scale = quant::e8m0_to_float(load_at<uint8_t>(row + width / 2 + c / kWarp));
#pragma unroll
        for (int i = 0; i < 4; ++i) four.x[i] = e2m1_number(codes >> (4 * i)) * scale;
        return four;
    }
    const int plain = format == KvFormat::kFp8 ? width - rope : 0;
    if (c < plain) {
        const uint32_t codes = load_at<uint32_t>(row + c);
        const float scale = quant::e8m0_to_float(load_at<uint8_t>(row + width + rope + c / (2 * kWarp)));
#pragma unroll
        for (int i = 0; i < 4; ++i) four.x[i] = quant::e4m3_to_float(static_cast<uint8_t>(codes >> (8 * i))) * scale;
        return four;
    }
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const uint32_t pair = load_at<uint32_t>(row + plain + 2 * (c + i - plain));
        four.x[i] = quant::bf16_to_float(static_cast<uint16_t>(pair));
        four.x[i + 1] = quant::bf16_to_float(static_cast<uint16_t>(pair >> 16));
    }
    return four;
}

/// The cosine and sine of a lane's channel are those of its pair; `rotation` [dims] is of the row.
template <typename Thread>
GPU_CODE void rotate_vector(Thread& t, LaneVector& v, const float* rotation, int width, int dims, float sign) {
#pragma unroll
    for (int i = 0; i < LaneVector::kCount; ++i) {
        if (i * kWarp >= width) break;
        const int c = i * kWarp + t.lane(), at = c - (width - dims);
        const float other = t.shuffle_xor(v.x[i], 1);
        if (at < 0 || c >= width) continue;
        const float cosine = rotation[at & ~1], sine = sign * rotation[at | 1];
        v.x[i] = at % 2 == 0 ? v.x[i] * cosine - other * sine : other * sine + v.x[i] * cosine;
    }
}

/// What is done to vectors that go into attention: any of ops::RmsNorm, ops::Rope and ops::RoundKv, in this order.
/// Grid: enough warps for the runs of `width` channels.
struct FinishVectors {
    static constexpr const char* kName = "FinishVectors";
    const float* in;         // [runs, width]
    float* out;              // [runs, width], may be `in`
    const float* weight;     // [width] or null
    const float* rotations;  // [T, dims]; null: not turned
    int64_t runs;
    int32_t heads;  // runs of a row
    int32_t width, dims;
    int32_t rope;  // channels of the cache that stay bf16
    float eps, sign;
    KvFormat format;  // kF32: not rounded
    bool normalise;
    bool transform;  // by hadamard(), before it is rounded

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const int64_t run = t.block() * t.warps() + t.warp();
        if (run >= runs) return;
        LaneVector v = load_vector(t, in + run * width, width);
        if (normalise) norm_vector(t, v);
        if (rotations != nullptr) rotate_vector(t, v, rotations + run / heads * dims, width, dims, sign);
        if (transform) hadamard(t, v, width);
        round_vector(t, format, v, width, rope);
#pragma unroll
        for (int i = 0; i < LaneVector::kCount; ++i)
            if (i * kWarp + t.lane() < width) out[run * width + i * kWarp + t.lane()] = v.x[i];
    }

    template <typename Thread>
    GPU_CODE void norm_vector(Thread& t, LaneVector& v) const {
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < LaneVector::kCount; ++i) sum = fmaf(v.x[i], v.x[i], sum);
        const float factor = 1.0f / sqrtf(warp_sum(t, sum) / static_cast<float>(width) + eps);
#pragma unroll
        for (int i = 0; i < LaneVector::kCount; ++i) {
            const int c = i * kWarp + t.lane();
            if (c < width) v.x[i] = factor * v.x[i] * (weight ? weight[c] : 1.0f);
        }
    }
};

/// As ops::StoreWindow. Grid: rows; one warp.
struct StoreWindow {
    static constexpr const char* kName = "StoreWindow";
    const float* kv;  // [T, width]
    Batch batch;
    int32_t cache;  // of the plan
    int32_t width, rope;
    KvFormat format;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const int32_t index = batch.segment_of[t.block()];
        const Segment& segment = batch.segments[index];
        const CacheView& ring = batch.caches[index * batch.cache_count + cache];
        if (t.block() - segment.first_row < segment.rows - ring.ring_rows) return;  // a later row takes its place
        const LaneVector v = load_vector(t, kv + t.block() * width, width);
        encode_row(t, format, v, width, rope, ring.row(batch.positions[t.block()]));
    }
};

}  // namespace thermocline::cuda
