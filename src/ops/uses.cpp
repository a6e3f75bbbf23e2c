#include "src/ops/uses.h"

namespace thermocline::ops {

namespace {

struct Lister {
    Uses operator()(const Embed& s) const { return {.writes = {s.out, kNone, kNone}}; }
    Uses operator()(const Linear& s) const { return reads_one(s.in, s.out); }
    Uses operator()(const RmsNorm& s) const { return reads_one(s.in, s.out); }
    Uses operator()(const Rope& s) const { return in_place(s.x); }
    Uses operator()(const HyperIn& s) const {
        return {.reads = {s.streams, s.mix, kNone, kNone}, .writes = {s.x, s.post_comb, kNone}};
    }
    Uses operator()(const HyperOut& s) const {
        return {.reads = {s.y, s.post_comb, kNone, kNone}, .writes = {s.streams, kNone, kNone}};
    }
    Uses operator()(const HyperHead& s) const {
        return {.reads = {s.streams, s.mix, kNone, kNone}, .writes = {s.x, kNone, kNone}};
    }
    Uses operator()(const RoundKv& s) const { return in_place(s.x); }
    Uses operator()(const Compress& s) const {
        return {.reads = {s.values, s.scores, kNone, kNone}, .cache_writes = {s.state, s.entries}};
    }
    Uses operator()(const SelectEntries& s) const {
        return {.reads = {s.q, s.gates, kNone, kNone},
                .writes = {s.selection, kNone, kNone},
                .cache_reads = {s.keys, kNone}};
    }
    Uses operator()(const Attention& s) const {
        return {.reads = {s.q, s.kv, s.selection, kNone},
                .writes = {s.out, kNone, kNone},
                .cache_reads = {s.window_cache, s.entries}};
    }
    Uses operator()(const StoreWindow& s) const {
        return {.reads = {s.kv, kNone, kNone, kNone}, .cache_writes = {s.window_cache, kNone}};
    }
    Uses operator()(const Route& s) const {
        return {.reads = {s.logits, kNone, kNone, kNone}, .writes = {s.ids, s.weights, kNone}};
    }
    Uses operator()(const Experts& s) const {
        return {.reads = {s.x, s.ids, s.weights, kNone}, .writes = {s.out, kNone, kNone}};
    }
    Uses operator()(const SwiGlu& s) const {
        return {.reads = {s.gate, s.up, kNone, kNone}, .writes = {s.out, kNone, kNone}};
    }
    Uses operator()(const Add& s) const { return reads_one(s.y, s.x); }
    Uses operator()(const TakeRows& s) const { return reads_one(s.in, s.out); }

    static Uses reads_one(Slot in, Slot out) {
        return {.reads = {in, kNone, kNone, kNone}, .writes = {out, kNone, kNone}};
    }
    static Uses in_place(Slot x) { return {.writes = {x, kNone, kNone}}; }
};

}  // namespace

Uses uses_of(const Step& step) { return std::visit(Lister(), step); }

bool queries_are_fp4(const Plan& plan, const SelectEntries& s) {
    bool any = false;
    for (const Step& step : plan.steps) {
        const auto* round = std::get_if<RoundKv>(&step);
        if (round == nullptr || round->x != s.q) continue;
        if (round->format != quant::KvFormat::kFp4 || round->width != s.width) return false;
        any = true;
    }
    return any;
}

}  // namespace thermocline::ops
