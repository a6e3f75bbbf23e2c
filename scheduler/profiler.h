// Where the time of forward passes goes, operator by operator. An executor without a profile takes no time stamps.
// Used by the thread that runs the passes.
#pragma once

#include "src/ops/cost.h"
#include "src/ops/plan.h"

#include <cstdint>
#include <string>
#include <vector>

namespace thermocline::scheduler {

class StepProfile {
public:
    /// What all steps of one kind took together.
    struct Line {
        std::string name;  // "Attention", "Linear attn.wq_b": the same matrix of all layers is one operator
        int64_t calls = 0;
        double seconds = 0.0;
        ops::Cost cost;
    };

    explicit StepProfile(const ops::Plan& plan);

    /// Step `index` of the plan has been played once.
    void add(size_t index, double seconds, ops::Cost cost);
    /// A whole pass has been played; what its steps did not take is the line "between steps".
    void add_pass(double seconds) { passes_ += seconds; }

    double seconds() const { return passes_; }
    /// Longest first.
    std::vector<Line> lines() const;

private:
    std::vector<Line> lines_;
    std::vector<size_t> line_of_;  // [plan.steps]
    double passes_ = 0.0;
};

/// operator, calls, time, share, bytes, GB/s, fraction of `bandwidth` (GB/s), GFLOP/s: one line each, and their sum.
std::string profile_table(const StepProfile& profile, double bandwidth);

}  // namespace thermocline::scheduler
