#include "scheduler/expert_reader.h"

#include "src/quant/strips.h"

#include <algorithm>

namespace thermocline::scheduler {

namespace {

/// What a matrix's codes and scales take where they lie.
template <typename Body>
void each_piece(const quant::Matrix& w, Body body) {
    if (w.layout == quant::Layout::kStrips) {
        const int64_t strips = w.rows / quant::kStripRows;
        for (int64_t first = 0, slice = 0; first < strips; first += w.slice_strips, ++slice)
            body(w.data + slice * w.slice_stride, std::min(w.slice_strips, strips - first) * w.strip_bytes);
    } else {
        body(w.data, w.rows * w.row_bytes);
    }
    if (w.scales != nullptr) body(w.scales, (w.rows + w.scale_rows - 1) / w.scale_rows * w.scale_stride);
}

}  // namespace

ExpertReader::ExpertReader(const ops::Plan& plan) : plan_(plan) {
    for (const ops::Step& step : plan.steps) {
        const auto* experts = std::get_if<ops::Experts>(&step);
        if (experts == nullptr) continue;
        sets_.push_back(experts->experts);
        asked_.emplace_back(plan.experts[static_cast<size_t>(experts->experts)].w1.size());
    }
}

void ExpertReader::begin_pass() {
    for (std::vector<char>& layer : asked_) std::fill(layer.begin(), layer.end(), 0);
}

void ExpertReader::ask(size_t layer, std::span<const int32_t> experts) {
    const ops::ExpertSet& set = plan_.experts[static_cast<size_t>(sets_[layer])];
    for (const int32_t expert : experts) {
        if (expert < 0 || asked_[layer][static_cast<size_t>(expert)]) continue;
        asked_[layer][static_cast<size_t>(expert)] = 1;
        for (const auto* list : {&set.w1, &set.w3, &set.w2})
            each_piece((*list)[static_cast<size_t>(expert)], [&](const std::byte* data, int64_t bytes) {
                if (reader_.ask({data, static_cast<size_t>(bytes)})) bytes_ += bytes;
            });
    }
}

}  // namespace thermocline::scheduler
