// Passes of few rows as graphs of a card: recorded when one of their kind first comes, played again from then on. Those
// used last are kept, for graphs take memory of the card that no table of it counts one by one (hybrid-engine.md 4.4).
// Used by the engine thread.
#pragma once

#include "cuda/device.h"

#include <compare>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace thermocline::scheduler {

inline constexpr size_t kMostGraphs = 64;  // of an executor

class RecordedPasses {
public:
    /// Passes of one kind put the same work into the stream.
    struct Kind {
        int64_t rows, outputs;
        bool on_card;   // experts of the card take part
        bool foretold;  // choices are
        auto operator<=>(const Kind&) const = default;
    };

    /// `stream` must outlive every play().
    explicit RecordedPasses(cuda::Stream& stream, size_t most = kMostGraphs) : stream_(stream), most_(most) {}

    /// Has the stream, all of whose earlier work is done, do what `enqueue` puts into it for such a pass. Where a graph
    /// is refused, the pass is played without, and no more are kept from then on than there were. Throws what `enqueue`
    /// throws, and Error if the card fails.
    void play(const Kind& kind, const std::function<void(bool recorded)>& enqueue);

private:
    struct Recorded {
        Kind kind;
        std::unique_ptr<cuda::Graph> graph;
    };
    /// Null: refused.
    std::unique_ptr<cuda::Graph> record(const std::function<void(bool recorded)>& enqueue);

    cuda::Stream& stream_;
    size_t most_;
    bool refused_ = false;            // one was, which is said once
    std::vector<Recorded> recorded_;  // the one used last at the end
};

}  // namespace thermocline::scheduler
