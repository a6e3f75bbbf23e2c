// The lightning indexer (deepseek-v4.md 2.7) on a card.
#include "cuda/kernels/list.h"
#include "cuda/run.h"
#include "cuda/scratch.h"
#include "src/ops/uses.h"

#include <algorithm>

namespace thermocline::cuda {

namespace {

constexpr int64_t kPartBlocks = 128;  // of ScoreEntries for one row; more would leave the second kernel too much

int32_t parts_for(int64_t rows) {
    return static_cast<int32_t>(std::clamp<int64_t>(kPartBlocks / rows, 1, kPartBlocks));
}

template <typename Scorer>
void launch_scores(const Frame& f, const IndexInput& in) {
    using Kernel = ScoreEntries<Scorer>;
    launch(f.stream,
           {.x = f.batch.rows,
            .y = in.parts,
            .threads = kIndexThreads,
            .shared_bytes = Kernel::Layout::of(in.heads, in.width, in.top_k).bytes},
           Kernel{in});
}

}  // namespace

std::string why_not(const ops::Plan& plan, const ops::SelectEntries& s) {
    if (s.heads > kMaxIndexHeads || s.width > kMaxIndexWidth || s.top_k > kMaxTopK)
        return std::to_string(s.heads) + " index heads of " + std::to_string(s.width) + " channels that choose " +
               std::to_string(s.top_k) + " entries; kernels take at most " + std::to_string(kMaxIndexHeads) + ", " +
               std::to_string(kMaxIndexWidth) + " and " + std::to_string(kMaxTopK);
    return why_not_keys(s.width, plan.caches[static_cast<size_t>(s.keys)].rope);
}

int64_t select_scratch(const ops::SelectEntries& s, int64_t max_rows) {
    return std::max(kPartBlocks, max_rows) * s.top_k * static_cast<int64_t>(sizeof(Candidate));
}

void run(const ops::SelectEntries& s, const Frame& f) {
    const ops::CacheSpec& spec = f.plan.caches[static_cast<size_t>(s.keys)];
    const int64_t rows = f.batch.rows;
    const int32_t parts = parts_for(rows);
    auto* candidates = reinterpret_cast<Candidate*>(f.scratch);
    const IndexInput in{f.slot(s.q), f.slot(s.gates), candidates, f.batch,
                        s.keys,      s.heads,         s.width,    static_cast<int32_t>(spec.rope),
                        s.ratio,     s.top_k,         parts,      spec.format};
    if (spec.format == KvFormat::kF32 || spec.format == KvFormat::kFp8F32)
        launch_scores<PlainScores>(f, in);
    else if (f.variants.fp4_keys && spec.format == KvFormat::kFp4 && s.width % 64 == 0 &&
             ops::queries_are_fp4(f.plan, s))
        launch_scores<Fp4Scores>(f, in);
    else
        launch_scores<TileScores>(f, in);
    const int threads = parts > 1 ? ChooseEntries::kMostThreads : 256;
    launch(f.stream, {.x = rows, .threads = threads, .shared_bytes = threshold_bytes(threads) + take_bytes(threads)},
           ChooseEntries{candidates, f.batch.positions, reinterpret_cast<int32_t*>(f.slot(s.selection)), s.ratio,
                         s.top_k, parts});
}

}  // namespace thermocline::cuda
