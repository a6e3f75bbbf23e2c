// Cuts a plan between its layers, so that several devices can play it in turn: what passes from one part to the next
// is nothing but the residual streams. Pure.
#pragma once

#include "src/ops/plan.h"

#include <cstddef>
#include <string>
#include <vector>

namespace thermocline::ops {

/// The first step of every layer with routed experts, and the number of steps behind the last one: [layers + 1]. The
/// first layer begins with the plan, dense layers belong to the one that follows them, the last has the head. A plan
/// without routed experts, or that cannot be cut, is one layer.
std::vector<size_t> layer_starts(const Plan& plan);

/// Why `plan` cannot be cut behind every layer with routed experts, in a clause that names what else passes there;
/// empty: it can.
std::string why_not_cut(const Plan& plan);

/// Layers [first, last) of layer_starts() as a plan of its own, which plays on streams that are given unless it begins
/// with the first, and has logits only if it ends with the last. Slots, matrices, tables and rotary frequencies keep
/// their numbers; slots and vectors that it does not use are empty.
struct PlanPart {
    Plan plan;
    size_t first_step;        // in the whole plan,
    ExpertsId first_experts;  // where its sets of experts begin,
    CacheId first_cache;      // and its caches
};
PlanPart layers_of(const Plan& plan, size_t first, size_t last);

}  // namespace thermocline::ops
