// Measurements of the machine: sane figures, and a file that says everything a placement asks for.
#include "scheduler/bandwidth.h"
#include "scheduler/machine_speed.h"

#include <gtest/gtest.h>

namespace thermocline::scheduler {
namespace {

TEST(Bandwidth, ReadWriteAndCopyAreMeasured) {
    cpu::Workers workers({});
    BandwidthProbe probe(workers);
    for (const double rate : {probe.read(), probe.write(), probe.copy()}) {
        EXPECT_GT(rate, 0.3);
        EXPECT_LT(rate, 2000.0);
    }
}

TEST(Peak, EveryTierThatRunsMultipliesFloats) {
    cpu::Workers workers({});
    int tiers = 0;
    for (int tier = 0; tier < cpu::tier_count(); ++tier) {
        const cpu::KernelTable* kernels = cpu::tier_kernels(tier);
        if (kernels == nullptr) continue;
        ++tiers;
        EXPECT_GT(measure_peak(workers, *kernels, cpu::Unit::kF32), 0.3) << kernels->name;
        float sink = 0.0f;
        const int64_t one = kernels->peak(cpu::Unit::kI8, 1, &sink), ten = kernels->peak(cpu::Unit::kI8, 10, &sink);
        EXPECT_EQ(ten, 10 * one) << kernels->name;
    }
    EXPECT_GE(tiers, 1);
}

TEST(MachineFile, ListsEveryNodeWithEveryCoreCount) {
    Machine machine;
    machine.cpu_model = "two small nodes";
    machine.caches = {{1, 32768, 1}, {3, 1 << 24, 2}};
    machine.nodes = {{0, 1 << 30, {0, 1}}, {1, 1 << 30, {2, 3}}};
    MachineSpeed speed;
    speed.nodes = {{2, {10.0, 19.0}, 9.0, 12.0, 0.8}, {2, {10.5, 19.5}, 9.0, 12.0, 0.9}};
    speed.all = {4, {38.0}, 18.0, 24.0, 1.6};
    speed.peaks = {{"avx2", cpu::Unit::kF32, 100.0, 400.0}, {"avx2", cpu::Unit::kI8, 300.0, 1200.0}};
    speed.gpus = {{.device = {0, "a card", 12, 0, int64_t{96} << 30, 188, "0000:01:00.0"},
                   .link = {56.0, 57.0, 102.0},
                   .busy_link = {50.0, 51.0, 90.0},
                   .busy_cpu_read = 30.0,
                   .memory_read = 1500.0,
                   .handoff_us = 4.5}};
    const Json json = machine_json(machine, speed);
    EXPECT_EQ(json["cores"], 4);
    EXPECT_EQ(json["nodes"][1]["id"], 1);
    EXPECT_EQ(json["nodes"][1]["read_gb_per_s"], Json({10.5, 19.5}));
    EXPECT_EQ(json["all"]["read_gb_per_s"], Json::array({38.0}));
    EXPECT_EQ(json["peaks_gops"]["avx2"]["int8"]["all_cores"], 1200.0);
    EXPECT_EQ(json["caches"][1]["cores"], 2);
    const Json& gpu = json["gpus"][0];
    EXPECT_EQ(gpu["compute"], "12.0");
    EXPECT_EQ(gpu["link"]["to_host_gb_per_s"], 57.0);
    EXPECT_EQ(gpu["link_while_cpu_reads"]["to_host_gb_per_s"], 51.0);
    EXPECT_EQ(gpu["link_while_cpu_reads"]["cpu_read_gb_per_s"], 30.0);
    EXPECT_EQ(gpu["handoff_us"], 4.5);
}

}  // namespace
}  // namespace thermocline::scheduler
