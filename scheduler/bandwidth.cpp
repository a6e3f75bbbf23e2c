#include "scheduler/bandwidth.h"

#include "src/base/error.h"
#include "src/base/log.h"

#include <algorithm>
#include <chrono>
#include <cstring>

namespace thermocline::scheduler {

namespace {

constexpr size_t kNear = 4096 / sizeof(uint64_t), kFar = 12288 / sizeof(uint64_t);
constexpr size_t kBytesPerWorker = size_t{128} << 20;
constexpr int kWays = 3, kPasses = 6;  // of reading; of all else

/// What a worker writes; never 0, so that what it reads shows in a sum.
int mark(int worker) { return worker % 255 + 1; }

/// One stream, and eight sums, so that no addition waits for the one before. `ahead`: lines are asked for that many
/// words before their use, into cache `level` (3: L1, 2: L2), which some processors need to read on across pages and
/// others are slowed by.
template <size_t ahead, int level = 3>
uint64_t sum(const uint64_t* values, size_t count) {
    uint64_t sums[8] = {};
    for (size_t i = 0; i < count; i += 8) {
        if (ahead > 0)
            __builtin_prefetch(values + i + ahead, 0, level);  // may run past the end: a prefetch never faults
        for (size_t lane = 0; lane < 8; ++lane) sums[lane] += values[i + lane];
    }
    uint64_t total = 0;
    for (const uint64_t lane : sums) total += lane;
    return total;
}

}  // namespace

BandwidthProbe::BandwidthProbe(cpu::Workers& workers) : workers_(workers), sums_(static_cast<size_t>(workers.count())) {
    for (int i = 0; i < workers.count(); ++i) stretches_.emplace_back(kBytesPerWorker);
    workers_.each([&](int worker) {
        const auto stretch = stretches_[static_cast<size_t>(worker)].bytes();
        std::memset(stretch.data(), mark(worker), stretch.size());
    });
}

template <typename Body>
double BandwidthProbe::best_of(int passes, size_t bytes, Body body) {
    double best = 0.0;
    for (int pass = 0; pass < passes; ++pass) {
        const auto start = std::chrono::steady_clock::now();
        workers_.each([&](int worker) { body(stretches_[static_cast<size_t>(worker)].bytes(), worker, pass); });
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        best = std::max(best, static_cast<double>(bytes) * workers_.count() / seconds * 1e-9);
    }
    return best;
}

double BandwidthProbe::read() {
    const double best = best_of(3 * kWays, kBytesPerWorker, [&](std::span<std::byte> stretch, int worker, int pass) {
        const auto* words = reinterpret_cast<const uint64_t*>(stretch.data());
        const size_t count = stretch.size() / sizeof(uint64_t);
        sums_[static_cast<size_t>(worker)] += pass % kWays == 0   ? sum<0>(words, count)
                                              : pass % kWays == 1 ? sum<kNear>(words, count)
                                                                  : sum<kFar, 2>(words, count);
    });
    return std::all_of(sums_.begin(), sums_.end(), [](uint64_t s) { return s != 0; }) ? best : 0.0;
}

double BandwidthProbe::write() {
    return best_of(kPasses, kBytesPerWorker, [](std::span<std::byte> stretch, int worker, int) {
        std::memset(stretch.data(), mark(worker), stretch.size());
    });
}

double BandwidthProbe::copy() {
    return best_of(kPasses, kBytesPerWorker, [](std::span<std::byte> stretch, int, int) {
        const size_t half = stretch.size() / 2;
        std::memcpy(stretch.data() + half, stretch.data(), half);
    });
}

double measure_read_bandwidth(cpu::Workers& workers) { return BandwidthProbe(workers).read(); }

double try_read_bandwidth(cpu::Workers& workers) {
    if (workers.count() * static_cast<int64_t>(kBytesPerWorker) > available_memory() / 4) {
        log::info("the bandwidth of the memory is not measured, too little is free");
        return 0;
    }
    try {
        return measure_read_bandwidth(workers);
    } catch (const Error& error) {
        log::warn("the bandwidth of the memory was not measured: {}", error.what());
        return 0;
    }
}

}  // namespace thermocline::scheduler
