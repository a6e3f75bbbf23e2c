// Steps that touch each row on its own: norms, rotation, rounding, SwiGLU, sums.
#include "cpu/rotate.h"
#include "cpu/run.h"

#include <cmath>
#include <cstring>

namespace thermocline::cpu {

namespace {

constexpr int64_t kGrainChannels = 1 << 14;

/// Rows per part so that a part is worth waking a worker for.
int64_t grain_of(int64_t channels) { return channels >= kGrainChannels ? 1 : kGrainChannels / channels; }

}  // namespace

void run(const ops::RmsNorm& s, const Frame& f) noexcept {
    const float* weight =
        s.weight == ops::kNone ? nullptr : f.plan.vectors[static_cast<size_t>(s.weight)].values.data();
    const int64_t runs = f.rows(s.in) * f.cols(s.in) / s.width;
    const float* in = f.slot(s.in);
    float* out = f.slot(s.out);
    f.workers.split(runs, grain_of(s.width), [&](int64_t begin, int64_t end, int) {
        for (int64_t r = begin; r < end; ++r) {
            const float* x = in + r * s.width;
            const float mean = f.kernels.sum_squares(x, s.width) / static_cast<float>(s.width);
            f.kernels.scale(1.0f / std::sqrt(mean + s.eps), x, weight, out + r * s.width, s.width);
        }
    });
}

void run(const ops::Rope& s, const Frame& f) noexcept {
    const int64_t dims = f.plan.ropes[static_cast<size_t>(s.rope)].dims();
    const int64_t heads = f.cols(s.x) / s.width;
    const float sign = s.inverse ? -1.0f : 1.0f;
    f.workers.split(f.batch.rows(), grain_of(heads * dims), [&](int64_t begin, int64_t end, int) {
        for (int64_t t = begin; t < end; ++t) {
            float* tail = f.row(s.x, t) + s.width - dims;
            f.kernels.rope(tail, s.width, heads, f.rotations[s.rope] + t * dims, dims, sign);
        }
    });
}

void run(const ops::RoundKv& s, const Frame& f) noexcept {
    const int64_t runs = f.rows(s.x) * f.cols(s.x) / s.width;
    float* x = f.slot(s.x);
    f.workers.split(runs, grain_of(s.width), [&](int64_t begin, int64_t end, int worker) {
        std::byte* const row = reinterpret_cast<std::byte*>(f.worker_scratch(worker).data());
        for (int64_t r = begin; r < end; ++r) {
            float* run = x + r * s.width;
            if (s.hadamard) f.kernels.hadamard(run, s.width);
            f.kernels.encode_kv(s.format, run, s.width, s.rope, row);
            f.kernels.decode_kv(s.format, &row, 1, s.width, s.rope, run, s.width);
        }
    });
}

void run(const ops::SwiGlu& s, const Frame& f) noexcept {
    const int64_t cols = f.cols(s.out);
    f.workers.split(f.rows(s.out), grain_of(cols), [&](int64_t begin, int64_t end, int) {
        for (int64_t t = begin; t < end; ++t)
            f.kernels.swiglu(f.row(s.gate, t), f.row(s.up, t), s.limit, 1.0f, f.row(s.out, t), cols);
    });
}

void run(const ops::Add& s, const Frame& f) noexcept {
    const int64_t cols = f.cols(s.y);
    f.workers.split(f.rows(s.x), grain_of(cols * s.repeat), [&](int64_t begin, int64_t end, int) {
        for (int64_t t = begin; t < end; ++t)
            for (int32_t r = 0; r < s.repeat; ++r) f.kernels.axpy(1.0f, f.row(s.y, t), f.row(s.x, t) + r * cols, cols);
    });
}

void run(const ops::TakeRows& s, const Frame& f) noexcept {
    const int64_t cols = f.cols(s.in);
    for (int64_t i = 0; i < f.batch.outputs(); ++i)
        std::memcpy(f.row(s.out, i), f.row(s.in, f.batch.output_rows[static_cast<size_t>(i)]),
                    sizeof(float) * static_cast<size_t>(cols));
}

void rotations(const ops::RopeTable& rope, const ops::Batch& batch, float* out) noexcept {
    for (int64_t t = 0; t < batch.rows(); ++t)
        rotation_of(rope, batch.positions[static_cast<size_t>(t)], out + t * rope.dims());
}

}  // namespace thermocline::cpu
