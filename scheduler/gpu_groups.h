// Which neighbouring steps of a plan a card plays with one kernel (cuda/fused.h).
#pragma once

#include "cuda/fused.h"
#include "src/ops/plan.h"
#include "src/ops/uses.h"

#include <cstdint>
#include <variant>
#include <vector>

namespace thermocline::scheduler {

/// Steps [first, first + count) of a plan. `fused` points to them; monostate: a step on its own.
struct Group {
    int32_t first, count;
    std::variant<std::monostate, cuda::VectorSteps, cuda::SiteSteps> fused;
};

/// All steps in order. `plan` must outlive the groups.
std::vector<Group> group_steps(const ops::Plan& plan);

/// What the steps read and write together.
ops::Uses uses_of(const cuda::VectorSteps& steps);
ops::Uses uses_of(const cuda::SiteSteps& steps);

}  // namespace thermocline::scheduler
