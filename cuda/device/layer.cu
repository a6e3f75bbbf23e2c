#include "cuda/device/compile.cuh"

namespace thermocline::cuda::device {

std::span<const Entry> layer_entries() { return entries_of<LayerKernels>(); }

}  // namespace thermocline::cuda::device
