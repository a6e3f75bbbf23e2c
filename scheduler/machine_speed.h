// What this machine can do, measured: memory of every node, arithmetic of every ISA tier, barriers, graphics cards.
// `bench-machine` writes it to a machine file (scheduler/machine_file.h).
#pragma once

#include "cpu/kernels.h"
#include "cpu/workers.h"
#include "scheduler/gpu_speed.h"
#include "scheduler/topology.h"

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

namespace thermocline::scheduler {

/// The cores of a node, or all cores.
struct GroupSpeed {
    int cores = 0;
    std::vector<double> read_gb_per_s;  // with 1, 2, ... `cores` cores; of all nodes together: with all cores only
    double write_gb_per_s = 0.0;        // all cores
    double copy_gb_per_s = 0.0;         // all cores, bytes read plus bytes written
    double barrier_us = 0.0;            // an empty job of all workers, median
};

struct TierPeak {
    std::string isa;
    cpu::Unit unit;
    double one_core, all_cores;  // operations per second / 1e9, two per multiply-add
};

struct MachineSpeed {
    std::vector<GroupSpeed> nodes;  // as Machine::nodes
    GroupSpeed all;
    std::vector<TierPeak> peaks;  // of the tiers that run here and the units they have
    std::vector<GpuSpeed> gpus;
};

/// "f32", "bf16", "int8".
const char* unit_name(cpu::Unit unit);

/// How often measure_machine() reports progress.
int64_t measurement_count(const Machine& machine, std::span<const cuda::DeviceInfo> gpus);
/// Takes a few seconds on a small machine. `progress` gets the number of measurements done.
MachineSpeed measure_machine(const Machine& machine, std::span<const cuda::DeviceInfo> gpus,
                             const std::function<void(int64_t)>& progress);

/// Operations per second / 1e9 of all workers together; 0 if the tier has no such unit. About 20 ms.
double measure_peak(cpu::Workers& workers, const cpu::KernelTable& kernels, cpu::Unit unit);

}  // namespace thermocline::scheduler
