// What passes between a card and the CPU within a step, through pinned host memory: a job for the CPU's experts and
// what they come to. Flags are raised by kernels; how a stream waits for one is the device's choice (cuda/device.h).
#pragma once

#include "cuda/device.h"
#include "cuda/kernels/block.h"

namespace thermocline::cuda {

/// Copies a job to the host: vectors, experts and their weights. Experts that are on the card become -1; rows without
/// others send no vector. Grid: rows. RaiseJob comes after it.
struct SendJob {
    static constexpr const char* kName = "SendJob";
    const float* x;          // [T, width]
    const int32_t* ids;      // [T, top_k]
    const float* weights;    // [T, top_k]
    const int32_t* slot_of;  // [experts] -1: not on the card; null: none is
    float* host_x;           // of the host, likewise
    int32_t* host_ids;
    float* host_weights;
    int32_t* chosen;  // [T, top_k] of the host: ids as they are, for statistics
    int64_t width;
    int32_t top_k;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const int64_t row = t.block();
        bool any = slot_of == nullptr;
        for (int i = 0; i < top_k && !any; ++i) any = slot_of[ids[row * top_k + i]] < 0;
        for (int i = t.id(); i < top_k; i += t.threads()) {
            const int32_t id = ids[row * top_k + i];
            chosen[row * top_k + i] = id;
            host_ids[row * top_k + i] = slot_of == nullptr || slot_of[id] < 0 ? id : -1;
            host_weights[row * top_k + i] = weights[row * top_k + i];
        }
        if (!any) return;
        for (int64_t i = t.id(); i < width; i += t.threads()) host_x[row * width + i] = x[row * width + i];
    }
};

/// What a job's flag says.
inline constexpr uint64_t kJob = 1, kNothingToDo = 2;

/// Raises the flag of a job after all that came before in the stream. If nothing is left for the CPU it says so, and
/// raises the CPU's flag too. One thread (of a warp).
struct RaiseJob {
    static constexpr const char* kName = "RaiseJob";
    Flag *job, *done;
    const int32_t* pairs_left;  // null: some

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        if (t.id() != 0) return;
        const bool nothing = pairs_left != nullptr && *pairs_left == 0;
        if (nothing) t.store_flag(&done->value, 1);
        t.store_flag(&job->value, nothing ? kNothingToDo : kJob);
    }
};

/// Tells the host numbers, each of which it reads as it finds it, before any job: no flag says that all are there.
struct SendEarly {
    static constexpr const char* kName = "SendEarly";
    const int32_t* numbers;  // [count]
    int32_t* host;           // [count] of the host
    int64_t count;

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        for (int64_t i = t.id(); i < count; i += t.threads()) t.store_number(host + i, numbers[i]);
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

}  // namespace thermocline::cuda
