// Hyper-connections (deepseek-v4.md 2.2) on a card.
#include "cuda/kernels/list.h"
#include "cuda/run.h"
#include "cuda/scratch.h"

#include <algorithm>

namespace thermocline::cuda {

namespace {

constexpr int kThreads = 256;

/// Blocks of a row: few rows are spread so that every block has one word of four channels per thread.
int32_t parts_for(int64_t rows, int64_t width) {
    const int64_t most = (width / 4 + kThreads - 1) / kThreads;
    return static_cast<int32_t>(std::clamp<int64_t>(kFillingBlocks / std::max<int64_t>(rows, 1), 1, most));
}

std::string why_not_streams(int32_t n, int64_t width) {
    if (n != 1 && n != 2 && n != 4) return std::to_string(n) + " residual streams, kernels know 1, 2 and 4";
    if (width % 4 != 0) return "a width of " + std::to_string(width) + ", kernels want a multiple of 4";
    return "";
}

int64_t cols(const ops::Plan& plan, ops::Slot slot) { return plan.slots[static_cast<size_t>(slot)].cols; }

}  // namespace

std::string why_not(const ops::Plan& plan, const ops::HyperIn& s) { return why_not_streams(s.n, cols(plan, s.x)); }
std::string why_not(const ops::Plan& plan, const ops::HyperHead& s) { return why_not_streams(s.n, cols(plan, s.x)); }
std::string why_not(const ops::Plan& plan, const ops::HyperOut& s) { return why_not_streams(s.n, cols(plan, s.y)); }

void run(const ops::HyperIn& s, const Frame& f) {
    const int64_t rows = f.rows(s.x), width = f.cols(s.x);
    const int32_t parts = parts_for(rows, width);
    launch(f.stream, {.x = rows, .y = parts, .threads = kThreads, .shared_bytes = kBlockSumBytes},
           HyperIn{f.slot(s.streams), f.slot(s.mix), f.vector(s.base), f.vector(s.scale), f.slot(s.x),
                   f.slot(s.post_comb), width, s.n, s.sinkhorn_iterations, parts, s.hyper_eps, s.norm_eps});
}

void run(const ops::HyperOut& s, const Frame& f) {
    const int64_t rows = f.rows(s.y), width = f.cols(s.y);
    const int32_t parts = parts_for(rows, width);
    launch(f.stream, {.x = rows, .y = parts, .threads = kThreads},
           HyperOut{f.slot(s.y), f.slot(s.post_comb), f.slot(s.streams), width, s.n, parts, s.round_bf16});
}

void run(const ops::HyperHead& s, const Frame& f) {
    const int64_t rows = f.rows(s.x), width = f.cols(s.x);
    if (rows == 0) return;
    const int32_t parts = parts_for(rows, width);
    launch(f.stream, {.x = rows, .y = parts, .threads = kThreads, .shared_bytes = kBlockSumBytes},
           HyperHead{f.slot(s.streams), f.slot(s.mix), f.vector(s.base), f.vector(s.scale), f.slot(s.x), width, s.n,
                     parts, s.hyper_eps, s.norm_eps});
}

}  // namespace thermocline::cuda
