// Bytes and floating-point operations of a step: the one formula that placement, profiler and bench share.
#pragma once

#include "src/ops/batch.h"
#include "src/ops/plan.h"

#include <cstdint>

namespace thermocline::ops {

struct Cost {
    int64_t bytes = 0;  ///< weights and cache rows that must be read, each once
    int64_t flops = 0;
    Cost& operator+=(const Cost& other) {
        bytes += other.bytes;
        flops += other.flops;
        return *this;
    }
};

/// Cost of one step for `batch`. Routed experts are counted as if the rows of the batch chose `min(rows * top_k,
/// experts)` different ones: exact for one row.
Cost step_cost(const Plan& plan, const Step& step, const Batch& batch);

/// Sum over all steps.
Cost plan_cost(const Plan& plan, const Batch& batch);

}  // namespace thermocline::ops
