#include "memory/arena.h"

#include "src/base/thread.h"

#include <algorithm>
#include <atomic>
#include <utility>

namespace thermocline::memory {
namespace {

int64_t round_up(int64_t bytes, size_t page) {
    const auto unit = static_cast<int64_t>(page);
    return (bytes + unit - 1) / unit * unit;
}

}  // namespace

std::vector<std::jthread> start_on_cores(std::span<const Slice> slices, const std::function<void(size_t slice)>& body) {
    std::vector<std::jthread> threads;
    for (size_t i = 0; i < slices.size(); ++i)
        for (const int cpu : slices[i].cpus)
            threads.emplace_back([i, cpu, body] {
                pin_this_thread(cpu);
                body(i);
            });
    return threads;
}

Arena::Arena(Pages pages, int64_t stride, int64_t page_bytes, std::span<const Slice> slices)
    : pages_(std::move(pages)), stride_(stride), page_bytes_(page_bytes), slices_(slices.begin(), slices.end()) {
    for (size_t i = 0; i < slices_.size() && !refused_; ++i)
        if (!slices_[i].nodes.empty()) refused_ = bind_pages(bytes_of(i), slices_[i].nodes);
}

Arena::Arena(int64_t bytes, std::span<const Slice> slices)
    : Arena(Pages(static_cast<size_t>(round_up(bytes, Pages::kHuge)) * slices.size()), round_up(bytes, Pages::kHuge), 0,
            slices) {}

std::optional<Arena> Arena::reserved(int64_t bytes, std::span<const Slice> slices) {
    for (const size_t page : {Pages::kGiant, Pages::kHuge}) {
        if (bytes < static_cast<int64_t>(page)) continue;  // most of a page would lie idle
        const int64_t stride = round_up(bytes, page);
        std::optional<Pages> pages = Pages::reserved(static_cast<size_t>(stride) * slices.size(), page);
        if (!pages) continue;
        Arena arena(std::move(*pages), stride, static_cast<int64_t>(page), slices);
        if (arena.fill_all()) return arena;
    }
    return std::nullopt;
}

bool Arena::fill_all() const {
    std::vector<std::atomic<int64_t>> next(slices_.size());
    std::atomic<bool> filled = true;
    start_on_cores(slices_, [&](size_t slice) {
        const auto step = static_cast<int64_t>(Pages::kGiant);
        for (int64_t at = next[slice].fetch_add(step); at < stride_ && filled; at = next[slice].fetch_add(step)) {
            const auto count = static_cast<size_t>(std::min(step, stride_ - at));
            if (!fill(bytes_of(slice).subspan(static_cast<size_t>(at), count))) filled = false;
        }
    });  // and joins
    return filled;
}

std::optional<double> Arena::share_in_place() const {
    int64_t right = 0, all = 0;
    for (size_t i = 0; i < slices_.size(); ++i) {
        const std::vector<int>& nodes = slices_[i].nodes;
        if (nodes.empty()) continue;
        const PagesByNode found = pages_by_node(bytes_of(i));
        if (found.refused) return std::nullopt;
        for (const auto& [node, count] : found.pages) {
            all += count;
            if (std::find(nodes.begin(), nodes.end(), node) != nodes.end()) right += count;
        }
    }
    return all == 0 ? 1.0 : static_cast<double>(right) / static_cast<double>(all);
}

}  // namespace thermocline::memory
