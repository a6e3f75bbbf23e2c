#include "cuda/device/compile.cuh"

namespace thermocline::cuda::device {

std::span<const Entry> meeting_entries() { return entries_of<MeetingKernels>(); }

}  // namespace thermocline::cuda::device
