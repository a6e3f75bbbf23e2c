// What this machine is made of, as plain data: NUMA nodes and physical cores. hwloc is asked once at start.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace thermocline::scheduler {

struct Node {
    int id = 0;  // as the operating system numbers it
    int64_t memory_bytes = 0;
    std::vector<int> cpus;  // one logical CPU of every physical core this process may use, ascending
};

struct Cache {
    int level = 0;
    int64_t bytes = 0;
    int cores = 0;  // that share it
};

struct Machine {
    std::string cpu_model;
    std::vector<Cache> caches;  // one of every level, data or unified, nearest first
    std::vector<Node> nodes;

    int cores() const;
};

/// This machine, restricted to the CPUs that the process may run on. Throws Error if hwloc cannot tell.
Machine detect_machine();

/// A machine from hwloc's XML (tests, fake topologies). Throws Error naming the file.
Machine machine_from_xml(const std::string& path);

/// Logical CPUs for `threads` workers, spread evenly over the nodes; 0: one per physical core. Throws Error when more
/// threads than cores are asked for.
std::vector<int> worker_cpus(const Machine& machine, int threads);

}  // namespace thermocline::scheduler
