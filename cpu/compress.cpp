// Compressed context (deepseek-v4.md 2.6, 2.7): pooling windows of tokens into entries, and choosing among them.
#include "cpu/rotate.h"
#include "cpu/scratch.h"
#include "src/ops/uses.h"
#include "src/quant/strips.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace thermocline::cpu {

namespace {

constexpr int64_t kTile = 64;        // index keys decoded at a time
constexpr int64_t kMaxSlots = 1024;  // pooled tokens per entry; checked by the model file

/// Values and scores of one position, from this batch or from the state ring.
struct Pair {
    const float* values;  // [wide]
    const float* scores;  // [wide], ape added
};

Pair pair_at(const ops::Compress& s, const Frame& f, const ops::Segment& segment, int64_t position) {
    const int64_t wide = f.cols(s.values);
    if (position >= segment.position) {
        const int64_t row = segment.first_row + position - segment.position;
        return {f.row(s.values, row), f.row(s.scores, row)};
    }
    const auto* row = reinterpret_cast<const float*>(segment.caches[s.state].row(position));
    return {row, row + wide};
}

/// Pools, norms, rotates and stores entry `w`. Scratch: one vector.
void make_entry(const ops::Compress& s, const Frame& f, const ops::Segment& segment, int64_t w, float* scratch) {
    const float* values[kMaxSlots];
    const float* scores[kMaxSlots];
    int64_t slots = 0;
    if (s.overlap && w > 0)  // previous window: first half of the channels
        for (int64_t p = (w - 1) * s.ratio; p < w * s.ratio; ++p, ++slots) {
            const Pair pair = pair_at(s, f, segment, p);
            values[slots] = pair.values;
            scores[slots] = pair.scores;
        }
    const int64_t half = s.overlap ? s.width : 0;
    for (int64_t p = w * s.ratio; p < (w + 1) * s.ratio; ++p, ++slots) {
        const Pair pair = pair_at(s, f, segment, p);
        values[slots] = pair.values + half;
        scores[slots] = pair.scores + half;
    }
    float* entry = scratch;  // [width]
    f.kernels.pool(values, scores, slots, s.width, entry);
    const float mean = f.kernels.sum_squares(entry, s.width) / static_cast<float>(s.width);
    f.kernels.scale(1.0f / std::sqrt(mean + s.eps), entry, f.plan.vectors[static_cast<size_t>(s.norm)].values.data(),
                    entry, s.width);
    const ops::RopeTable& rope = f.plan.ropes[static_cast<size_t>(s.rope)];
    float* rotation = scratch + s.width;  // [dims]
    rotation_of(rope, w * s.ratio, rotation);
    f.kernels.rope(entry + s.width - rope.dims(), s.width, 1, rotation, rope.dims(), 1.0f);
    if (s.hadamard) f.kernels.hadamard(entry, s.width);
    const ops::CacheSpec& spec = f.plan.caches[static_cast<size_t>(s.entries)];
    f.kernels.encode_kv(spec.format, entry, s.width, spec.rope, segment.caches[s.entries].row(w));
}

void store_state(const ops::Compress& s, const Frame& f, const ops::Segment& segment) {
    const ops::CacheSpec& spec = f.plan.caches[static_cast<size_t>(s.state)];
    const auto bytes = sizeof(float) * static_cast<size_t>(f.cols(s.values));
    for (int64_t i = std::max<int64_t>(0, segment.rows - spec.ring_rows); i < segment.rows; ++i) {
        std::byte* row = segment.caches[s.state].row(segment.position + i);
        std::memcpy(row, f.row(s.values, segment.first_row + i), bytes);
        std::memcpy(row + bytes, f.row(s.scores, segment.first_row + i), bytes);
    }
}

/// Floats of the head panel of a row.
int64_t panel_size(const ops::SelectEntries& s) {
    return (s.heads + kMostHeadBlock - 1) / kMostHeadBlock * kMostHeadBlock * s.width;
}

/// Whether keys and queries are multiplied as the integers that FP4 holds.
bool in_integers(const ops::SelectEntries& s, const ops::Plan& plan) {
    const quant::KvFormat format = plan.caches[static_cast<size_t>(s.keys)].format;
    return format == quant::KvFormat::kFp4 && s.width % quant::kInt8Columns == 0 && ops::queries_are_fp4(plan, s);
}

/// Scores of entries [begin, end) for one row whose queries are in `panel`. `keys` is scratch [kTile, width].
void score(const ops::SelectEntries& s, const Frame& f, const ops::Segment& segment, int64_t row, bool integers,
           const float* panel, int64_t begin, int64_t end, float* keys, float* scores) {
    const ops::CacheSpec& spec = f.plan.caches[static_cast<size_t>(s.keys)];
    for (int64_t first = begin; first < end; first += kTile) {
        const int64_t n = std::min(kTile, end - first);
        const std::byte* rows[kTile];
        for (int64_t i = 0; i < n; ++i) rows[i] = segment.caches[s.keys].row(first + i);
        if (integers) {
            f.kernels.index_scores_fp4(panel, f.row(s.gates, row), s.heads, rows, n, s.width,
                                       reinterpret_cast<quant::Int8Group*>(keys), scores + first);
            continue;
        }
        f.kernels.decode_kv(spec.format, rows, n, s.width, spec.rope, keys, s.width);
        f.kernels.index_scores(panel, f.row(s.gates, row), s.heads, keys, n, s.width, scores + first);
    }
}

/// Writes count and the top entries in ascending order; ties go to the lowest index. `work` is scratch [visible].
void choose(const KernelTable& kernels, const float* scores, int64_t visible, int32_t top_k, int32_t* work,
            int32_t* selection) {
    const float border = kernels.kth_largest(scores, visible, top_k, work);
    const int64_t count = kernels.at_least(scores, visible, border, work);
    const auto larger = [&](int32_t w) { return scores[w] > border; };
    int64_t ties = top_k - std::count_if(work, work + count, larger);
    selection[0] = top_k;
    std::copy_if(work, work + count, selection + 1, [&](int32_t w) { return larger(w) || ties-- > 0; });
}

}  // namespace

