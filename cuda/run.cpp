// Steps that touch each row on its own.
#include "cuda/run.h"

#include "cuda/kernels/list.h"

#include <algorithm>

namespace thermocline::cuda {

namespace {

constexpr int64_t kMostBlocks = 1024;  // of kernels that go over numbers in strides

int64_t blocks_for(int64_t numbers, int threads) { return std::clamp<int64_t>(numbers / threads, 1, kMostBlocks); }

/// Threads of a block that has `width` numbers to go over, four each.
int threads_for(int64_t width) {
    return static_cast<int>(std::clamp<int64_t>((width / 4 + kWarp - 1) / kWarp, 1, 16)) * kWarp;
}

}  // namespace

void rotations(const Frame& f) {
    for (size_t i = 0; i < f.plan.ropes.size(); ++i) {
        const int32_t dims = f.plan.ropes[i].dims();
        launch(f.stream, {.x = f.batch.rows, .threads = kWarp},
               Rotations{f.batch.positions, f.weights.rope_frequencies[i], f.rotations[i], dims});
    }
}

void run(const ops::Embed& s, const Frame& f) {
    const int64_t width = f.cols(s.out) / s.copies;
    launch(f.stream, {.x = f.batch.rows, .y = s.copies, .threads = threads_for(width)},
           CopyRows{f.embeddings, nullptr, f.slot(s.out), width, s.copies});
}

void run(const ops::RmsNorm& s, const Frame& f) {
    const int64_t runs = f.rows(s.in) * f.cols(s.in) / s.width;
    launch(f.stream, {.x = runs, .threads = threads_for(s.width), .shared_bytes = kBlockSumBytes},
           RmsNorm{f.slot(s.in), f.slot(s.out), f.vector(s.weight), s.width, s.eps});
}

void run(const ops::Rope& s, const Frame& f) {
    const int32_t dims = f.plan.ropes[static_cast<size_t>(s.rope)].dims();
    const auto heads = static_cast<int32_t>(f.cols(s.x) / s.width);
    launch(f.stream, {.x = f.batch.rows, .threads = threads_for(int64_t{heads} * dims)},
           Rope{f.slot(s.x), f.rotations[s.rope], heads, s.width, dims, s.inverse ? -1.0f : 1.0f});
}

void run(const ops::SwiGlu& s, const Frame& f) {
    const int64_t count = f.rows(s.out) * f.cols(s.out);
    launch(f.stream, {.x = blocks_for(count, 256)},
           SwiGlu{f.slot(s.gate), f.slot(s.up), f.slot(s.out), count, s.limit});
}

void run(const ops::Add& s, const Frame& f) {
    const int64_t width = f.cols(s.y);
    launch(f.stream, {.x = f.rows(s.x), .y = s.repeat, .threads = threads_for(width)},
           AddRows{f.slot(s.x), f.slot(s.y), width, s.repeat});
}

void run(const ops::TakeRows& s, const Frame& f) {
    if (f.batch.outputs == 0) return;
    const int64_t width = f.cols(s.in);
    launch(f.stream, {.x = f.batch.outputs, .threads = threads_for(width)},
           CopyRows{f.slot(s.in), f.batch.output_rows, f.slot(s.out), width, 1});
}

}  // namespace thermocline::cuda
