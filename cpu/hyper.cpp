// Hyper-connections (deepseek-v4.md 2.2), all in float32.
#include "cpu/run.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace thermocline::cpu {

namespace {

constexpr int32_t kMaxStreams = 16;  // checked by the model file

float sigmoid(float x) { return 1.0f / (1.0f + std::exp(-x)); }

/// Factor of the one norm over all streams of a row.
float norm_factor(const Frame& f, const float* streams, int64_t count, float eps) {
    return 1.0f / std::sqrt(f.kernels.sum_squares(streams, count) / static_cast<float>(count) + eps);
}

/// x = sum_i weights[i] * streams[i].
void collapse(const Frame& f, const float* streams, const float* weights, int32_t n, float* x, int64_t width) {
    f.kernels.scale(weights[0], streams, nullptr, x, width);
    for (int32_t i = 1; i < n; ++i) f.kernels.axpy(weights[i], streams + i * width, x, width);
}

/// Rows: a[j][k] /= sum over k. Columns: a[j][k] /= sum over j.
void normalise(float* a, int32_t n, bool columns, float eps) {
    const int32_t across = columns ? n : 1, along = columns ? 1 : n;
    for (int32_t line = 0; line < n; ++line) {
        float sum = 0.0f;
        for (int32_t i = 0; i < n; ++i) sum += a[line * along + i * across];
        for (int32_t i = 0; i < n; ++i) a[line * along + i * across] /= sum + eps;
    }
}

/// Softmax of each row plus eps, then `iterations` normalisations that end on columns. a is n x n.
void sinkhorn(float* a, int32_t n, int32_t iterations, float eps) {
    for (int32_t j = 0; j < n; ++j) {
        float* row = a + j * n;
        const float top = *std::max_element(row, row + n);
        float sum = 0.0f;
        for (int32_t k = 0; k < n; ++k) sum += row[k] = std::exp(row[k] - top);
        for (int32_t k = 0; k < n; ++k) row[k] = row[k] / sum + eps;
    }
    normalise(a, n, true, eps);
    for (int32_t i = 1; i < iterations; ++i) {
        normalise(a, n, false, eps);
        normalise(a, n, true, eps);
    }
}

}  // namespace

void run(const ops::HyperIn& s, const Frame& f) noexcept {
    const int64_t width = f.cols(s.x);
    const float* base = f.plan.vectors[static_cast<size_t>(s.base)].values.data();
    const float* scale = f.plan.vectors[static_cast<size_t>(s.scale)].values.data();
    f.workers.split(f.rows(s.x), 1, [&](int64_t begin, int64_t end, int) {
        for (int64_t t = begin; t < end; ++t) {
            const float* streams = f.row(s.streams, t);
            const float* mix = f.row(s.mix, t);
            const float factor = norm_factor(f, streams, width * s.n, s.norm_eps);
            float pre[kMaxStreams];
            float* post = f.row(s.post_comb, t);
            float* comb = post + s.n;
            for (int32_t i = 0; i < s.n; ++i) {
                pre[i] = sigmoid(factor * mix[i] * scale[0] + base[i]) + s.hyper_eps;
                post[i] = 2.0f * sigmoid(factor * mix[s.n + i] * scale[1] + base[s.n + i]);
            }
            for (int32_t i = 0; i < s.n * s.n; ++i) comb[i] = factor * mix[2 * s.n + i] * scale[2] + base[2 * s.n + i];
            sinkhorn(comb, s.n, s.sinkhorn_iterations, s.hyper_eps);
            collapse(f, streams, pre, s.n, f.row(s.x, t), width);
        }
    });
}

void run(const ops::HyperOut& s, const Frame& f) noexcept {
    const int64_t width = f.cols(s.y);
    f.workers.split(f.rows(s.y), 1, [&](int64_t begin, int64_t end, int worker) {
        float* before = f.worker_scratch(worker).data();  // [n, width] streams before the site
        for (int64_t t = begin; t < end; ++t) {
            float* streams = f.row(s.streams, t);
            const float* y = f.row(s.y, t);
            const float* post = f.row(s.post_comb, t);
            const float* comb = post + s.n;
            std::memcpy(before, streams, sizeof(float) * static_cast<size_t>(s.n * width));
            for (int32_t k = 0; k < s.n; ++k) {
                float* out = streams + k * width;
                f.kernels.scale(post[k], y, nullptr, out, width);
                for (int32_t j = 0; j < s.n; ++j) f.kernels.axpy(comb[j * s.n + k], before + j * width, out, width);
            }
            if (s.round_bf16) f.kernels.round_bf16(streams, s.n * width);
        }
    });
}

void run(const ops::HyperHead& s, const Frame& f) noexcept {
    const int64_t width = f.cols(s.x);
    const float* base = f.plan.vectors[static_cast<size_t>(s.base)].values.data();
    const float scale = f.plan.vectors[static_cast<size_t>(s.scale)].values[0];
    for (int64_t t = 0; t < f.rows(s.x); ++t) {
        const float* streams = f.row(s.streams, t);
        const float factor = norm_factor(f, streams, width * s.n, s.norm_eps);
        float weights[kMaxStreams] = {};
        for (int32_t i = 0; i < s.n; ++i)
            weights[i] = sigmoid(factor * f.row(s.mix, t)[i] * scale + base[i]) + s.hyper_eps;
        collapse(f, streams, weights, s.n, f.row(s.x, t), width);
    }
}

}  // namespace thermocline::cpu
