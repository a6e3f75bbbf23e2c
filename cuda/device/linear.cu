#include "cuda/device/compile.cuh"

namespace thermocline::cuda::device {

std::span<const Entry> linear_entries() { return entries_of<LinearKernels>(); }

}  // namespace thermocline::cuda::device
