// Steps that round keys and put them into rings (deepseek-v4.md 3.1, 6.1) on a card.
#include "cuda/fused.h"
#include "cuda/kernels/list.h"
#include "cuda/run.h"
#include "cuda/scratch.h"

namespace thermocline::cuda {

namespace {

const ops::CacheSpec& cache(const ops::Plan& plan, ops::CacheId id) { return plan.caches[static_cast<size_t>(id)]; }

}  // namespace

std::string why_not_keys(int64_t width, int64_t rope) {
    if (width > kMaxVector)
        return "keys of " + std::to_string(width) + " channels, kernels take at most " + std::to_string(kMaxVector);
    if (width % 4 != 0 || rope % 4 != 0)
        return "keys of " + std::to_string(width) + " channels, " + std::to_string(rope) +
               " of them rotary; kernels want multiples of 4";
    return "";
}

std::string why_not(const ops::Plan&, const ops::RoundKv& s) { return why_not_keys(s.width, s.rope); }
std::string why_not(const ops::Plan& plan, const ops::StoreWindow& s) {
    return why_not_keys(s.width, cache(plan, s.window_cache).rope);
}

void run(const ops::RoundKv& s, const Frame& f) { run(VectorSteps{.round = &s}, f); }

void run(const ops::StoreWindow& s, const Frame& f) {
    const ops::CacheSpec& spec = cache(f.plan, s.window_cache);
    launch(f.stream, {.x = f.batch.rows, .threads = kWarp},
           StoreWindow{f.slot(s.kv), f.batch, s.window_cache, s.width, static_cast<int32_t>(spec.rope), spec.format});
}

}  // namespace thermocline::cuda
