// Writes the weights of a model as the kernels read them (src/model/converted.h), once, so that later starts map them.
#pragma once

#include <atomic>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>

namespace thermocline::engine {

struct Conversion {
    std::string model;                               ///< what open_checkpoint() takes
    std::filesystem::path destination;               ///< a new or an empty directory
    int32_t layers = 0;                              ///< keep the first N layers; 0: all
    int threads = 1;                                 ///< that read and pack, each with a few MB of its own
    const std::atomic<bool>* interrupted = nullptr;  ///< ends it from outside; may be null
    std::function<void(int64_t done, int64_t all)> progress = {};  ///< bytes; from the calling thread; may be empty
};

/// Returns the bytes of weights.bin. Throws Error, and then nothing is left of `destination`.
int64_t convert(const Conversion& conversion);

}  // namespace thermocline::engine
