#include "memory/arena.h"

#include <algorithm>
#include <utility>

namespace thermocline::memory {
namespace {

int64_t round_up(int64_t bytes, size_t page) {
    const auto unit = static_cast<int64_t>(page);
    return (bytes + unit - 1) / unit * unit;
}

}  // namespace

Arena::Arena(Pages pages, int64_t stride, int64_t page_bytes, std::span<const NodeSet> slices)
    : pages_(std::move(pages)), stride_(stride), page_bytes_(page_bytes), slices_(slices.begin(), slices.end()) {
    for (size_t i = 0; i < slices_.size() && !refused_; ++i)
        if (!slices_[i].empty()) refused_ = bind_pages(bytes_of(i), slices_[i]);
}

Arena::Arena(int64_t bytes, std::span<const NodeSet> slices)
    : Arena(Pages(static_cast<size_t>(round_up(bytes, Pages::kHuge)) * slices.size()), round_up(bytes, Pages::kHuge), 0,
            slices) {}

std::optional<Arena> Arena::reserved(int64_t bytes, std::span<const NodeSet> slices, int threads) {
    for (const size_t page : {Pages::kGiant, Pages::kHuge}) {
        if (bytes < static_cast<int64_t>(page)) continue;  // most of a page would lie idle
        const int64_t stride = round_up(bytes, page);
        std::optional<Pages> pages = Pages::reserved(static_cast<size_t>(stride) * slices.size(), page);
        if (!pages) continue;
        Arena arena(std::move(*pages), stride, static_cast<int64_t>(page), slices);
        if (arena.pages_.fill(threads)) return arena;
    }
    return std::nullopt;
}

std::optional<double> Arena::share_in_place() const {
    int64_t right = 0, all = 0;
    for (size_t i = 0; i < slices_.size(); ++i) {
        if (slices_[i].empty()) continue;
        const PagesByNode found = pages_by_node(bytes_of(i));
        if (found.refused) return std::nullopt;
        for (const auto& [node, count] : found.pages) {
            all += count;
            if (std::find(slices_[i].begin(), slices_[i].end(), node) != slices_[i].end()) right += count;
        }
    }
    return all == 0 ? 1.0 : static_cast<double>(right) / static_cast<double>(all);
}

}  // namespace thermocline::memory
