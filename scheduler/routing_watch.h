// Counts what the routers of a running model choose, and keeps or writes it as a trace where that is wanted. The engine
// thread tells it of every pass; the counts may be asked for by any thread.
#pragma once

#include "scheduler/executor.h"
#include "scheduler/routing_trace.h"

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace thermocline::scheduler {

class RoutingWatch {
public:
    RoutingWatch(std::string model, std::vector<RoutedLayer> layers);

    const std::vector<RoutedLayer>& layers() const { return layers_; }
    /// For Executor::record_routing.
    RoutingRecord* record() { return &record_; }
    ~RoutingWatch();
    RoutingWatch(const RoutingWatch&) = delete;
    RoutingWatch& operator=(const RoutingWatch&) = delete;

    /// After a pass over these parts; `residency`: as it stands then. Single tokens count as decoding.
    void passed(std::span<const Part> parts, const ResidencyCounters& residency);

    /// From the next pass on, each goes to `path` too; any thread. When it cannot be written any more, that is logged
    /// once and the recording ends. Throws Error if it cannot be opened, or another recording goes on.
    void write_to(const std::string& path);
    /// Ends the recording; any thread. Returns how many tokens it has. Throws Error if they are not all written.
    int64_t stop_writing();
    /// Before the first pass: passes are kept for trace().
    void keep();
    /// The class that the following passes are filed under; no pass may run meanwhile.
    void set_kind(std::string kind) { kind_ = std::move(kind); }
    /// What was kept; no pass may run meanwhile.
    const RoutingTrace& trace() const { return *kept_; }

    /// What lies on the card, from the engine thread now and then.
    void place(std::vector<ExpertName> resident);

    struct Counts {
        int64_t rows = 0;
        std::vector<std::vector<int64_t>> chosen;  // [layers][experts]
        ResidencyCounters residency;
        std::vector<ExpertName> resident;  // as place() had them last
    };
    Counts counts() const;

private:
    const std::string model_;
    const std::vector<RoutedLayer> layers_;
    RoutingRecord record_;
    std::string kind_;
    std::optional<RoutingTrace> kept_;
    std::mutex writing_;  // guards writer_ and written_
    std::unique_ptr<RoutingTraceWriter> writer_;
    int64_t written_ = 0;       // tokens
    mutable std::mutex mutex_;  // guards what follows
    Counts counts_;
};

}  // namespace thermocline::scheduler
