#include "scheduler/machine_speed.h"

#include "scheduler/bandwidth.h"
#include "src/base/thread.h"

#include <algorithm>
#include <chrono>
#include <future>
#include <span>

namespace thermocline::scheduler {

namespace {

using Clock = std::chrono::steady_clock;

double seconds_since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

constexpr cpu::Unit kUnits[] = {cpu::Unit::kF32, cpu::Unit::kBF16, cpu::Unit::kI8};

/// Runs body(workers) with workers on `cpus`, the calling one among them: on a thread of its own, since this one keeps
/// its place.
template <typename Body>
void with_workers(std::span<const int> cpus, Body body) {
    std::async(std::launch::async, [&] {
        pin_this_thread(cpus.front());
        cpu::Workers workers(cpus);
        body(workers);
    }).get();
}

double measure_barrier_us(cpu::Workers& workers) {
    constexpr int kBatches = 101, kJobs = 100;
    std::vector<double> batches;
    for (int batch = 0; batch < kBatches; ++batch) {
        const auto start = Clock::now();
        for (int job = 0; job < kJobs; ++job) workers.each([](int) {});
        batches.push_back(seconds_since(start) * 1e6 / kJobs);
    }
    std::nth_element(batches.begin(), batches.begin() + kBatches / 2, batches.end());
    return batches[kBatches / 2];
}

void measure_group(cpu::Workers& workers, GroupSpeed& group) {
    BandwidthProbe probe(workers);
    group.cores = workers.count();
    group.read_gb_per_s.push_back(probe.read());
    group.write_gb_per_s = probe.write();
    group.copy_gb_per_s = probe.copy();
    group.barrier_us = measure_barrier_us(workers);
}

GroupSpeed measure_node(const Node& node, const std::function<void()>& step) {
    GroupSpeed group;
    const std::span<const int> cpus = node.cpus;
    if (cpus.empty()) return group;  // memory of no core
    for (size_t cores = 1; cores < cpus.size(); ++cores) {
        with_workers(cpus.first(cores),
                     [&](cpu::Workers& workers) { group.read_gb_per_s.push_back(measure_read_bandwidth(workers)); });
        step();
    }
    with_workers(cpus, [&](cpu::Workers& workers) { measure_group(workers, group); });
    step();
    return group;
}

void measure_peaks(std::span<const int> cpus, std::vector<TierPeak>& peaks, const std::function<void()>& step) {
    for (int tier = 0; tier < cpu::tier_count(); ++tier, step()) {
        const cpu::KernelTable* kernels = cpu::tier_kernels(tier);
        if (kernels == nullptr) continue;
        for (const cpu::Unit unit : kUnits) {
            TierPeak peak{kernels->name, unit, 0.0, 0.0};
            with_workers(cpus.first(1), [&](cpu::Workers& one) { peak.one_core = measure_peak(one, *kernels, unit); });
            with_workers(cpus, [&](cpu::Workers& all) { peak.all_cores = measure_peak(all, *kernels, unit); });
            if (peak.one_core > 0.0) peaks.push_back(peak);
        }
    }
}

}  // namespace

const char* unit_name(cpu::Unit unit) {
    return unit == cpu::Unit::kF32 ? "f32" : unit == cpu::Unit::kBF16 ? "bf16" : "int8";
}

double measure_peak(cpu::Workers& workers, const cpu::KernelTable& kernels, cpu::Unit unit) {
    constexpr int64_t kRounds = 1 << 20;
    constexpr int kPasses = 5;
    std::vector<int64_t> operations(static_cast<size_t>(workers.count()));
    std::vector<float> sinks(operations.size());
    double best = 0.0;
    for (int pass = 0; pass < kPasses; ++pass) {
        const auto start = Clock::now();
        workers.each([&](int worker) {
            const auto i = static_cast<size_t>(worker);
            operations[i] = kernels.peak(unit, kRounds, &sinks[i]);
        });
        const double seconds = seconds_since(start);
        int64_t total = 0;
        for (const int64_t count : operations) total += count;
        best = std::max(best, static_cast<double>(total) / seconds * 1e-9);
    }
    return best;
}

int64_t measurement_count(const Machine& machine, std::span<const cuda::DeviceInfo> gpus) {
    return machine.cores() + 1 + cpu::tier_count() + static_cast<int64_t>(gpus.size());
}

MachineSpeed measure_machine(const Machine& machine, std::span<const cuda::DeviceInfo> gpus,
                             const std::function<void(int64_t)>& progress) {
    int64_t done = 0;
    const auto step = [&] { progress(++done); };
    MachineSpeed speed;
    for (const Node& node : machine.nodes) speed.nodes.push_back(measure_node(node, step));
    const std::vector<int> cpus = worker_places(weight_slices(machine, Numa::kNodes), 0).cpus;
    if (machine.nodes.size() == 1) {
        speed.all = speed.nodes.front();
        speed.all.read_gb_per_s = {speed.all.read_gb_per_s.back()};
    } else {
        with_workers(cpus, [&](cpu::Workers& workers) { measure_group(workers, speed.all); });
    }
    step();
    measure_peaks(cpus, speed.peaks, step);
    for (const cuda::DeviceInfo& gpu : gpus) {
        speed.gpus.push_back(measure_gpu(gpu, cpus));
        step();
    }
    return speed;
}

}  // namespace thermocline::scheduler
