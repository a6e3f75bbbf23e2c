#include "scheduler/recorded_passes.h"

#include "src/base/error.h"
#include "src/base/log.h"

#include <algorithm>
#include <utility>

namespace thermocline::scheduler {

namespace {

/// So that the stream does its work again.
void stop_recording(cuda::Stream& stream) noexcept {
    try {
        (void)stream.end_recording();
    } catch (...) {  // nothing usable was recorded, and why is known already
    }
}

}  // namespace

std::unique_ptr<cuda::Graph> RecordedPasses::record(const std::function<void(bool recorded)>& enqueue) {
    stream_.begin_recording();
    try {
        enqueue(true);
    } catch (...) {
        stop_recording(stream_);
        throw;
    }
    try {
        return stream_.end_recording();
    } catch (const Error& error) {
        if (!std::exchange(refused_, true))
            log::warn(
                "{}; {} recorded passes are kept, others are started kernel by kernel, which is slower: leave the "
                "card more room (a lower --gpu-memory, or end other programs that use it)",
                error.what(), recorded_.size());
        most_ = recorded_.size();
        return nullptr;
    }
}

void RecordedPasses::play(const Kind& kind, const std::function<void(bool recorded)>& enqueue) {
    const auto found = std::ranges::find(recorded_, kind, &Recorded::kind);
    if (found != recorded_.end()) {
        std::rotate(found, found + 1, recorded_.end());
        return stream_.play(*recorded_.back().graph);
    }
    if (most_ == 0) return enqueue(false);
    if (recorded_.size() == most_) recorded_.erase(recorded_.begin());
    std::unique_ptr<cuda::Graph> graph = record(enqueue);
    if (graph == nullptr) return enqueue(false);
    recorded_.push_back({kind, std::move(graph)});
    stream_.play(*recorded_.back().graph);
}

}  // namespace thermocline::scheduler
