// Router and routed experts (deepseek-v4.md 2.8).
//
// Experts run in two phases. Phase one: strips of the intermediate channels of every expert that a row chose; phase
// two: strips of the output channels, each worker adding all experts of a row in ascending order of their ids. So no
// two workers write the same number and a row's result depends on nothing but the row.
#include "cpu/inputs.h"
#include "cpu/scratch.h"
#include "cpu/slices.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

namespace thermocline::cpu {

namespace {

constexpr int64_t kStrip = kExpertStrip;
// Numbers of an output that a worker computes at a time: in one vector's case a long stretch of the weights, where a
// jump to other ones costs what is not fetched ahead.
constexpr int64_t kTogether = 1 << 14;

/// Of `strips` the ones that are computed together for m vectors.
int64_t strips_together(int64_t strips, int64_t m) {
    return std::min(strips, std::max<int64_t>(1, kTogether / (m * kStrip)));
}

/// Ids of the top_k largest of scores + bias, ties to the lowest id; distinct for any input, NaN included. `work` is
/// scratch [experts].
void choose_experts(const KernelTable& kernels, const float* scores, const float* bias, int32_t experts, int32_t top_k,
                    float* work, int32_t* ids) {
    constexpr float kChosen = -std::numeric_limits<float>::infinity();
    std::copy_n(scores, experts, work);
    if (bias) kernels.axpy(1.0f, bias, work, experts);
    for (int32_t k = 0; k < top_k; ++k) {
        auto best = static_cast<int32_t>(kernels.largest(work, experts));
        if (work[best] == kChosen)  // numbers of a broken model: whatever is left
            for (best = 0; std::find(ids, ids + k, best) != ids + k;) ++best;
        ids[k] = best;
        work[best] = kChosen;
    }
}

/// The batch sorted by expert: which (row, weight) pairs each expert serves. Pairs with expert -1 are somebody else's.
/// Lives in the step's shared scratch.
struct Dispatch {
    int32_t* begin;   // [experts + 1] pairs of expert e are begin[e] .. begin[e + 1]
    int32_t* row;     // [pairs]
    float* weight;    // [pairs]
    int32_t* active;  // [min(experts, pairs)] experts with at least one pair, ascending
    int32_t active_count;
    float* h;  // [pairs, intermediate]
    float* x;  // [pairs, hidden or intermediate] prepared inputs (cpu/inputs.h) of every active expert in turn
};

/// Numbers of the prepared inputs of a pair.
int64_t panel_width(const ops::ExpertSet& set) {
    return std::max(InputForm::most_width(set.w1[0], set.hidden), InputForm::most_width(set.w2[0], set.intermediate));
}

Dispatch dispatch(const ops::Experts& s, const Frame& f, const ops::ExpertSet& set) {
    const int64_t rows = f.batch.rows(), pairs = rows * s.top_k, experts = static_cast<int64_t>(set.w1.size());
    float* at = f.shared.data();
    const auto take = [&](int64_t count) { return std::exchange(at, at + count); };
    Dispatch d{};
    d.x = take(pairs * panel_width(set));  // first: panels are read by cache lines
    d.h = take(pairs * set.intermediate);
    d.begin = reinterpret_cast<int32_t*>(take(experts + 2));
    d.row = reinterpret_cast<int32_t*>(take(pairs));
    d.weight = take(pairs);
    d.active = reinterpret_cast<int32_t*>(take(std::min(experts, pairs)));

    std::fill(d.begin, d.begin + experts + 2, 0);
    for (int64_t t = 0; t < rows; ++t)
        for (int32_t k = 0; k < s.top_k; ++k)
            if (f.int_row(s.ids, t)[k] >= 0) ++d.begin[f.int_row(s.ids, t)[k] + 2];
    for (int64_t e = 0; e < experts; ++e) {
        if (d.begin[e + 2] > 0) d.active[d.active_count++] = static_cast<int32_t>(e);
        d.begin[e + 2] += d.begin[e + 1];
    }
    for (int64_t t = 0; t < rows; ++t)
        for (int32_t k = 0; k < s.top_k; ++k) {
            const int32_t expert = f.int_row(s.ids, t)[k];
            if (expert < 0) continue;
            const int32_t pair = d.begin[expert + 1]++;
            d.row[pair] = static_cast<int32_t>(t);
            d.weight[pair] = f.row(s.weights, t)[k];
        }
    return d;
}

}  // namespace

void run(const ops::Route& s, const Frame& f) noexcept {
    const float* bias = s.bias == ops::kNone ? nullptr : f.plan.vectors[static_cast<size_t>(s.bias)].values.data();
    const int32_t* table = s.table == ops::kNone ? nullptr : f.plan.tables[static_cast<size_t>(s.table)].values.data();
    f.workers.split(f.batch.rows(), 16, [&](int64_t begin, int64_t end, int worker) {
        for (int64_t t = begin; t < end; ++t) {
            float* scores = f.row(s.logits, t);
            f.kernels.route_scores(scores, s.experts);
            int32_t* ids = f.int_row(s.ids, t);
            if (table)
                std::copy_n(table + int64_t{f.batch.tokens[static_cast<size_t>(t)]} * s.top_k, s.top_k, ids);
            else
                choose_experts(f.kernels, scores, bias, s.experts, s.top_k, f.worker_scratch(worker).data(), ids);
            float* weights = f.row(s.weights, t);
            float sum = 0.0f;
            for (int32_t k = 0; k < s.top_k; ++k) sum += weights[k] = scores[ids[k]];
            const float factor = s.normalise ? s.scale / std::max(sum, 1e-20f) : s.scale;
            for (int32_t k = 0; k < s.top_k; ++k) weights[k] *= factor;
        }
    });
}

void run(const ops::Experts& s, const Frame& f) noexcept {
    f.workers.split(f.batch.rows(), 16, [&](int64_t begin, int64_t end, int) {
        std::fill_n(f.row(s.out, begin), (end - begin) * f.cols(s.out), 0.0f);
    });
    add_experts(s, f);
}

void add_experts(const ops::Experts& s, const Frame& f) noexcept {
    const ops::ExpertSet& set = f.plan.experts[static_cast<size_t>(s.experts)];
    const Dispatch d = dispatch(s, f, set);
    const int64_t pairs = d.begin[set.w1.size()];

    // All matrices of a set are of one kind (memory/packed_weights.cpp).
    const InputForm form_x(set.w1[0], s.rounding, f.kernels), form_h(set.w2[0], s.rounding, f.kernels);
    const auto prepare = [&](const InputForm& form, int64_t width, auto input_of) {
        f.workers.split(pairs, 1, [&](int64_t begin, int64_t end, int) {
            const int32_t* expert = std::upper_bound(d.begin, d.begin + set.w1.size() + 1, begin) - 1;
            for (int64_t p = begin; p < end; ++p) {
                while (p >= expert[1]) ++expert;
                form.prepare(input_of(p), width, d.x + *expert * form.panel_width(width), p - *expert,
                             expert[1] - *expert);
            }
        });
    };
    prepare(form_x, set.hidden, [&](int64_t p) { return f.row(s.x, d.row[p]); });

    const Slices channels(set.w1[0], kStrip);
    const auto strips_of = [&](const Slices& slices) { return (slices.rows + kStrip - 1) / kStrip; };
    const int64_t grain = least_strips(strips_of(channels) * d.active_count, f.workers);
    split_slices(
        f.workers, channels, d.active_count, grain, [&](int64_t slice, int64_t begin, int64_t end, int worker) {
            float* gate = f.worker_scratch(worker).data();  // [pairs of the expert, rows at a time]
            const int64_t slice_rows = channels.rows_of(slice);
            const auto compute = [&](int64_t thing, int64_t first_strip, int64_t end_strip) {
                const int32_t e = d.active[thing];
                const int64_t p0 = d.begin[e], m = d.begin[e + 1] - p0;
                const auto index = static_cast<size_t>(e);
                const float* in = d.x + p0 * form_x.panel_width(set.hidden);
                const int64_t stride = form_x.stride(m, set.hidden);
                for (int64_t strip = first_strip, together = 0; strip < end_strip; strip += together) {
                    together = strips_together(end_strip - strip, m);
                    const int64_t first = strip * kStrip, count = std::min(together * kStrip, slice_rows - first);
                    float* up = gate + m * count;
                    const auto multiply = [&](const quant::Matrix& w, float* out) {
                        form_x.matmul()(strip_slice(w, slice), first, count, in, stride, m, out, count);
                    };
                    multiply(set.w1[index], gate);
                    multiply(set.w3[index], up);
                    float* h = d.h + p0 * set.intermediate + channels.first_row(slice) + first;
                    for (int64_t i = 0; i < m; ++i)
                        f.kernels.swiglu(gate + i * count, up + i * count, s.limit, d.weight[p0 + i],
                                         h + i * set.intermediate, count);
                }
            };
            for_runs(d.active_count, channels.chunks_of(slice), f.strips_first, begin, end, compute);
        });
    prepare(form_h, set.intermediate, [&](int64_t p) { return d.h + p * set.intermediate; });

    const Slices outputs(set.w2[0], kStrip);
    split_slices(
        f.workers, outputs, 1, least_strips(strips_of(outputs), f.workers),
        [&](int64_t slice, int64_t begin, int64_t end, int worker) {
            float* y = f.worker_scratch(worker).data();  // [pairs of the expert, rows at a time]
            const int64_t slice_row = outputs.first_row(slice), slice_rows = outputs.rows_of(slice);
            for (int32_t a = 0; a < d.active_count; ++a) {
                const int32_t e = d.active[a];
                const int64_t p0 = d.begin[e], m = d.begin[e + 1] - p0;
                for (int64_t strip = begin, together = 0; strip < end; strip += together) {
                    together = strips_together(end - strip, m);
                    const int64_t first = strip * kStrip, count = std::min(together * kStrip, slice_rows - first);
                    form_h.matmul()(strip_slice(set.w2[static_cast<size_t>(e)], slice), first, count,
                                    d.x + p0 * form_h.panel_width(set.intermediate), form_h.stride(m, set.intermediate),
                                    m, y, count);
                    for (int64_t i = 0; i < m; ++i)
                        f.kernels.axpy(1.0f, y + i * count, f.row(s.out, d.row[p0 + i]) + slice_row + first, count);
                }
            }
        });
}

ScratchSize experts_scratch(const ops::Experts& s, const ops::ExpertSet& set, int64_t max_rows) {
    const int64_t pairs = max_rows * s.top_k, experts = static_cast<int64_t>(set.w1.size());
    const int64_t shared =
        experts + 2 + 2 * pairs + std::min(experts, pairs) + pairs * (set.intermediate + panel_width(set));
    return {shared, 2 * std::max(pairs * kStrip, kTogether)};  // a token table may name an expert twice for a row
}

}  // namespace thermocline::cpu
