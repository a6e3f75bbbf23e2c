// What routed experts take on either side of this machine, measured at the start with the model's own experts. The
// split of a layer (R2 of hybrid-engine.md 1.5) and what is streamed in prompts follow from it.
#pragma once

#include "cpu/run.h"
#include "scheduler/gpu_experts.h"
#include "scheduler/handoff.h"

#include <span>
#include <string>

namespace thermocline::scheduler {

/// Seconds; 0: not measured.
struct ExpertSpeed {
    double card_expert = 0;  // one more expert of a row; of more rows that, or
    double card_pair = 0;    // this for each of them, whichever is more
    double card_rest = 0;    // the shared one, which comes first
    double cpu_expert = 0;   // as for the card
    double cpu_pair = 0;
    double cpu_rest = 0;  // hand-off and what else a job takes whatever is in it
    double link = 0;      // one expert over the link

    bool known() const { return card_expert > 0 && cpu_expert > 0; }
    double cpu(int64_t pairs) const;
    double card(double pairs) const;
    /// For passes of so many rows, in which a chosen expert has so many of their choices on average.
    cuda::Balance balance(int64_t rows, double pairs) const;
    /// Whether the CPU is sooner done with all `experts` of such a pass, `pairs` choices in all, than the card with
    /// one.
    bool cpu_takes_all(int64_t rows, int64_t pairs, int64_t experts) const;
    std::string text() const;

private:
    double card_rest_of(int64_t rows) const;
};

/// The CPU's side alone, `on_host`: of some rows and the workers; its slots are overwritten. Some experts are on the
/// host (CHECK). Takes some passes' time.
ExpertSpeed measure_experts(std::span<const Handoff> handoffs, const cpu::Frame& on_host, const GpuExperts& experts);

/// Both. `on_card`: of one row, its stream idle; `many`: the same of some rows; `on_host`: of the workers and as many.
/// Their slots are overwritten, flags are left raised. Some experts lie on the card, some are on the host (CHECK).
/// Takes some passes' time. Throws Error if the card fails.
ExpertSpeed measure_experts(std::span<const Handoff> handoffs, const cuda::Frame& on_card, const cuda::Frame& many,
                            const cpu::Frame& on_host, const GpuExperts& experts);

}  // namespace thermocline::scheduler
