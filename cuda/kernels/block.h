// Sums and maxima over the threads of a block or warp, in an order that depends on the number of threads alone.
#pragma once

#include "cuda/launch.h"

#include <cstdint>

namespace thermocline::cuda {

template <typename Thread>
GPU_CODE float warp_sum(Thread& t, float x) {
    for (int mask = kWarp / 2; mask > 0; mask /= 2) x += t.shuffle_xor(x, mask);
    return x;
}

template <typename Thread>
GPU_CODE float warp_max(Thread& t, float x) {
    for (int mask = kWarp / 2; mask > 0; mask /= 2) x = fmaxf(x, t.shuffle_xor(x, mask));
    return x;
}

inline constexpr int64_t kBlockSumBytes = 32 * sizeof(float);  // shared memory that block_sum() wants

/// The sum over all threads, in all threads. `offset`: of kBlockSumBytes of shared memory that nobody else uses between
/// this and the next barrier.
template <typename Thread>
GPU_CODE float block_sum(Thread& t, float x, int64_t offset) {
    auto sums = t.template shared<float>(offset, t.warps());
    x = warp_sum(t, x);
    t.sync();  // what an earlier call left has been read
    if (t.lane() == 0) sums.set(t.warp(), x);
    t.sync();
    float sum = 0.0f;
    for (int w = 0; w < t.warps(); ++w) sum += sums[w];
    return sum;
}

}  // namespace thermocline::cuda
