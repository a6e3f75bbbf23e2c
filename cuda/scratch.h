// What the steps' files tell cuda/limits.cpp about themselves.
#pragma once

#include "src/ops/plan.h"

#include <cstdint>
#include <string>

namespace thermocline::cuda {

std::string linear_why_not(const ops::Plan& plan, const ops::Linear& step);
int64_t linear_scratch(const ops::Plan& plan, const ops::Linear& step, int64_t max_rows);

}  // namespace thermocline::cuda
