#include "cuda/device/compile.cuh"

namespace thermocline::cuda::device {

std::span<const Entry> attention_entries() { return entries_of<AttentionKernels>(); }

}  // namespace thermocline::cuda::device
