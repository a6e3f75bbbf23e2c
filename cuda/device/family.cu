// Compiled for the SM120 family alone (cuda/CMakeLists.txt).
#include "cuda/device/compile.cuh"

namespace thermocline::cuda::device {

std::span<const Entry> family_entries() { return entries_of<FamilyKernels>(); }

}  // namespace thermocline::cuda::device
