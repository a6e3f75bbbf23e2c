// The compressor (deepseek-v4.md 2.6) on a card.
#include "cuda/kernels/list.h"
#include "cuda/run.h"
#include "cuda/scratch.h"

namespace thermocline::cuda {

namespace {

const ops::CacheSpec& entries_of(const ops::Plan& plan, const ops::Compress& s) {
    return plan.caches[static_cast<size_t>(s.entries)];
}

}  // namespace

std::string why_not(const ops::Plan& plan, const ops::Compress& s) {
    const int64_t slots = s.overlap ? 2 * s.ratio : s.ratio;
    if (MakeEntries::shared_bytes(slots, s.width) > kMaxSharedBytes)
        return "entries of " + std::to_string(slots) + " tokens, more than fit into shared memory";
    return why_not_keys(s.width, entries_of(plan, s).rope);
}

void run(const ops::Compress& s, const Frame& f) {
    const ops::CacheSpec& spec = entries_of(f.plan, s);
    const auto rope = static_cast<size_t>(s.rope);
    const auto wide = static_cast<int32_t>(f.cols(s.values));
    const float *values = f.slot(s.values), *scores = f.slot(s.scores), *ape = f.vector(s.ape);
    const MakeEntries make{values,
                           scores,
                           ape,
                           f.vector(s.norm),
                           f.weights.rope_frequencies[rope],
                           f.batch,
                           s.state,
                           s.entries,
                           s.ratio,
                           s.width,
                           wide,
                           f.plan.ropes[rope].dims(),
                           static_cast<int32_t>(spec.rope),
                           s.eps,
                           spec.format,
                           s.overlap,
                           s.hadamard};
    const int threads = (s.width + kWarp - 1) / kWarp * kWarp;
    launch(f.stream,
           {.x = f.batch.rows,
            .threads = threads,
            .shared_bytes = MakeEntries::shared_bytes(s.overlap ? 2 * s.ratio : s.ratio, s.width)},
           make);
    launch(f.stream, {.x = f.batch.rows, .threads = 256},
           StoreState{values, scores, ape, f.batch, s.state, s.ratio, wide});
}

}  // namespace thermocline::cuda
