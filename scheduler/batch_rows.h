// Lays the tokens, positions and segments of the parts of a pass out as one batch.
#pragma once

#include "scheduler/executor.h"
#include "src/ops/batch.h"

#include <span>
#include <vector>

namespace thermocline::scheduler {

class BatchRows {
public:
    explicit BatchRows(const ExecutorLimits& limits);

    /// Valid until the next call. CHECKs the limits and that every sequence has room.
    ops::Batch gather(std::span<const Part> parts);

    int64_t rows() const { return static_cast<int64_t>(tokens_.size()); }
    int64_t outputs() const { return static_cast<int64_t>(output_rows_.size()); }

private:
    ExecutorLimits limits_;
    std::vector<int32_t> tokens_, output_rows_;
    std::vector<int64_t> positions_;
    std::vector<ops::Segment> segments_;
};

}  // namespace thermocline::scheduler
