// Shapes at load: every step against the slots, weights and caches it names.
#include "src/base/error.h"
#include "src/ops/plan.h"
#include "src/quant/strips.h"

namespace thermocline::ops {

namespace {

struct Verifier {
    const Plan& plan;
    const char* step = "";
    size_t index = 0;

    [[noreturn]] void wrong(const std::string& what) const {
        fail("plan ", plan.name, ", step ", index, " (", step, "): ", what);
    }

    const SlotSpec& slot(Slot id) const {
        if (id < 0 || id >= static_cast<Slot>(plan.slots.size()))
            wrong("slot " + std::to_string(id) + " does not exist");
        return plan.slots[static_cast<size_t>(id)];
    }
    void cols(Slot id, int64_t expected) const {
        const SlotSpec& spec = slot(id);
        if (spec.cols != expected)
            wrong("slot " + spec.name + " has " + std::to_string(spec.cols) + " columns, expected " +
                  std::to_string(expected));
    }
    void same_rows(Slot a, Slot b) const {
        if (slot(a).rows != slot(b).rows) wrong("slots " + slot(a).name + " and " + slot(b).name + " differ in rows");
    }
    const quant::Matrix& matrix(MatrixId id) const {
        if (id < 0 || id >= static_cast<MatrixId>(plan.matrices.size())) wrong("matrix does not exist");
        return plan.matrices[static_cast<size_t>(id)].matrix;
    }
    void vector(VectorId id, int64_t expected) const {
        if (id < 0 || id >= static_cast<VectorId>(plan.vectors.size())) wrong("vector does not exist");
        const NamedVector& named = plan.vectors[static_cast<size_t>(id)];
        if (static_cast<int64_t>(named.values.size()) != expected)
            wrong(named.name + " has " + std::to_string(named.values.size()) + " values, expected " +
                  std::to_string(expected));
    }
    void rope(RopeId id, int64_t width) const {
        if (id < 0 || id >= static_cast<RopeId>(plan.ropes.size())) wrong("rope table does not exist");
        if (plan.ropes[static_cast<size_t>(id)].dims() > width) wrong("rope is wider than its vectors");
    }
    const CacheSpec& cache(CacheId id, CacheSpec::Kind kind, int64_t width) const {
        if (id < 0 || id >= static_cast<CacheId>(plan.caches.size())) wrong("cache does not exist");
        const CacheSpec& spec = plan.caches[static_cast<size_t>(id)];
        if (spec.kind != kind || spec.width != width)
            wrong("cache " + spec.name + " has width " + std::to_string(spec.width) + ", expected " +
                  std::to_string(width));
        return spec;
    }
    /// Packed experts are of one format, or none is packed: the kernels prepare the inputs of a set once.
    void one_kind(const ExpertSet& set) const {
        const bool packed = set.w1.front().layout == quant::Layout::kStrips;
        for (const auto* list : {&set.w1, &set.w3, &set.w2}) {
            const quant::Format format = (list == &set.w2 ? set.w2 : set.w1).front().format;
            for (const quant::Matrix& m : *list)
                if ((m.layout == quant::Layout::kStrips) != packed || (packed && m.format != format))
                    wrong(set.name + " mixes kinds of packed matrices");
        }
    }
    void multiple(Slot id, int64_t width) const {
        if (width <= 0 || slot(id).cols % width != 0)
            wrong("slot " + slot(id).name + " is not a multiple of the width");
    }

