#include "cpu/run.h"

#include "cpu/inputs.h"
#include "cpu/scratch.h"

#include <algorithm>

namespace thermocline::cpu {

namespace {

struct Sizer {
    const ops::Plan& plan;
    int64_t max_rows, max_tokens;

    ScratchSize operator()(const ops::Linear& s) const {
        const quant::Matrix& w = plan.matrices[static_cast<size_t>(s.weight)].matrix;
        return {max_rows * InputForm::most_width(w, plan.slots[static_cast<size_t>(s.in)].cols), 0};
    }
    ScratchSize operator()(const ops::RoundKv& s) const {
        return {0, (quant::kv_row_bytes(s.format, s.width, s.rope) + 3) / 4};
    }
    ScratchSize operator()(const ops::HyperOut& s) const {
        return {0, plan.slots[static_cast<size_t>(s.streams)].cols};
    }
    ScratchSize operator()(const ops::Attention& s) const { return {0, attention_scratch(s)}; }
    ScratchSize operator()(const ops::Compress& s) const { return compress_scratch(s, plan); }
    ScratchSize operator()(const ops::SelectEntries& s) const { return select_scratch(s, max_tokens); }
    ScratchSize operator()(const ops::Route& s) const { return {0, s.experts}; }
    ScratchSize operator()(const ops::Experts& s) const {
        return experts_scratch(s, plan.experts[static_cast<size_t>(s.experts)], max_rows);
    }
    template <typename Other>
    ScratchSize operator()(const Other&) const {
        return {};
    }
};

}  // namespace

ScratchSize scratch_size(const ops::Plan& plan, int64_t max_rows, int64_t max_tokens) {
    ScratchSize most;
    for (const ops::Step& step : plan.steps) {
        const ScratchSize one = std::visit(Sizer{plan, max_rows, max_tokens}, step);
        most.shared = std::max(most.shared, one.shared);
        most.per_worker = std::max(most.per_worker, one.per_worker);
    }
    most.shared += kPanelSlack;
    return most;
}

}  // namespace thermocline::cpu
