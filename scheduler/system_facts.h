// What the operating system tells of this machine, for `doctor`: plain data gathered from /proc, /sys and /dev, all
// below a root folder that tests replace by a made-up one. Nothing here judges (scheduler/health.h does) and nothing
// throws for what a file contains: a value that is absent or garbled is an empty optional, an empty string or an entry
// less. Reads a few hundred small files, once; no state.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace thermocline::scheduler {

struct PciLink {
    std::optional<double> gt_per_s;  // 2.5, 5, 8, 16, 32, 64: generation 1 to 6
    std::optional<int64_t> lanes;
};

/// An NVIDIA display or 3D controller on the PCI bus, whatever driver holds it.
struct PciCard {
    std::string address;        // "0000:01:00.0"
    int64_t device_id = 0;      // 0x2b85
    std::string kernel_driver;  // "nvidia", "nouveau", "vfio-pci"; "": none
    PciLink now, card_most;     // as negotiated; what the card can
    PciLink slot_most;          // what the port above it can
    std::optional<int64_t> numa_node;
};

struct HugePages {
    int64_t page_bytes = 0, total = 0, free = 0;
};

struct MemoryNode {
    int64_t id = 0;
    int64_t total_bytes = 0, free_bytes = 0;
    bool has_cpus = false;
};

struct SystemFacts {
    // Kernel and its surroundings.
    std::string kernel_release;
    std::vector<std::string> boot_parameters;
    bool wsl = false, container = false;
    bool nouveau_loaded = false;
    bool nvidia_device_nodes = false;  // /dev/nvidiactl
    std::string nvidia_driver;         // "580.95.05"; "": not loaded
    bool nvidia_open_module = false;
    std::vector<PciCard> cards;  // ascending by address

    // Memory.
    std::optional<int64_t> memory_total, memory_available, swap_total, swap_free;
    std::vector<MemoryNode> nodes;      // ascending by id
    std::vector<HugePages> huge_pages;  // 2 MiB and 1 GiB, those that exist
    std::string thp_mode, thp_defrag;   // the word in brackets
    std::optional<int64_t> numa_balancing;
    bool memlock_known = false;
    std::optional<int64_t> memlock_bytes;  // soft limit; empty when known: unlimited
    std::optional<int64_t> cgroup_memory_bytes;
    std::optional<double> cgroup_cpus;  // quota / period

    // Processor.
    std::vector<std::string> cpu_flags;    // of the first CPU
    std::map<std::string, int> governors;  // how many CPUs have each
    std::string frequency_driver;          // "amd-pstate-epp"
    std::string smt;                       // "on", "off", "forceoff", "notsupported"
    int online_cpus = 0;                   // logical
};

/// `root`: "/" or a made-up tree.
SystemFacts read_system_facts(const std::filesystem::path& root);

}  // namespace thermocline::scheduler
