#include "scheduler/bandwidth.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

namespace thermocline::scheduler {

namespace {

constexpr int64_t kBytesPerWorker = int64_t{128} << 20;
constexpr int kPasses = 4;  // the first one also faults the pages in

/// Eight sums, so that no addition waits for the one before.
uint64_t sum(const uint64_t* values, int64_t count) {
    uint64_t sums[8] = {};
    for (int64_t i = 0; i < count; i += 8)
        for (int lane = 0; lane < 8; ++lane) sums[lane] += values[i + lane];
    uint64_t total = 0;
    for (const uint64_t lane : sums) total += lane;
    return total;
}

}  // namespace

double measure_read_bandwidth(cpu::Workers& workers) {
    const int64_t words = kBytesPerWorker / static_cast<int64_t>(sizeof(uint64_t));
    std::vector<std::vector<uint64_t>> buffers(static_cast<size_t>(workers.count()));
    std::vector<uint64_t> sums(buffers.size());
    workers.each([&](int worker) {  // first touch where it will be read
        buffers[static_cast<size_t>(worker)].assign(static_cast<size_t>(words), static_cast<uint64_t>(worker) + 1);
    });
    double best = 0.0;
    for (int pass = 0; pass < kPasses; ++pass) {
        const auto start = std::chrono::steady_clock::now();
        workers.each([&](int worker) {
            sums[static_cast<size_t>(worker)] += sum(buffers[static_cast<size_t>(worker)].data(), words);
        });
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        best = std::max(best, static_cast<double>(kBytesPerWorker) * workers.count() / seconds * 1e-9);
    }
    // The sums are used, so that no pass can be left out.
    return std::all_of(sums.begin(), sums.end(), [](uint64_t s) { return s != 0; }) ? best : 0.0;
}

}  // namespace thermocline::scheduler
