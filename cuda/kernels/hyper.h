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
#pragma unroll
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
#pragma unroll
        for (int s = 0; s < kMaxStreams; ++s) {
            if (s >= n) break;
            const Four four = load_four(streams + s * width + i);
#pragma unroll
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
#pragma unroll
        for (int i = 0; i < kMaxStreams; ++i)
            if (i < n) pre[i] = sigmoid(factor * m[i] * scale[0] + base[i]) + hyper_eps;
        collapse(t, row, pre, n, x + t.block() * width, width, parts);
    }

    /// One warp: post and A, one element a lane; lane j * n + k has A[j][k], lanes behind repeat them.
    template <typename Thread, typename Mix>
    GPU_CODE void write_back(Thread& t, const Mix& m, float factor, float* out) const {
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
    static constexpr int kLeastBlocks = 2;
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
#pragma unroll
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
#pragma unroll
            for (int j = 0; j < kMaxStreams; ++j)
                if (j < n) before[j] = load_four(row + j * width + i);
#pragma unroll
            for (int k = 0; k < kMaxStreams; ++k) {
                if (k >= n) break;
                Four out;
#pragma unroll
                for (int c = 0; c < 4; ++c) {
                    out.x[c] = post[k] * in.x[c];
#pragma unroll
                    for (int j = 0; j < kMaxStreams; ++j)
                        if (j < n) out.x[c] = fmaf(comb[j * n + k], before[j].x[c], out.x[c]);
                    if (round_bf16) out.x[c] = quant::round_bf16(out.x[c]);
                }
                store_four(row + k * width + i, out);
            }
        }
    }
};

/// From one site to the next, for few rows, in one pass over the streams: ops::HyperOut, the product with the next
/// site's mixing matrix, ops::HyperIn and the norm of what it gives. Each block has kSpan channels of all streams; the
/// last one of a row to end adds up the products and collapses the row. Grid: rows, width / kSpan; kSharedBytes.
struct HyperSite {
    static constexpr const char* kName = "HyperSite";
    static constexpr int kSpan = 64, kMostThreads = 256;
    static constexpr int kSums = 32;       // stride; n * (2 + n) products, then the sum of squares
    static constexpr int kRowsOfWarp = 4;  // sums of a warp, at least, with kMostThreads threads
    static constexpr int64_t kMixesAt = int64_t{kMaxStreams} * kSpan * 4, kLastAt = kMixesAt + kSums * 4;
    static constexpr int64_t kNormAt = kLastAt + 16, kSharedBytes = kNormAt + kBlockSumBytes;

