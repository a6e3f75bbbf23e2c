// A machine as its file (configs/machines/*.json) describes it: what `bench-machine` measured here, or planning values
// of a machine that is not at hand. Plan, placement and cost model take nothing else of a machine. A file says of its
// values where they come from; unknown keys are refused, so that a misspelt one is not silently ignored.
#pragma once

#include "scheduler/machine_speed.h"
#include "scheduler/topology.h"
#include "src/base/json.h"

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

namespace thermocline::scheduler {

struct DescribedNode {
    int id = 0;
    int64_t memory_bytes = 0;
    GroupSpeed speed;  // read rates with 1, 2, ... cores, or of all cores only
};

struct DescribedGpu {
    GpuSpeed speed;                 // zero: not known, where it may be left out of the file
    double nominal_gb_per_s = 0.0;  // of its memory, by its data sheet; 0: not known
    double matmul_tflops = 0.0;     // 10^12 operations/s of a prompt's matrices; 0: not known
    bool unified_memory = false;    // its memory is that of the CPU
};

struct MachineDescription {
    std::string cpu;
    int cores = 0;
    std::vector<Cache> caches;  // may be empty
    std::vector<DescribedNode> nodes;
    GroupSpeed all;                 // read_gb_per_s has one entry: all cores
    double nominal_gb_per_s = 0.0;  // of all memory channels; 0: not known
    double disk_gb_per_s = 0.0;     // reading large pieces; 0: not known
    std::vector<TierPeak> peaks;
    std::vector<DescribedGpu> gpus;
    /// Where values come from: path of a key ("all.read_gb_per_s", "gpus"), or "*" for all not named; then a text that
    /// begins with measured, published, derived or assumed.
    std::vector<std::pair<std::string, std::string>> origins;

    int64_t memory_bytes() const;  // of all nodes
};

/// What bench-machine found.
MachineDescription measured_description(const Machine& machine, const MachineSpeed& speed);

/// The content of a machine file.
Json machine_json(const MachineDescription& machine);

/// Throws Error naming `where` (a file), the key, what was found and what was expected.
MachineDescription parse_machine(const Json& json, const std::string& where);
MachineDescription read_machine(const std::filesystem::path& path);

}  // namespace thermocline::scheduler
