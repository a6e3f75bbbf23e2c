#include "scheduler/topology.h"

#include "src/base/error.h"

#include <algorithm>
#include <hwloc.h>
#include <memory>

namespace thermocline::scheduler {

namespace {

struct TopologyDeleter {
    void operator()(hwloc_topology_t topology) const { hwloc_topology_destroy(topology); }
};
using Topology = std::unique_ptr<hwloc_topology, TopologyDeleter>;

Topology new_topology() {
    hwloc_topology_t raw = nullptr;
    if (hwloc_topology_init(&raw) != 0) fail("hwloc: cannot start");
    return Topology(raw);
}

/// One logical CPU per core of `node`.
std::vector<int> cpus_of(hwloc_topology_t topology, hwloc_obj_t node) {
    std::vector<int> cpus;
    const int cores = hwloc_get_nbobjs_inside_cpuset_by_type(topology, node->cpuset, HWLOC_OBJ_CORE);
    for (int i = 0; i < cores; ++i) {
        const hwloc_obj_t core =
            hwloc_get_obj_inside_cpuset_by_type(topology, node->cpuset, HWLOC_OBJ_CORE, static_cast<unsigned>(i));
        const int first = hwloc_bitmap_first(core->cpuset);
        if (first >= 0) cpus.push_back(first);
    }
    if (cores == 0)  // some virtual machines show no cores, only processing units
        for (int cpu = hwloc_bitmap_first(node->cpuset); cpu >= 0; cpu = hwloc_bitmap_next(node->cpuset, cpu))
            cpus.push_back(cpu);
    std::sort(cpus.begin(), cpus.end());
    return cpus;
}

std::vector<Cache> caches_of(hwloc_topology_t topology) {
    std::vector<Cache> caches;
    for (const hwloc_obj_type_t type : {HWLOC_OBJ_L1CACHE, HWLOC_OBJ_L2CACHE, HWLOC_OBJ_L3CACHE, HWLOC_OBJ_L4CACHE})
        if (const hwloc_obj_t cache = hwloc_get_obj_by_type(topology, type, 0))
            caches.push_back({static_cast<int>(cache->attr->cache.depth), static_cast<int64_t>(cache->attr->cache.size),
                              hwloc_get_nbobjs_inside_cpuset_by_type(topology, cache->cpuset, HWLOC_OBJ_CORE)});
    return caches;
}

Machine describe(hwloc_topology_t topology) {
    Machine machine;
    const hwloc_obj_t root = hwloc_get_root_obj(topology);
    if (const char* model = hwloc_obj_get_info_by_name(root, "CPUModel")) machine.cpu_model = model;
    if (const hwloc_obj_t package = hwloc_get_obj_by_type(topology, HWLOC_OBJ_PACKAGE, 0))
        if (const char* model = hwloc_obj_get_info_by_name(package, "CPUModel")) machine.cpu_model = model;
    machine.caches = caches_of(topology);
    const int count = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_NUMANODE);
    for (int i = 0; i < count; ++i) {
        const hwloc_obj_t node = hwloc_get_obj_by_type(topology, HWLOC_OBJ_NUMANODE, static_cast<unsigned>(i));
        Node described{static_cast<int>(node->os_index), static_cast<int64_t>(node->attr->numanode.local_memory),
                       cpus_of(topology, node)};
        machine.nodes.push_back(std::move(described));
    }
    if (machine.cores() == 0) fail("hwloc: found no usable CPU");
    return machine;
}

}  // namespace

int Machine::cores() const {
    size_t total = 0;
    for (const Node& node : nodes) total += node.cpus.size();
    return static_cast<int>(total);
}

Machine detect_machine() {
    const Topology topology = new_topology();
    if (hwloc_topology_load(topology.get()) != 0) fail("hwloc: cannot read this machine's topology");
    hwloc_bitmap_t allowed = hwloc_bitmap_alloc();  // taskset and cgroups bind
    if (hwloc_get_cpubind(topology.get(), allowed, HWLOC_CPUBIND_PROCESS) == 0 && !hwloc_bitmap_iszero(allowed))
        hwloc_topology_restrict(topology.get(), allowed, 0);
    hwloc_bitmap_free(allowed);
    return describe(topology.get());
}

Machine machine_from_xml(const std::string& path) {
    const Topology topology = new_topology();
    if (hwloc_topology_set_xml(topology.get(), path.c_str()) != 0 || hwloc_topology_load(topology.get()) != 0)
        fail(path, ": not a topology that hwloc reads");
    return describe(topology.get());
}

std::vector<int> worker_cpus(const Machine& machine, int threads) {
    const int cores = machine.cores();
    if (threads < 0 || threads > cores)
        fail("--threads is ", threads, ", expected 1 to ", cores, " (physical cores this process may use)");
    if (threads == 0) threads = cores;
    std::vector<int> cpus;
    std::vector<size_t> used(machine.nodes.size(), 0);
    for (size_t node = 0; static_cast<int>(cpus.size()) < threads; node = (node + 1) % machine.nodes.size())
        if (used[node] < machine.nodes[node].cpus.size()) cpus.push_back(machine.nodes[node].cpus[used[node]++]);
    return cpus;
}

}  // namespace thermocline::scheduler
