#include "cuda/fused.h"

#include "cuda/kernels/list.h"
#include "cuda/scratch.h"

namespace thermocline::cuda {

namespace {

int64_t cols(const ops::Plan& plan, ops::Slot slot) { return plan.slots[static_cast<size_t>(slot)].cols; }

int64_t site_parts(const ops::Plan& plan, const SiteSteps& s) { return cols(plan, s.in->x) / HyperSite::kSpan; }

}  // namespace

bool can_fuse(const ops::Plan& plan, const VectorSteps& s) {
    const ops::Slot x = s.round ? s.round->x : s.rope ? s.rope->x : s.norm->out;
    const int32_t width = s.round ? s.round->width : s.rope ? s.rope->width : s.norm->width;
    const bool same = (!s.norm || (s.norm->out == x && s.norm->width == width)) &&
                      (!s.rope || (s.rope->x == x && s.rope->width == width));
    return same && plan.slots[static_cast<size_t>(x)].rows == ops::Rows::kTokens && why_not_keys(width, 0).empty();
}

void run(const VectorSteps& s, const Frame& f) {
    constexpr int kThreads = 128;
    const ops::Slot out = s.round ? s.round->x : s.rope ? s.rope->x : s.norm->out;
    const int32_t width = s.round ? s.round->width : s.rope ? s.rope->width : s.norm->width;
    const auto heads = static_cast<int32_t>(f.cols(out) / width);
    const int64_t runs = f.rows(out) * heads, warps = kThreads / kWarp;
    launch(f.stream, {.x = (runs + warps - 1) / warps, .threads = kThreads},
           FinishVectors{f.slot(s.norm ? s.norm->in : out), f.slot(out), s.norm ? f.vector(s.norm->weight) : nullptr,
                         s.rope ? f.rotations[s.rope->rope] : nullptr, runs, heads, width,
                         s.rope ? f.plan.ropes[static_cast<size_t>(s.rope->rope)].dims() : 0,
                         s.round ? s.round->rope : 0, s.norm ? s.norm->eps : 0.0f,
                         s.rope && s.rope->inverse ? -1.0f : 1.0f, s.round ? s.round->format : KvFormat::kF32,
                         s.norm != nullptr, s.round != nullptr && s.round->hadamard});
}

bool can_fuse(const ops::Plan& plan, const SiteSteps& s) {
    const quant::Matrix& w = plan.matrices[static_cast<size_t>(s.mix->weight)].matrix;
    const bool chain = s.mix->in == s.in->streams && s.mix->out == s.in->mix && s.norm->in == s.in->x &&
                       s.norm->out == s.in->x && s.norm->width == cols(plan, s.in->x);
    const bool writes = s.out == nullptr ||
                        (s.out->streams == s.in->streams && s.out->n == s.in->n && s.out->post_comb != s.in->post_comb);
    const bool plain = w.format == quant::Format::kF32 && w.layout == quant::Layout::kRows && w.scales == nullptr &&
                       w.multiplier == 1.0f && w.row_bytes == w.cols * 4 && s.mix->groups == 1 && s.mix->fold == 1 &&
                       s.mix->rounding != ops::InputRounding::kE4M3;
    return chain && writes && plain && cols(plan, s.in->x) % HyperSite::kSpan == 0 && why_not(plan, *s.in).empty();
}

int64_t site_scratch_bytes(const ops::Plan& plan, const SiteSteps& s, int64_t rows) {
    return rows * site_parts(plan, s) * HyperSite::kSums * int64_t{sizeof(float)};
}

void run(const SiteSteps& s, const Frame& f) {
    const int64_t rows = f.rows(s.in->x), parts = site_parts(f.plan, s);
    const quant::Matrix& fn = f.weights.matrices[static_cast<size_t>(s.mix->weight)];
    const HyperIn in{nullptr,
                     nullptr,
                     f.vector(s.in->base),
                     f.vector(s.in->scale),
                     f.slot(s.in->x),
                     f.slot(s.in->post_comb),
                     f.cols(s.in->x),
                     s.in->n,
                     s.in->sinkhorn_iterations,
                     static_cast<int32_t>(parts),
                     s.in->hyper_eps,
                     s.in->norm_eps};
    launch(f.stream,
           {.x = rows, .y = parts, .threads = HyperSite::kMostThreads, .shared_bytes = HyperSite::kSharedBytes},
           HyperSite{s.out ? f.slot(s.out->y) : nullptr, s.out ? f.slot(s.out->post_comb) : nullptr,
                     f.slot(s.in->streams), reinterpret_cast<const float*>(fn.data), f.vector(s.norm->weight),
                     reinterpret_cast<float*>(f.scratch), f.tickets, in, s.norm->eps,
                     s.out != nullptr && s.out->round_bf16});
}

}  // namespace thermocline::cuda
