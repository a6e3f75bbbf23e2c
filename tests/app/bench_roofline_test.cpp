#include "src/app/bench_roofline.h"

#include <gtest/gtest.h>

namespace thermocline::app {
namespace {

/// Six experts of 1 MB a layer, half of them on the card; 100 MB of dense weights.
TEST(BenchRoofline, IsThatOfTheCostModel) {
    const scheduler::TokenWork work{
        .dense_bytes = 100e6, .shared_bytes = 10e6, .expert_bytes = 1e6, .layers = 10, .top_k = 6, .experts = 64};
    const Bandwidths measured{.card = 1000, .host = 10};
    const scheduler::DecodeTime all_on_cpu = roofline(work, measured, true, 0.0);
    EXPECT_NEAR(all_on_cpu.seconds, 100e6 / 1e12 + 10 * 6e6 / 10e9, 1e-9);
    EXPECT_NEAR(roofline(work, measured, true, 1.0).seconds, 100e6 / 1e12 + 10 * (1e6 + 6e6) / 1e12, 1e-9);
    const std::string table =
        roofline_table({.seconds = 0.008, .cpu_seconds = 0.007, .exposed_seconds = 0.0065}, all_on_cpu, measured);
    EXPECT_NE(table.find("| all | 6.100 | 8.000 | 1.900 |"), std::string::npos) << table;
    EXPECT_NE(table.find("that the card does not hide | 5.990 | 6.500 | 0.510 |"), std::string::npos) << table;
}

}  // namespace
}  // namespace thermocline::app
