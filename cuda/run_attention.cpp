// Attention (deepseek-v4.md 2.5) on a card.
#include "cuda/kernels/list.h"
#include "cuda/run.h"
#include "cuda/scratch.h"

#include <algorithm>

namespace thermocline::cuda {

namespace {

int32_t groups_of(const ops::Attention& s) { return (s.heads + kHeadGroup - 1) / kHeadGroup; }

/// Blocks that share the keys of one row and group of heads.
int32_t parts_for(const ops::Attention& s, const Frame& f) {
    if (f.batch_invariant) return 1;
    return static_cast<int32_t>(std::max<int64_t>(1, kFillingBlocks / (f.batch.rows * groups_of(s))));
}

template <int kChannels>
void launch_parts(const ops::Attention& s, const Frame& f, const AttentionInput& in) {
    const int warps = (std::min(kHeadGroup, s.heads) + 1) / 2;
    launch(f.stream,
           {.x = f.batch.rows,
            .y = int64_t{in.parts} * groups_of(s),
            .threads = warps * kWarp,
            .shared_bytes = AttentionParts<kChannels>::shared_bytes(warps)},
           AttentionParts<kChannels>{in, groups_of(s)});
}

template <int kSpan>
void launch_tiles(const ops::Attention& s, const Frame& f, const AttentionInput& in) {
    using Kernel = AttentionTiles<kSpan>;
    launch(
        f.stream,
        {.x = f.batch.rows, .y = groups_of(s), .threads = Kernel::kMostThreads, .shared_bytes = Kernel::kSharedBytes},
        Kernel{in});
}

bool exact_in_bf16(KvFormat format) { return format == KvFormat::kBF16 || format == KvFormat::kFp8; }

AttentionInput input_of(const ops::Attention& s, const Frame& f) {
    const ops::CacheSpec& ring = f.plan.caches[static_cast<size_t>(s.window_cache)];
    const ops::CacheSpec& entries = s.entries == ops::kNone ? ring : f.plan.caches[static_cast<size_t>(s.entries)];
    const bool chosen = s.selection != ops::kNone;
    return {f.slot(s.q),
            f.slot(s.kv),
            chosen ? reinterpret_cast<const int32_t*>(f.slot(s.selection)) : nullptr,
            f.vector(s.sinks),
            f.slot(s.out),
            reinterpret_cast<float*>(f.scratch),
            f.batch,
            s.window_cache,
            s.entries,
            s.heads,
            s.width,
            static_cast<int32_t>(ring.rope),
            static_cast<int32_t>(entries.rope),
            s.window,
            s.ratio,
            chosen ? static_cast<int32_t>(f.cols(s.selection)) - 1 : 0,
            parts_for(s, f),
            s.scale,
            ring.format,
            entries.format};
}

}  // namespace

std::string why_not(const ops::Plan& plan, const ops::Attention& s) {
    const auto of = [&](ops::CacheId id) { return why_not_keys(s.width, plan.caches[static_cast<size_t>(id)].rope); };
    const std::string ring = of(s.window_cache);
    return !ring.empty() || s.entries == ops::kNone ? ring : of(s.entries);
}

int64_t attention_scratch(const ops::Attention& s, int64_t max_rows) {
    if (max_rows < 1) return 0;
    const int64_t most = std::max<int64_t>(1, kFillingBlocks / groups_of(s));  // rows * parts, where parts > 1
    return most * s.heads * (s.width + 2) * static_cast<int64_t>(sizeof(float));
}

void run(const ops::Attention& s, const Frame& f) {
    const AttentionInput in = input_of(s, f);
    if (in.parts == 1 && exact_in_bf16(in.ring_format) && exact_in_bf16(in.entry_format)) {
        if (s.width <= AttentionTiles<16>::kWide) return launch_tiles<16>(s, f, in);
        return launch_tiles<64>(s, f, in);
    }
    if (s.width <= AttentionParts<4>::kWide)
        launch_parts<4>(s, f, in);
    else
        launch_parts<16>(s, f, in);
    if (in.parts > 1) launch(f.stream, {.x = f.batch.rows, .y = s.heads, .threads = 128}, JoinParts{in, kKeyTile});
}

}  // namespace thermocline::cuda
