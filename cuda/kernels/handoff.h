// What passes between a card and the CPU within a step, through pinned host memory: a job for the CPU's experts and
// what they come to. Flags are raised by kernels; how a stream waits for one is the device's choice (cuda/device.h).
#pragma once

#include "cuda/device.h"
#include "cuda/kernels/block.h"

namespace thermocline::cuda {

/// Copies a job to the host: vectors, experts and their weights. Grid: rows. RaiseFlag comes after it.
struct SendJob {
    static constexpr const char* kName = "SendJob";
    const float* x;        // [T, width]
    const int32_t* ids;    // [T, top_k]
    const float* weights;  // [T, top_k]
    float* host_x;         // of the host, likewise
    int32_t* host_ids;
    float* host_weights;
    int64_t width;
    int32_t top_k;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        for (int64_t i = t.id(); i < width; i += t.threads()) host_x[t.block() * width + i] = x[t.block() * width + i];
        for (int i = t.id(); i < top_k; i += t.threads()) {
            host_ids[t.block() * top_k + i] = ids[t.block() * top_k + i];
            host_weights[t.block() * top_k + i] = weights[t.block() * top_k + i];
        }
    }
};

/// Raises a flag after all that came before in the stream. One thread (of a warp).
struct RaiseFlag {
    static constexpr const char* kName = "RaiseFlag";
    Flag* flag;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        if (t.id() == 0) t.store_flag(&flag->value, 1);
    }
};

/// Waits until a flag is raised: one of the ways of FlagWait. One thread (of a warp).
struct AwaitFlag {
    static constexpr const char* kName = "AwaitFlag";
    const Flag* flag;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        if (t.id() != 0) return;
        while (t.load_flag(&flag->value) == 0) t.pause();
    }
};

/// out[t, i] = a[t, i] + b[t, i]; what the CPU's experts made plus the shared expert. Grid: rows.
struct SumRows {
    static constexpr const char* kName = "SumRows";
    const float* a;  // [T, width], of the host
    const float* b;  // [T, width]
    float* out;      // [T, width]
    int64_t width;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        for (int64_t i = t.id(); i < width; i += t.threads())
            out[t.block() * width + i] = a[t.block() * width + i] + b[t.block() * width + i];
    }
};

}  // namespace thermocline::cuda
