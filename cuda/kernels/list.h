// All kernels. Whoever launches one includes this; device/*.cu compile them for cards, emulation/device.cpp for the
// CPU.
#pragma once

#include "cuda/device.h"
#include "cuda/kernels/rows.h"

namespace thermocline::cuda {

using Kernels = KernelList<Rotations, CopyRows, RmsNorm, Rope, SwiGlu, AddRows>;

template <typename Kernel>
void launch(Stream& stream, const Grid& grid, const Kernel& kernel) {
    stream.launch(Kernels::index_of<Kernel>(), grid, &kernel, sizeof kernel);
}

}  // namespace thermocline::cuda
