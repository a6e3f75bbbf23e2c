// Measurements of the machine: sane figures.
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

}  // namespace
}  // namespace thermocline::scheduler
