#include "cuda/device/compile.cuh"

namespace thermocline::cuda::device {

std::span<const Entry> expert_entries() { return entries_of<ExpertKernels>(); }

}  // namespace thermocline::cuda::device
