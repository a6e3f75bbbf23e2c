#include "cuda/waves.h"

#include "cuda/kernels/list.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <tuple>

namespace thermocline::cuda {

namespace {

using Places = std::array<int, Kernels::kCount>;

/// The place in the list of every kernel of Kernels; -1: it is not in it.
template <typename... Listed>
const Places& places_in(KernelList<Listed...>) {
    static const Places places = [] {
        Places all;
        all.fill(-1);
        int place = 0;
        ((all[static_cast<size_t>(Kernels::index_of<Listed>())] = place++), ...);
        return all;
    }();
    return places;
}

}  // namespace

Waves::Meeting Waves::meeting_of(int kernel) {
    const auto i = static_cast<size_t>(kernel);
    if (places_in(RowMeeting())[i] >= 0) return Meeting::kRows;
    if (places_in(EntryMeeting())[i] >= 0) return Meeting::kEntries;
    return places_in(ProductMeeting())[i] >= 0 ? Meeting::kProducts : Meeting::kNever;
}

void Waves::launch(int kernel, const Grid& grid, const void* members, size_t bytes) {
    const auto* begin = static_cast<const std::byte*>(members);
    launches_.push_back({level_++, meeting_of(kernel), kernel, grid, members_.size(), bytes});
    members_.insert(members_.end(), begin, begin + bytes);
}

/// launches_[begin, end) as one, all of one level and of the list.
template <typename List>
void Waves::start_together(size_t begin, size_t end) {
    Together<List> kernel = {};
    Grid grid = {.x = 0, .threads = 0};
    for (size_t i = begin; i < end; ++i) {
        const Launch& one = launches_[i];
        auto& part = kernel.parts[i - begin];
        std::memcpy(part.members, &members_[one.at], one.bytes);
        grid.x += one.grid.x * one.grid.y;
        grid.threads = std::max(grid.threads, one.grid.threads);
        grid.shared_bytes = std::max(grid.shared_bytes, one.grid.shared_bytes);
        part.end = grid.x;
        part.blocks = one.grid.x;
        part.kernel = places_in(List())[static_cast<size_t>(one.kernel)];
        part.threads = one.grid.threads;
    }
    cuda::launch(to_, grid, kernel);
}

void Waves::start(size_t begin, size_t end) {
    const Launch& first = launches_[begin];
    if (end - begin == 1) return to_.launch(first.kernel, first.grid, &members_[first.at], first.bytes);
    if (first.meeting == Meeting::kRows) return start_together<RowMeeting>(begin, end);
    if (first.meeting == Meeting::kEntries) return start_together<EntryMeeting>(begin, end);
    start_together<ProductMeeting>(begin, end);
}

void Waves::flush() {
    const auto key = [](const Launch& one) { return std::tuple(one.level, one.meeting); };
    std::stable_sort(launches_.begin(), launches_.end(),
                     [&](const Launch& a, const Launch& b) { return key(a) < key(b); });
    for (size_t begin = 0; begin < launches_.size();) {
        const Launch& first = launches_[begin];
        const size_t most = first.meeting == Meeting::kNever ? 1 : kMostTogether;
        size_t end = begin + 1;
        while (end < launches_.size() && end - begin < most && key(launches_[end]) == key(first)) ++end;
        start(begin, end);
        begin = end;
    }
    launches_.clear();
    members_.clear();
    level_ = 0;
}

void Waves::multiply(const DenseProduct& product) {
    const int after = level_ + 1;  // it counts like a launch
    flush();
    to_.multiply(product);
    level_ = after;
}

void Waves::copy(void* to, const void* from, int64_t bytes) {
    flush();
    to_.copy(to, from, bytes);
}

void Waves::wait_for(const Flag* flag) {
    flush();
    to_.wait_for(flag);
}

void Waves::begin_recording() {
    flush();
    to_.begin_recording();
}

std::unique_ptr<Graph> Waves::end_recording() {
    flush();
    return to_.end_recording();
}

void Waves::play(const Graph& graph) {
    flush();
    to_.play(graph);
}

bool Waves::finished() { return launches_.empty() && to_.finished(); }

void Waves::wait(std::chrono::milliseconds limit) {
    flush();
    to_.wait(limit);
}

}  // namespace thermocline::cuda
