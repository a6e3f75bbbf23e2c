#include "src/ops/cost.h"

#include <algorithm>

namespace thermocline::ops {

namespace {

struct Coster {
    const Plan& plan;
    const Batch& batch;

    int64_t rows(Slot slot) const {
        return plan.slots[static_cast<size_t>(slot)].rows == Rows::kTokens ? batch.rows() : batch.outputs();
    }
    const CacheSpec& cache(CacheId id) const { return plan.caches[static_cast<size_t>(id)]; }

    /// Sum over the batch's rows of entries visible to a row, at most `limit` each.
    int64_t visible_entries(int32_t ratio, int64_t limit) const {
        int64_t sum = 0;
        for (const int64_t position : batch.positions) sum += std::min<int64_t>((position + 1) / ratio, limit);
        return sum;
    }
    /// Entries that a pass reads at least once: those visible to the last row of each segment.
    int64_t distinct_entries(int32_t ratio, int64_t limit_per_row) const {
        int64_t sum = 0;
        for (const Segment& segment : batch.segments) {
            const int64_t all = (segment.position + segment.rows) / ratio;
            sum += std::min(all, std::min(all, limit_per_row) * segment.rows);
        }
        return sum;
    }

    Cost operator()(const Embed& s) const {
        const quant::Matrix& table = plan.matrices[static_cast<size_t>(s.table)].matrix;
        return {batch.rows() * table.row_bytes, 0};
    }
    Cost operator()(const Linear& s) const {
        const quant::Matrix& w = plan.matrices[static_cast<size_t>(s.weight)].matrix;
        const int64_t vectors = rows(s.in) * s.fold;
        return {vectors > 0 ? w.bytes() : 0, 2 * vectors * w.rows * w.cols};
    }
    Cost operator()(const SelectEntries& s) const {
        const int64_t scored = visible_entries(s.ratio, INT64_MAX);
        return {distinct_entries(s.ratio, INT64_MAX) * cache(s.keys).row_bytes(), 2 * scored * s.heads * s.width};
    }
    Cost operator()(const Attention& s) const {
        Cost cost;
        const auto window_rows = [&](int64_t position) { return std::min<int64_t>(position + 1, s.window); };
        int64_t attended = 0;
        for (const int64_t position : batch.positions) attended += window_rows(position);
        for (const Segment& segment : batch.segments)
            cost.bytes += window_rows(segment.position) * cache(s.window_cache).row_bytes();
        if (s.entries != kNone) {
            const int64_t limit =
                s.selection == kNone ? INT64_MAX : plan.slots[static_cast<size_t>(s.selection)].cols - 1;
            attended += visible_entries(s.ratio, limit);
            cost.bytes += distinct_entries(s.ratio, limit) * cache(s.entries).row_bytes();
        }
        cost.flops = 4 * attended * s.heads * s.width;
        return cost;
    }
    Cost operator()(const Experts& s) const {
        const ExpertSet& set = plan.experts[static_cast<size_t>(s.experts)];
        const int64_t pairs = batch.rows() * s.top_k;
        const int64_t used = std::min<int64_t>(pairs, static_cast<int64_t>(set.w1.size()));
        const int64_t bytes = set.w1[0].bytes() + set.w2[0].bytes() + set.w3[0].bytes();
        return {used * bytes, 6 * pairs * set.hidden * set.intermediate};
    }
    template <typename Other>
    Cost operator()(const Other&) const {
        return {};  // works on activations only
    }
};

}  // namespace

Cost step_cost(const Plan& plan, const Step& step, const Batch& batch) { return std::visit(Coster{plan, batch}, step); }

Cost plan_cost(const Plan& plan, const Batch& batch) {
    Cost total;
    for (const Step& step : plan.steps) total += step_cost(plan, step, batch);
    return total;
}

}  // namespace thermocline::ops
