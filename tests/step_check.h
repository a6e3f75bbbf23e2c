// Every step of a backend against the oracle, with the inputs the engine really has: a plan is played step by step, the
// oracle gets the backend's slots and cache rows before each step, and what the step left behind is compared. Whatever
// breaks is named by its step.
#pragma once

#include "memory/page_store.h"
#include "src/ops/batch.h"
#include "src/ops/plan.h"

#include <cstdint>
#include <span>

namespace thermocline {

/// Buffers of one plan, for playing single steps.
class Stage {
public:
    static constexpr int64_t kMaxRows = 140;
    static constexpr int64_t kMaxTokens = 1024;

    virtual ~Stage() = default;
    virtual void begin(const ops::Batch& batch) = 0;
    virtual void run(const ops::Step& step, const ops::Batch& batch) = 0;
    /// [kMaxRows, cols]
    virtual std::span<float> slot(ops::Slot id) = 0;
    /// Where pages of caches lie that both sides of the check reach.
    virtual memory::PageStore& pages() { return memory::host_pages(); }
};

/// Few rows and many, over the boundaries of windows and entries.
inline constexpr int64_t kAllChunks[] = {1, 2, 4, 9, 112, 1, Stage::kMaxRows, 3, 17};

/// Tokens in chunks of so many rows, at most kMaxRows, together at most 290. A number may be off by `tolerance` times
/// its size (at least 1), a share of `wrong_share` of all numbers by more.
void expect_steps_match(const ops::Plan& plan, Stage& stage, double tolerance, double wrong_share,
                        std::span<const int64_t> chunks = kAllChunks);

}  // namespace thermocline
