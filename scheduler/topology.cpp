#include "scheduler/topology.h"

#include "src/base/error.h"

#include <algorithm>
#include <climits>
#include <hwloc.h>
#include <map>
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

/// Objects of a type that this process may use.
std::vector<hwloc_obj_t> objects(hwloc_topology_t topology, hwloc_obj_type_t type) {
    std::vector<hwloc_obj_t> all;
    for (hwloc_obj_t next = nullptr; (next = hwloc_get_next_obj_by_type(topology, type, next)) != nullptr;)
        all.push_back(next);
    return all;
}

/// The node whose memory is a core's own. Memory without cores (CXL) is listed as local to all cores near it: a core's
/// own node is the one that the fewest cores share, of these the first, since the system numbers such memory last.
size_t node_of(const std::vector<hwloc_obj_t>& nodes, hwloc_obj_t core) {
    size_t best = 0;
    int best_weight = INT_MAX;
    for (size_t i = 0; i < nodes.size(); ++i) {
        const int weight = hwloc_bitmap_weight(nodes[i]->cpuset);
        if (!hwloc_bitmap_isincluded(core->cpuset, nodes[i]->cpuset) || weight >= best_weight) continue;
        best = i;
        best_weight = weight;
    }
    return best;
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
    std::vector<hwloc_obj_t> nodes = objects(topology, HWLOC_OBJ_NUMANODE);
    std::sort(nodes.begin(), nodes.end(), [](hwloc_obj_t a, hwloc_obj_t b) { return a->os_index < b->os_index; });
    for (const hwloc_obj_t node : nodes) {
        const hwloc_obj_t package = hwloc_get_ancestor_obj_by_type(topology, HWLOC_OBJ_PACKAGE, node);
        machine.nodes.push_back({static_cast<int>(node->os_index),
                                 static_cast<int64_t>(node->attr->numanode.local_memory),
                                 {},
                                 package ? static_cast<int>(package->logical_index) : 0});
    }
    if (nodes.empty()) fail("hwloc: found no memory");
    std::vector<hwloc_obj_t> cores = objects(topology, HWLOC_OBJ_CORE);
    if (cores.empty()) cores = objects(topology, HWLOC_OBJ_PU);  // some virtual machines show no cores
    for (const hwloc_obj_t core : cores)
        if (const int first = hwloc_bitmap_first(core->cpuset); first >= 0)
            machine.nodes[node_of(nodes, core)].cpus.push_back(first);
    for (Node& node : machine.nodes) std::sort(node.cpus.begin(), node.cpus.end());
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

std::vector<memory::Slice> weight_slices(const Machine& machine, Numa numa) {
    std::map<int, std::vector<const Node*>> parts;  // in the order of the slices
    for (const Node& node : machine.nodes)
        if (!node.cpus.empty())
            parts[numa == Numa::kOff ? 0 : numa == Numa::kPackages ? node.package : node.id].push_back(&node);
    std::vector<memory::Slice> slices;
    for (const auto& [key, nodes] : parts) {
        memory::Slice& slice = slices.emplace_back();
        size_t most = 0;
        for (const Node* node : nodes) {
            slice.nodes.push_back(node->id);
            most = std::max(most, node->cpus.size());
        }
        // In turns: whoever takes the first few takes as many of every node.
        for (size_t i = 0; i < most; ++i)
            for (const Node* node : nodes)
                if (i < node->cpus.size()) slice.cpus.push_back(node->cpus[i]);
    }
    if (slices.size() == 1 && slices[0].nodes.size() == 1) slices[0].nodes.clear();
    return slices;
}

WorkerPlaces worker_places(const std::vector<memory::Slice>& slices, int threads) {
    int cores = 0;
    for (const memory::Slice& slice : slices) cores += static_cast<int>(slice.cpus.size());
    if (threads < 0 || threads > cores)
        fail("--threads is ", threads, ", expected 1 to ", cores, " (physical cores this process may use)");
    if (threads == 0) threads = cores;
    std::vector<size_t> used(slices.size(), 0);
    for (size_t i = 0; threads > 0; i = (i + 1) % slices.size())
        if (used[i] < slices[i].cpus.size()) {
            ++used[i];
            --threads;
        }
    WorkerPlaces places;
    for (size_t i = 0; i < slices.size(); ++i) {
        places.cpus.insert(places.cpus.end(), slices[i].cpus.begin(),
                           slices[i].cpus.begin() + static_cast<int64_t>(used[i]));
        places.slices.insert(places.slices.end(), used[i], static_cast<int>(i));
    }
    return places;
}

}  // namespace thermocline::scheduler
