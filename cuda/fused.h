// Neighbouring steps that one kernel plays. Which steps of a plan these are is found by the scheduler.
#pragma once

#include "cuda/run.h"
#include "src/ops/plan.h"

#include <cstdint>

namespace thermocline::cuda {

/// What is done in a row to vectors that go into attention; null: not done.
struct VectorSteps {
    const ops::RmsNorm* norm = nullptr;
    const ops::Rope* rope = nullptr;
    const ops::RoundKv* round = nullptr;
};
/// Whether the steps are about the same vectors, and these fit into a warp.
bool can_fuse(const ops::Plan& plan, const VectorSteps& steps);
void run(const VectorSteps& steps, const Frame& frame);

/// From one site of the residual streams to the next; out null: nothing is written back.
struct SiteSteps {
    const ops::HyperOut* out = nullptr;
    const ops::Linear* mix = nullptr;
    const ops::HyperIn* in = nullptr;
    const ops::RmsNorm* norm = nullptr;
};
/// Batches of more rows play the steps one by one: each row reads the mixing matrix again.
inline constexpr int64_t kMostSiteRows = 8;
bool can_fuse(const ops::Plan& plan, const SiteSteps& steps);
int64_t site_scratch_bytes(const ops::Plan& plan, const SiteSteps& steps, int64_t rows);
void run(const SiteSteps& steps, const Frame& frame);

}  // namespace thermocline::cuda
