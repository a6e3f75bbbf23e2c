// Machines that this one is not (tests/machines): where their weights go and who computes with them.
#include "scheduler/topology.h"

#include "src/base/error.h"

#include <gtest/gtest.h>
#include <set>

namespace thermocline::scheduler {
namespace {

using Ints = std::vector<int>;

Machine machine(const std::string& name) {
    return machine_from_xml(std::string(THERMOCLINE_SOURCE_DIR) + "/tests/machines/" + name + ".xml");
}

struct Expected {
    Ints nodes, cpus;
};

void expect_slices(const Machine& machine, Numa numa, const std::vector<Expected>& expected) {
    const std::vector<memory::Slice> slices = weight_slices(machine, numa);
    ASSERT_EQ(slices.size(), expected.size());
    for (size_t i = 0; i < slices.size(); ++i) {
        EXPECT_EQ(slices[i].nodes, expected[i].nodes) << "slice " << i;
        EXPECT_EQ(slices[i].cpus, expected[i].cpus) << "slice " << i;
    }
}

TEST(Topology, ADesktopIsOneSliceWithAWorkerPerCore) {
    const Machine desktop = machine("desktop-smt");
    EXPECT_EQ(desktop.cpu_model, "a desktop");
    ASSERT_EQ(desktop.nodes.size(), 1u);
    EXPECT_EQ(desktop.nodes[0].memory_bytes, 64'000'000'000);
    for (const Numa numa : {Numa::kOff, Numa::kPackages, Numa::kNodes})
        expect_slices(desktop, numa, {{{}, {0, 2, 4, 6}}});  // 1, 3, ... are siblings
}

TEST(Topology, TwoSocketsAreTwoSlices) {
    const Machine two = machine("epyc-2s-nps1");
    for (const Numa numa : {Numa::kPackages, Numa::kNodes})
        expect_slices(two, numa, {{{0}, {0, 2, 4, 6}}, {{1}, {8, 10, 12, 14}}});
    expect_slices(two, Numa::kOff, {{{0, 1}, {0, 8, 2, 10, 4, 12, 6, 14}}});
}

TEST(Topology, NodesOfASocketAreSlicesOrOne) {
    const Machine one = machine("epyc-1s-nps4");
    expect_slices(one, Numa::kNodes, {{{0}, {0, 1}}, {{1}, {2, 3}}, {{2}, {4, 5}}, {{3}, {6, 7}}});
    expect_slices(one, Numa::kPackages, {{{0, 1, 2, 3}, {0, 2, 4, 6, 1, 3, 5, 7}}});
    const Machine two = machine("epyc-2s-nps2");
    EXPECT_EQ(weight_slices(two, Numa::kNodes).size(), 4u);
    expect_slices(two, Numa::kPackages, {{{0, 1}, {0, 2, 1, 3}}, {{2, 3}, {4, 6, 5, 7}}});
    EXPECT_EQ(weight_slices(two, Numa::kOff)[0].nodes, (Ints{0, 1, 2, 3}));
}

TEST(Topology, MemoryWithoutCoresTakesNoPart) {
    const Machine cxl = machine("epyc-2s-cxl");
    ASSERT_EQ(cxl.nodes.size(), 4u);
    EXPECT_EQ(cxl.cores(), 4);
    EXPECT_EQ(cxl.nodes[2].cpus, Ints{});
    EXPECT_EQ(cxl.nodes[2].memory_bytes, 128'000'000'000);
    expect_slices(cxl, Numa::kNodes, {{{0}, {0, 2}}, {{1}, {4, 6}}});
    expect_slices(cxl, Numa::kOff, {{{0, 1}, {0, 4, 2, 6}}});
}

TEST(Topology, ANodeWhoseCoresBelongToOthersTakesNoPart) {
    const Machine bound = machine("cpuset-one-socket");
    ASSERT_EQ(bound.nodes.size(), 2u);
    EXPECT_EQ(bound.nodes[1].cpus, Ints{});
    for (const Numa numa : {Numa::kOff, Numa::kPackages, Numa::kNodes})
        expect_slices(bound, numa, {{{}, {0, 2, 4, 6}}});
}

TEST(Topology, WorkersAreSpreadEvenlyAndGroupedBySlice) {
    const std::vector<memory::Slice> slices = weight_slices(machine("epyc-2s-nps1"), Numa::kNodes);
    const auto places = [&](int threads) { return worker_places(slices, threads); };
    EXPECT_EQ(places(0).cpus, (Ints{0, 2, 4, 6, 8, 10, 12, 14}));
    EXPECT_EQ(places(0).slices, (Ints{0, 0, 0, 0, 1, 1, 1, 1}));
    EXPECT_EQ(places(1).cpus, Ints{0});
    EXPECT_EQ(places(1).slices, Ints{0});
    EXPECT_EQ(places(3).cpus, (Ints{0, 2, 8}));
    EXPECT_EQ(places(3).slices, (Ints{0, 0, 1}));
    EXPECT_THROW(places(9), Error);
    EXPECT_THROW(places(-1), Error);
    // Nodes with fewer cores give what they have.
    EXPECT_EQ(worker_places({{{0}, {0}}, {{1}, {1, 2, 3}}}, 3).cpus, (Ints{0, 1, 2}));
    // Interleaved memory: as many workers of every node.
    EXPECT_EQ(worker_places(weight_slices(machine("epyc-1s-nps4"), Numa::kOff), 4).cpus, (Ints{0, 2, 4, 6}));
}

TEST(Topology, ThisMachineHasASliceWithEveryCore) {
    const Machine here = detect_machine();
    const WorkerPlaces places = worker_places(weight_slices(here, Numa::kNodes), 0);
    EXPECT_EQ(static_cast<int>(places.cpus.size()), here.cores());
    EXPECT_EQ(std::set<int>(places.cpus.begin(), places.cpus.end()).size(), places.cpus.size());
}

TEST(Topology, FilesThatAreNoTopologyAreNamed) {
    const std::string readme = std::string(THERMOCLINE_SOURCE_DIR) + "/README.md";
    for (const std::string& path : {readme, std::string("/no/such/machine.xml")}) {
        try {
            machine_from_xml(path);
            ADD_FAILURE() << path;
        } catch (const Error& error) {
            EXPECT_NE(std::string(error.what()).find(path), std::string::npos) << error.what();
        }
    }
}

}  // namespace
}  // namespace thermocline::scheduler