    const float* y;            // [T, width]; null: nothing to write back
    const float* post_comb;    // [T, n + n * n] that y is written back with
    float* streams;            // [T, n, width] in place
    const float* fn;           // [n * (2 + n), n, width]
    const float* norm_weight;  // [width] or null
    float* sums;               // [T, parts, kSums] scratch
    uint32_t* tickets;         // [T], 0 before and after
    HyperIn in;                // without mix
    float x_eps;               // of the last norm
    bool round_bf16;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        auto span = t.template shared<float>(0, kMaxStreams * kSpan);  // [n, kSpan]
        auto last = t.template shared<uint32_t>(kLastAt, 1);
        write_span(t, span);
        add_up(t, span);
        t.fence();
        t.sync();
        if (t.id() == 0) last.set(0, t.add(tickets + t.block(), 1) + 1 == static_cast<uint32_t>(in.parts) ? 1 : 0);
        t.sync();
        if (last[0] == 0) return;
        t.fence();
        if (t.id() == 0) tickets[t.block()] = 0;
        finish(t);
    }

    /// The block's channels as they are after HyperOut.
    template <typename Thread, typename Span>
    GPU_CODE void write_span(Thread& t, Span& span) const {
        const int n = in.n, k = t.id() / (kSpan / 4), c = t.id() % (kSpan / 4) * 4;
        float* at = streams + t.block() * n * in.width + t.block_y() * kSpan + c;
        Four out = {};
        if (k < n) {
            if (y == nullptr) out = load_four(at + k * in.width);
            if (y != nullptr) out = mixed(t, at, k, c);
        }
        t.sync();  // all have read what is written now
        if (k < n) {
            if (y != nullptr) store_four(at + k * in.width, out);
            span.template set_as<Four>(k * kSpan + c, out);
        }
        t.sync();
    }

    template <typename Thread>
    GPU_CODE Four mixed(Thread& t, const float* at, int k, int c) const {
        const int n = in.n;
        const float* post = post_comb + t.block() * (n + n * n);
        const Four given = load_four(y + t.block() * in.width + t.block_y() * kSpan + c);
        Four out;
#pragma unroll
        for (int i = 0; i < 4; ++i) out.x[i] = post[k] * given.x[i];
#pragma unroll
        for (int j = 0; j < kMaxStreams; ++j) {
            if (j >= n) break;
            const Four before = load_four(at + j * in.width);
#pragma unroll
            for (int i = 0; i < 4; ++i) out.x[i] = fmaf(post[n + j * n + k], before.x[i], out.x[i]);
        }
#pragma unroll
        for (int i = 0; i < 4; ++i)
            if (round_bf16) out.x[i] = quant::round_bf16(out.x[i]);
        return out;
    }

    /// The block's share of every sum.
    template <typename Thread, typename Span>
    GPU_CODE void add_up(Thread& t, const Span& span) const {
        const int n = in.n, products = n * (2 + n);
        float* own = sums + (t.block() * in.parts + t.block_y()) * kSums;
#pragma unroll
        for (int j = 0; j < kRowsOfWarp; ++j) {
            const int r = j * t.warps() + t.warp();
            if (r > products) break;
            float sum = 0.0f;
            for (int i = 4 * t.lane(); i < n * kSpan; i += 4 * kWarp) {
                const Four x = span.template as<Four>(i);
                const float* row = fn + (r * n + i / kSpan) * in.width + t.block_y() * kSpan + i % kSpan;
                const Four factor = r < products ? load_four(row) : x;
#pragma unroll
                for (int k = 0; k < 4; ++k) sum = fmaf(factor.x[k], x.x[k], sum);
            }
            sum = warp_sum(t, sum);
            if (t.lane() == 0) own[r] = sum;
        }
    }

    /// All of the row, once every block of it has written its share.
    template <typename Thread>
    GPU_CODE void finish(Thread& t) const {
        const int n = in.n, products = n * (2 + n);
        const int64_t width = in.width;
        auto mixes = t.template shared<float>(kMixesAt, kSums);
        for (int r = t.warp(); r <= products; r += t.warps()) {
            float sum = 0.0f;
            for (int part = t.lane(); part < in.parts; part += kWarp)
                sum += sums[(t.block() * in.parts + part) * kSums + r];
            sum = warp_sum(t, sum);
            if (t.lane() == 0) mixes.set(r, sum);
        }
        t.sync();
        const float factor = 1.0f / sqrtf(mixes[products] / static_cast<float>(n * width) + in.norm_eps);
        if (t.warp() == 0) in.write_back(t, mixes, factor, in.post_comb + t.block() * (n + n * n));
        float pre[kMaxStreams] = {};
#pragma unroll
        for (int i = 0; i < kMaxStreams; ++i)
            if (i < n) pre[i] = sigmoid(factor * mixes[i] * in.scale[0] + in.base[i]) + in.hyper_eps;
        const float* row = streams + t.block() * n * width;
        float* x = in.x + t.block() * width;
        float squares = 0.0f;
        for (int64_t i = 4 * t.id(); i < width; i += 4 * t.threads()) {
            Four sum = {};
#pragma unroll
            for (int s = 0; s < kMaxStreams; ++s) {
                if (s >= n) break;
                const Four four = load_four(row + s * width + i);
#pragma unroll
                for (int j = 0; j < 4; ++j) sum.x[j] = fmaf(pre[s], four.x[j], sum.x[j]);
            }
#pragma unroll
            for (int j = 0; j < 4; ++j) squares = fmaf(sum.x[j], sum.x[j], squares);
            store_four(x + i, sum);
        }
        const float norm = 1.0f / sqrtf(block_sum(t, squares, kNormAt) / static_cast<float>(width) + x_eps);
        for (int64_t i = 4 * t.id(); i < width; i += 4 * t.threads()) {
            Four four = load_four(x + i);
#pragma unroll
            for (int j = 0; j < 4; ++j) four.x[j] *= norm * (norm_weight ? norm_weight[i + j] : 1.0f);
            store_four(x + i, four);
        }
    }
};

}  // namespace thermocline::cuda
