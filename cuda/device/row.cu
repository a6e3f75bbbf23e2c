#include "cuda/device/compile.cuh"

namespace thermocline::cuda::device {

std::span<const Entry> row_entries() { return entries_of<RowKernels>(); }

}  // namespace thermocline::cuda::device
