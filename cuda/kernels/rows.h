// Kernels that touch each row on its own: norms, rotation, SwiGLU, sums, copies. One block a row, or a run of channels
// of it.
#pragma once

#include "cuda/kernels/block.h"
#include "src/quant/scalar.h"

#include <cmath>

namespace thermocline::cuda {

/// out[t, i]: cos at even i, sin at odd i, of the angle position[t] * frequency[i / 2]. Grid: rows.
struct Rotations {
    static constexpr const char* kName = "Rotations";
    const int64_t* positions;  // [T]
    const float* frequencies;  // [dims / 2]
    float* out;                // [T, dims]
    int32_t dims;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const auto position = static_cast<float>(positions[t.block()]);
        for (int i = t.id(); i < dims / 2; i += t.threads()) {
            const double angle = position * frequencies[i];  // one float32 product, then exact trigonometry
            out[t.block() * dims + 2 * i] = static_cast<float>(cos(angle));
            out[t.block() * dims + 2 * i + 1] = static_cast<float>(sin(angle));
        }
    }
};

/// out[t, copy, i] = in[t, i]. Grid: rows, copies.
struct CopyRows {
    static constexpr const char* kName = "CopyRows";
    const float* in;       // [T, width]
    const int32_t* taken;  // [T] row of `in` for each row of out; null: the same
    float* out;            // [T, copies, width]
    int64_t width;
    int32_t copies;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const int64_t from = taken == nullptr ? t.block() : taken[t.block()];
        for (int64_t i = t.id(); i < width; i += t.threads())
            out[(t.block() * copies + t.block_y()) * width + i] = in[from * width + i];
    }
};

/// As ops::RmsNorm. Grid: runs of `width` channels; kBlockSumBytes shared.
struct RmsNorm {
    static constexpr const char* kName = "RmsNorm";
    const float* in;      // [runs, width]
    float* out;           // [runs, width], may be `in`
    const float* weight;  // [width] or null
    int32_t width;
    float eps;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const float* x = in + t.block() * width;
        float* y = out + t.block() * width;
        float sum = 0.0f;
        for (int i = t.id(); i < width; i += t.threads()) sum += x[i] * x[i];
        const float factor = 1.0f / sqrtf(block_sum(t, sum, 0) / static_cast<float>(width) + eps);
        for (int i = t.id(); i < width; i += t.threads()) y[i] = factor * x[i] * (weight ? weight[i] : 1.0f);
    }
};

/// As ops::Rope. Grid: rows.
struct Rope {
    static constexpr const char* kName = "Rope";
    float* x;                // [T, heads, width] in place
    const float* rotations;  // [T, dims]
    int32_t heads, width, dims;
    float sign;  // -1: back

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const int pairs = dims / 2;
        for (int i = t.id(); i < heads * pairs; i += t.threads()) {
            float* at = x + (t.block() * heads + i / pairs) * width + width - dims + i % pairs * 2;
            const float* rotation = rotations + t.block() * dims + i % pairs * 2;
            const float a = at[0], b = at[1], c = rotation[0], s = sign * rotation[1];
            at[0] = a * c - b * s;
            at[1] = a * s + b * c;
        }
    }
};

GPU_CODE inline float swiglu(float gate, float up, float limit) {
    gate = fminf(gate, limit);
    up = fminf(fmaxf(up, -limit), limit);
    return gate / (1.0f + expf(-gate)) * up;
}

/// As ops::SwiGlu. Grid: enough blocks for `count`.
struct SwiGlu {
    static constexpr const char* kName = "SwiGlu";
    const float* gate;  // [count]
    const float* up;    // [count]
    float* out;         // [count]
    int64_t count;
    float limit;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        for (int64_t i = t.block() * t.threads() + t.id(); i < count; i += t.blocks() * t.threads())
            out[i] = swiglu(gate[i], up[i], limit);
    }
};

/// As ops::Add. Grid: rows, repeat.
struct AddRows {
    static constexpr const char* kName = "AddRows";
    float* x;        // [T, repeat, width] in place
    const float* y;  // [T, width]
    int64_t width;
    int32_t repeat;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        for (int64_t i = t.id(); i < width; i += t.threads())
            x[(t.block() * repeat + t.block_y()) * width + i] += y[t.block() * width + i];
    }
};

}  // namespace thermocline::cuda
