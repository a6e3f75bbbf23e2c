// What this machine is made of, as plain data: NUMA nodes and physical cores. hwloc is asked once at start.
#pragma once

#include "memory/arena.h"

#include <cstdint>
#include <string>
#include <vector>

namespace thermocline::scheduler {

struct Node {
    int id = 0;  // as the operating system numbers it
    int64_t memory_bytes = 0;
    std::vector<int> cpus;  // one logical CPU of every physical core this process may use, ascending; may be none
    int package = 0;        // the socket
};

struct Cache {
    int level = 0;
    int64_t bytes = 0;
    int cores = 0;  // that share it
};

struct Machine {
    std::string cpu_model;
    std::vector<Cache> caches;  // one of every level, data or unified, nearest first
    std::vector<Node> nodes;    // ascending by id

    int cores() const;
};

/// This machine, restricted to the CPUs that the process may run on. Throws Error if hwloc cannot tell.
Machine detect_machine();

/// A machine from hwloc's XML (tests, fake topologies). Throws Error naming the file.
Machine machine_from_xml(const std::string& path);

/// How weights and workers are spread over NUMA nodes (--numa).
enum class Numa : uint8_t {
    kOff,       ///< one slice; with several nodes its memory is interleaved over them
    kPackages,  ///< a slice per socket, interleaved over its nodes
    kNodes,     ///< a slice per node
};

/// The slices of a machine: no nodes if it is one that all cores share, where memory comes to lie by itself. Nodes
/// without cores (memory of its own, CXL; cores that belong to others) are left out.
std::vector<memory::Slice> weight_slices(const Machine& machine, Numa numa);

/// What cpu::Workers takes: of every worker, its logical CPU and its slice. Ascending by slice.
struct WorkerPlaces {
    std::vector<int> cpus, slices;
};

/// Places for `threads` workers, spread evenly over the slices; 0: one per core. Throws Error when more threads than
/// cores are asked for.
WorkerPlaces worker_places(const std::vector<memory::Slice>& slices, int threads);

}  // namespace thermocline::scheduler
