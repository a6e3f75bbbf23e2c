#include "cuda/device/compile.cuh"

namespace thermocline::cuda::device {

std::span<const Entry> state_entries() { return entries_of<StateKernels>(); }

}  // namespace thermocline::cuda::device
