// The kernels as the CUDA runtime wants them: a table of entry points by their place in the list.
#pragma once

#include "cuda/launch.h"

#include <span>

namespace thermocline::cuda::device {

struct Entry {
    const char* name;
    const void* function;
    size_t bytes;  // of its one parameter
};

/// Those of one list of kernels/list.h; every list has a unit of its own.
std::span<const Entry> row_entries();
std::span<const Entry> linear_entries();
std::span<const Entry> expert_entries();
std::span<const Entry> state_entries();
std::span<const Entry> attention_entries();
std::span<const Entry> meeting_entries();
std::span<const Entry> family_entries();

}  // namespace thermocline::cuda::device
