// The router (deepseek-v4.md 2.8) on a card.
#include "cuda/kernels/list.h"
#include "cuda/run.h"
#include "cuda/scratch.h"

#include <algorithm>

namespace thermocline::cuda {

std::string why_not(const ops::Plan&, const ops::Route& s) {
    if (s.top_k > Route::kMaxTopK)
        return std::to_string(s.top_k) + " experts a token, kernels choose at most " + std::to_string(Route::kMaxTopK);
    if (s.top_k > s.experts || s.experts * 2 * int64_t{sizeof(float)} > kMaxSharedBytes)
        return std::to_string(s.experts) + " experts";
    return "";
}

void run(const ops::Route& s, const Frame& f) {
    const int threads = std::clamp((s.experts + kWarp - 1) / kWarp, 1, 8) * kWarp;
    const int32_t* table = s.table == ops::kNone ? nullptr : f.weights.tables[static_cast<size_t>(s.table)];
    launch(f.stream, {.x = f.batch.rows, .threads = threads, .shared_bytes = s.experts * 2 * int64_t{sizeof(float)}},
           Route{f.slot(s.logits), f.vector(s.bias), table, f.batch.tokens, reinterpret_cast<int32_t*>(f.slot(s.ids)),
                 f.slot(s.weights), s.experts, s.top_k, s.scale, s.normalise});
}

void send_early(const ops::Route& s, const Frame& f, int32_t* host) {
    launch(f.stream, {.threads = kWarp},
           SendEarly{reinterpret_cast<const int32_t*>(f.slot(s.ids)), host, f.batch.rows * s.top_k});
}

}  // namespace thermocline::cuda
