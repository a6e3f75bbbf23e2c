// Makes entry points of kernels. Included by the units that compile them.
#pragma once

#include "cuda/device/entries.cuh"
#include "cuda/device/thread.cuh"
#include "cuda/kernels/list.h"

namespace thermocline::cuda::device {

template <typename Kernel>
__global__ void __launch_bounds__(most_threads<Kernel>(), least_blocks<Kernel>())
    entry(const __grid_constant__ Kernel kernel) {
    Thread thread;
    kernel(thread);
}

template <typename List>
std::span<const Entry> entries_of() {
    static const auto entries = List::map([]<typename Kernel>(KernelType<Kernel>) {
        return Entry{Kernel::kName, reinterpret_cast<const void*>(&entry<Kernel>), sizeof(Kernel)};
    });
    return entries;
}

}  // namespace thermocline::cuda::device