void run(const ops::Compress& s, const Frame& f) noexcept {
    const int64_t wide = f.cols(s.values);
    const float* ape = f.plan.vectors[static_cast<size_t>(s.ape)].values.data();  // [ratio, wide]
    f.workers.split(f.batch.rows(), 8, [&](int64_t begin, int64_t end, int) {
        for (int64_t t = begin; t < end; ++t)
            f.kernels.axpy(1.0f, ape + f.batch.positions[static_cast<size_t>(t)] % s.ratio * wide, f.row(s.scores, t),
                           wide);
    });
    for (const ops::Segment& segment : f.batch.segments) {
        const int64_t first = segment.position / s.ratio;
        const int64_t last = (segment.position + segment.rows) / s.ratio;
        f.workers.split(last - first, 1, [&](int64_t begin, int64_t end, int worker) {
            for (int64_t w = first + begin; w < first + end; ++w)
                make_entry(s, f, segment, w, f.worker_scratch(worker).data());
        });
        store_state(s, f, segment);  // only now: a long chunk overwrites rows that its first windows need
    }
}

void run(const ops::SelectEntries& s, const Frame& f) noexcept {
    const bool integers = in_integers(s, f.plan);
    const auto make_panel = integers ? f.kernels.fp4_panel : f.kernels.head_panel;
    for (const ops::Segment& segment : f.batch.segments) {
        const bool by_entry = segment.rows < f.workers.count();  // decode: split the entries, not the rows
        const auto select_row = [&](int64_t row, int worker, std::span<float> scratch) {
            int32_t* selection = f.int_row(s.selection, row);
            const int64_t visible = (f.batch.positions[static_cast<size_t>(row)] + 1) / s.ratio;
            if (visible <= s.top_k) {
                selection[0] = static_cast<int32_t>(visible);
                for (int32_t w = 0; w < selection[0]; ++w) selection[1 + w] = w;
                return;
            }
            float* panel = scratch.data();
            const size_t used = static_cast<size_t>(panel_size(s)), most = (scratch.size() - used) / 2;
            float* scores = panel + used;
            auto* work = reinterpret_cast<int32_t*>(scores + most);
            make_panel(f.row(s.q, row), s.heads, s.width, panel);
            if (by_entry)
                f.workers.split(visible, 4 * kTile, [&](int64_t begin, int64_t end, int part) {
                    score(s, f, segment, row, integers, panel, begin, end, f.worker_scratch(part).data(), scores);
                });
            else
                score(s, f, segment, row, integers, panel, 0, visible, f.worker_scratch(worker).data(), scores);
            choose(f.kernels, scores, visible, s.top_k, work, selection);
        };
        if (by_entry) {
            for (int64_t i = 0; i < segment.rows; ++i) select_row(segment.first_row + i, 0, f.shared);
        } else {
            f.workers.split(segment.rows, 1, [&](int64_t begin, int64_t end, int worker) {
                const std::span<float> own = f.worker_scratch(worker).subspan(static_cast<size_t>(kTile * s.width));
                for (int64_t i = begin; i < end; ++i) select_row(segment.first_row + i, worker, own);
            });
        }
    }
}

ScratchSize compress_scratch(const ops::Compress& s, const ops::Plan& plan) {
    return {0, s.width + plan.ropes[static_cast<size_t>(s.rope)].dims()};
}

ScratchSize select_scratch(const ops::SelectEntries& s, int64_t max_tokens) {
    const int64_t own = panel_size(s) + 2 * (max_tokens / s.ratio + 1);
    return {own, kTile * s.width + own + 2};
}

}  // namespace thermocline::cpu
