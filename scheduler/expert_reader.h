// Has experts that lie in mapped files, and in no memory, read while others are computed: those that a layer has chosen
// as soon as it has, all at once instead of page after page as they are computed, and before that those foretold
// (expert_prefetch.h). What is chosen is asked for in passes of any size, but for those that share experts with a card:
// it needs no foretelling and cannot be in vain. Used by the engine thread.
#pragma once

#include "memory/read_ahead.h"
#include "src/ops/plan.h"

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

namespace thermocline::scheduler {

class ExpertReader {
public:
    /// `plan` must outlive it.
    explicit ExpertReader(const ops::Plan& plan);

    void begin_pass();
    /// Those of the layer of one Experts step, in order, that have not been asked for in this pass; -1 is left out.
    void ask(size_t layer, std::span<const int32_t> experts);

    int64_t bytes() const { return bytes_; }  ///< asked for since the start

private:
    const ops::Plan& plan_;
    std::vector<ops::ExpertsId> sets_;      // of each layer
    std::vector<std::vector<char>> asked_;  // [layers][experts] in this pass
    int64_t bytes_ = 0;
    memory::ReadAhead reader_;
};

}  // namespace thermocline::scheduler
