// A card played by host threads: a stream is a thread that works off a queue, memory is separate and holds NaNs until
// it is written, copies take the time of a link, kernels run through emulation/block.h. The scheduler's code is the
// same as with a real card, so its order of work, its flags and its behaviour under faults are tested without one.
#pragma once

#include "cuda/device.h"

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>

namespace thermocline::cuda::emulation {

struct Link {
    double gb_per_s = 0;    // 0: copies take no time of their own
    double latency_us = 0;  // of every copy
    bool operator==(const Link&) const = default;
};

/// What shall go wrong, once each; counted over the life of the device, 0: never.
struct Faults {
    int64_t lose_flag = 0;      // the n-th flag that a kernel or a stream sets is not set
    int64_t delay_copy = 0;     // the n-th copy comes late,
    int64_t delay_ms = 0;       // by so much
    int64_t refuse_memory = 0;  // the n-th allocation fails, pinned ones too
    int64_t lose_device = 0;    // at the n-th launch
    int64_t hang = 0;           // the n-th launch does not end
    int64_t spoil_product = 0;  // the n-th product of the library is wrong
    int64_t refuse_graph = 0;   // the n-th graph is not made
    int64_t exhaust_host = 0;   // whoever asks for the n-th launch, recorded or not, gets std::bad_alloc
    bool operator==(const Faults&) const = default;
};

struct Config {
    int index = 0;
    int64_t memory_bytes = int64_t{4} << 30;
    int compute_major = 8;                            // 12: a card of the SM120 family
    FlagWait flag_wait = FlagWait::kStreamOperation;  // as which it goes; all are the same here
    bool library = false;                             // whether Stream::multiply() is there
    Link link = {};
    Faults faults = {};
    int64_t most_pending = 1000;  // what a stream takes unstarted, beside graphs; more holds up whoever adds it
    std::chrono::milliseconds end_patience = std::chrono::minutes(10);  // as kEndPatience, of what is far slower
    bool operator==(const Config&) const = default;
};

/// Stands for kernels and the link where only their time matters, for benchmarks of what surrounds them. Called by the
/// threads of the streams.
struct Pace {
    /// Does what a kernel (by its number in cuda/kernels/list.h) leaves behind that others need, and says how many
    /// seconds it takes; nothing: it is run.
    std::function<std::optional<double>(int kernel, const Grid& grid, const void* members)> kernel = {};
    /// Seconds of a copy, instead of those of Config::link.
    std::function<double(const void* from, int64_t bytes)> copy = {};
};

std::unique_ptr<Device> open(const Config& config, Pace pace = {});

}  // namespace thermocline::cuda::emulation