    void operator()(const Embed& s) const {
        if (matrix(s.table).layout != quant::Layout::kRows) wrong("the table is packed, but read row by row");
        cols(s.out, matrix(s.table).cols * s.copies);
    }
    void operator()(const Linear& s) const {
        const quant::Matrix& w = matrix(s.weight);
        if (s.groups < 1 || s.fold < 1 || w.rows % s.groups != 0) wrong("rows do not divide into groups");
        if (w.layout == quant::Layout::kStrips && w.rows / s.groups % quant::kStripRows != 0)
            wrong("the groups are no whole strips");
        cols(s.in, w.cols * s.groups * s.fold);
        cols(s.out, w.rows * s.fold);
        same_rows(s.in, s.out);
    }
    void operator()(const RmsNorm& s) const {
        multiple(s.in, s.width);
        cols(s.out, slot(s.in).cols);
        same_rows(s.in, s.out);
        if (s.weight != kNone) vector(s.weight, s.width);
    }
    void operator()(const Rope& s) const {
        multiple(s.x, s.width);
        rope(s.rope, s.width);
    }
    void operator()(const HyperIn& s) const {
        cols(s.streams, slot(s.x).cols * s.n);
        cols(s.mix, int64_t{s.n} * (2 + s.n));
        cols(s.post_comb, int64_t{s.n} * (1 + s.n));
        vector(s.base, int64_t{s.n} * (2 + s.n));
        vector(s.scale, 3);
    }
    void operator()(const HyperOut& s) const {
        cols(s.streams, slot(s.y).cols * s.n);
        cols(s.post_comb, int64_t{s.n} * (1 + s.n));
    }
    void operator()(const HyperHead& s) const {
        cols(s.streams, slot(s.x).cols * s.n);
        cols(s.mix, s.n);
        vector(s.base, s.n);
        vector(s.scale, 1);
    }
    void operator()(const RoundKv& s) const { multiple(s.x, s.width); }
    void operator()(const Compress& s) const {
        const int64_t wide = int64_t{s.overlap ? 2 : 1} * s.width;
        cols(s.values, wide);
        cols(s.scores, wide);
        vector(s.ape, s.ratio * wide);
        vector(s.norm, s.width);
        rope(s.rope, s.width);
        const CacheSpec& state = cache(s.state, CacheSpec::Kind::kRing, 2 * wide);
        if (state.ring_rows < int64_t{s.overlap ? 2 : 1} * s.ratio) wrong("state ring is shorter than its window");
        cache(s.entries, CacheSpec::Kind::kEntries, s.width);
    }
    void operator()(const SelectEntries& s) const {
        cols(s.q, int64_t{s.heads} * s.width);
        cols(s.gates, s.heads);
        cols(s.selection, 1 + int64_t{s.top_k});
        cache(s.keys, CacheSpec::Kind::kEntries, s.width);
    }
    void operator()(const Attention& s) const {
        cols(s.q, int64_t{s.heads} * s.width);
        cols(s.out, int64_t{s.heads} * s.width);
        cols(s.kv, s.width);
        vector(s.sinks, s.heads);
        const CacheSpec& ring = cache(s.window_cache, CacheSpec::Kind::kRing, s.width);
        if (ring.ring_rows < s.window) wrong("window ring is shorter than the window");
        if (s.entries != kNone) cache(s.entries, CacheSpec::Kind::kEntries, s.width);
    }
    void operator()(const StoreWindow& s) const {
        cols(s.kv, s.width);
        cache(s.window_cache, CacheSpec::Kind::kRing, s.width);
    }
    void operator()(const Route& s) const {
        cols(s.logits, s.experts);
        cols(s.ids, s.top_k);
        cols(s.weights, s.top_k);
        if (s.top_k > s.experts) wrong("top_k is larger than the number of experts");
        if (s.bias != kNone) vector(s.bias, s.experts);
        if (s.table != kNone && plan.tables[static_cast<size_t>(s.table)].values.size() !=
                                    static_cast<size_t>(plan.vocab) * static_cast<size_t>(s.top_k))
            wrong("token table has another size than vocab * top_k");
    }
    void operator()(const Experts& s) const {
        const ExpertSet& set = plan.experts[static_cast<size_t>(s.experts)];
        cols(s.x, set.hidden);
        cols(s.out, set.hidden);
        cols(s.ids, s.top_k);
        cols(s.weights, s.top_k);
        for (size_t e = 0; e < set.w1.size(); ++e)
            if (set.w1[e].rows != set.intermediate || set.w3[e].rows != set.intermediate ||
                set.w2[e].rows != set.hidden || set.w1[e].cols != set.hidden || set.w3[e].cols != set.hidden ||
                set.w2[e].cols != set.intermediate)
                wrong(set.name + " expert " + std::to_string(e) + " has another shape");
        one_kind(set);
    }
    void operator()(const SwiGlu& s) const {
        cols(s.gate, slot(s.out).cols);
        cols(s.up, slot(s.out).cols);
    }
    void operator()(const Add& s) const { cols(s.x, slot(s.y).cols * s.repeat); }
    void operator()(const TakeRows& s) const {
        cols(s.in, slot(s.out).cols);
        if (slot(s.in).rows != Rows::kTokens || slot(s.out).rows != Rows::kOutputs) wrong("takes tokens to outputs");
    }
};

}  // namespace

void verify(const Plan& plan) {
    for (size_t i = 0; i < plan.steps.size(); ++i)
        std::visit(Verifier{plan, step_name(plan.steps[i]), i}, plan.steps[i]);
    const Foretelling* before = nullptr;
    for (const Foretelling& one : plan.foretold) {
        const auto end = static_cast<int32_t>(plan.steps.size());
        const Verifier verifier{plan, "Foretelling", static_cast<size_t>(one.router)};
        if (one.after < (before ? before->router : 0) || one.router <= one.after || one.router + 1 >= end)
            verifier.wrong("is not between the router before it and its own");
        const auto* gate = std::get_if<Linear>(&plan.steps[static_cast<size_t>(one.router)]);
        const auto* route = std::get_if<Route>(&plan.steps[static_cast<size_t>(one.router) + 1]);
        if (gate == nullptr || route == nullptr || gate->out != route->logits) verifier.wrong("is of no router");
        before = &one;
    }
}

}  // namespace thermocline::ops
