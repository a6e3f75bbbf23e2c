// Hyper-connections (deepseek-v4.md 2.2), all in float32. A row may be given to several blocks: each finds the norm
// factor anew, from the second level cache, and collapses channels of its own.
#pragma once

#include "cuda/kernels/block.h"
#include "cuda/kernels/four.h"
#include "src/quant/scalar.h"

#include <cmath>

namespace thermocline::cuda {

inline constexpr int kMaxStreams = 4;  // 1, 2 or 4: a matrix of them is spread over lanes of a warp

GPU_CODE inline float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

/// Factor of the one norm over `count` numbers, a multiple of 4; all threads, kBlockSumBytes of shared memory at 0.
template <typename Thread>
GPU_CODE float norm_factor(Thread& t, const float* x, int64_t count, float eps) {
    float sums[4] = {};
    for (int64_t i = 4 * t.id(); i < count; i += 4 * t.threads()) {
        const Four four = load_four(x + i);
        for (int j = 0; j < 4; ++j) sums[j] = fmaf(four.x[j], four.x[j], sums[j]);
    }
    const float sum = block_sum(t, (sums[0] + sums[1]) + (sums[2] + sums[3]), 0);
    return 1.0f / sqrtf(sum / static_cast<float>(count) + eps);
}

/// x = sum_i weights[i] * streams[i] over the block's share of the channels.
template <typename Thread>
GPU_CODE void collapse(Thread& t, const float* streams, const float (&weights)[kMaxStreams], int n, float* x,
                       int64_t width, int64_t parts) {
    for (int64_t i = 4 * (t.block_y() * t.threads() + t.id()); i < width; i += 4 * parts * t.threads()) {
        Four sum = {};
        for (int s = 0; s < kMaxStreams; ++s) {
            if (s >= n) break;
            const Four four = load_four(streams + s * width + i);
            for (int j = 0; j < 4; ++j) sum.x[j] = fmaf(weights[s], four.x[j], sum.x[j]);
        }
        store_four(x + i, sum);
    }
}

/// As ops::HyperIn. Grid: rows, parts; kBlockSumBytes shared.
struct HyperIn {
    static constexpr const char* kName = "HyperIn";
    const float* streams;  // [T, n, width]
    const float* mix;      // [T, n * (2 + n)]
    const float* base;     // [n * (2 + n)]
    const float* scale;    // [3]
    float* x;              // [T, width]
    float* post_comb;      // [T, n + n * n]
    int64_t width;
    int32_t n, iterations, parts;
    float hyper_eps, norm_eps;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const float* row = streams + t.block() * n * width;
        const float* m = mix + t.block() * n * (2 + n);
        const float factor = norm_factor(t, row, n * width, norm_eps);
        if (t.block_y() == 0 && t.warp() == 0) write_back(t, m, factor, post_comb + t.block() * (n + n * n));
        float pre[kMaxStreams] = {};
        for (int i = 0; i < kMaxStreams; ++i)
            if (i < n) pre[i] = sigmoid(factor * m[i] * scale[0] + base[i]) + hyper_eps;
        collapse(t, row, pre, n, x + t.block() * width, width, parts);
    }

    /// One warp: post and A, one element a lane; lane j * n + k has A[j][k], lanes behind repeat them.
    template <typename Thread>
    GPU_CODE void write_back(Thread& t, const float* m, float factor, float* out) const {
        const int e = t.lane() % (n * n);
        if (t.lane() < n) out[e] = 2.0f * sigmoid(factor * m[n + e] * scale[1] + base[n + e]);
        float a = factor * m[2 * n + e] * scale[2] + base[2 * n + e];
        float top = a;
        for (int mask = 1; mask < n; mask *= 2) top = fmaxf(top, t.shuffle_xor(top, mask));
        a = expf(a - top);
        a = a / sum_over(t, a, 1, n) + hyper_eps;
        a /= sum_over(t, a, n, n * n) + hyper_eps;
        for (int i = 1; i < iterations; ++i) {
            a /= sum_over(t, a, 1, n) + hyper_eps;
            a /= sum_over(t, a, n, n * n) + hyper_eps;
        }
        if (t.lane() < n * n) out[n + e] = a;
    }

    /// Rows of A: masks from 1 to below n; columns: from n to below n * n.
    template <typename Thread>
    GPU_CODE static float sum_over(Thread& t, float a, int from, int to) {
        for (int mask = from; mask < to; mask *= 2) a += t.shuffle_xor(a, mask);
        return a;
    }
};

/// As ops::HyperHead. Grid: rows, parts; kBlockSumBytes shared.
struct HyperHead {
    static constexpr const char* kName = "HyperHead";
    const float* streams;  // [T, n, width]
    const float* mix;      // [T, n]
    const float* base;     // [n]
    const float* scale;    // [1]
    float* x;              // [T, width]
    int64_t width;
    int32_t n, parts;
    float hyper_eps, norm_eps;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const float* row = streams + t.block() * n * width;
        const float factor = norm_factor(t, row, n * width, norm_eps);
        float weights[kMaxStreams] = {};
        for (int i = 0; i < kMaxStreams; ++i)
            if (i < n) weights[i] = sigmoid(factor * mix[t.block() * n + i] * scale[0] + base[i]) + hyper_eps;
        collapse(t, row, weights, n, x + t.block() * width, width, parts);
    }
};

/// As ops::HyperOut. Grid: rows, parts; each thread takes four channels of all streams.
struct HyperOut {
    static constexpr const char* kName = "HyperOut";
    const float* y;          // [T, width]
    const float* post_comb;  // [T, n + n * n]
    float* streams;          // [T, n, width] in place
    int64_t width;
    int32_t n, parts;
    bool round_bf16;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const float* post = post_comb + t.block() * (n + n * n);
        const float* comb = post + n;
        float* row = streams + t.block() * n * width;
        for (int64_t i = 4 * (t.block_y() * t.threads() + t.id()); i < width; i += 4 * parts * t.threads()) {
            const Four in = load_four(y + t.block() * width + i);
            Four before[kMaxStreams] = {};
            for (int j = 0; j < kMaxStreams; ++j)
                if (j < n) before[j] = load_four(row + j * width + i);
            for (int k = 0; k < kMaxStreams; ++k) {
                if (k >= n) break;
                Four out;
                for (int c = 0; c < 4; ++c) {
                    out.x[c] = post[k] * in.x[c];
                    for (int j = 0; j < kMaxStreams; ++j)
                        if (j < n) out.x[c] = fmaf(comb[j * n + k], before[j].x[c], out.x[c]);
                    if (round_bf16) out.x[c] = quant::round_bf16(out.x[c]);
                }
                store_four(row + k * width + i, out);
            }
        }
    }
};

}  // namespace thermocline::cuda
