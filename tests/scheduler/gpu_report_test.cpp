// What a card says of itself at the start, and what it refuses to start with.
#include "scheduler/gpu_report.h"

#include "scheduler/gpu_executor.h"
#include "scheduler/gpus.h"
#include "src/base/error.h"
#include "tests/cuda/test_device.h"
#include "tests/model/engine_fixture.h"
#include "tests/model/tiny_model.h"

#include <algorithm>
#include <gtest/gtest.h>

namespace thermocline::scheduler {
namespace {

TEST(GpuReport, NamesTheKernelsOfAllOperatorsAndMeasuresProducts) {
    const model::Model& model = tiny_model(model::KvCacheDtype::kF32);
    const std::unique_ptr<cuda::Device> device = cuda::test_device();
    cpu::Workers workers(std::span<const int>{});
    const cpu::KernelTable& kernels = cpu::select_kernels("auto");
    GpuExecutor executor(model.trunk, *device, workers, kernels, {.max_rows = 8, .max_outputs = 8, .max_tokens = 64},
                         1);
    const std::vector<OperatorReport> reports = executor.operators(true);
    int64_t linear = 0, experts = 0;
    for (const OperatorReport& one : reports) {
        SCOPED_TRACE(one.operators);
        const bool on_card = one.where == "card";
        EXPECT_EQ(one.kernels.empty(), !on_card);
        if (one.operators.rfind("Linear ", 0) == 0 && one.operators.find(" + ") == std::string::npos) {
            linear += one.count;
            EXPECT_GT(one.gb_per_s, 0);
            EXPECT_TRUE(one.kernels.find("RowProduct") != std::string::npos ||
                        one.kernels.find("FewVectors") != std::string::npos)
                << one.kernels;
        }
        if (!on_card) {
            EXPECT_EQ(one.where, std::string("CPU ") + kernels.name);
            EXPECT_GT(one.gb_per_s, 0) << "the card has none of them";
            experts += one.count;
        }
    }
    const auto is = [&](const char* name) {
        return std::any_of(reports.begin(), reports.end(),
                           [&](const OperatorReport& one) { return one.operators.find(name) != std::string::npos; });
    };
    for (const char* name : {"Attention", "Compress", "SelectEntries", "Route", "HyperIn", "Embed"})
        EXPECT_TRUE(is(name)) << name;
    int64_t all = 0, products = 0;
    for (const ops::ExpertSet& set : model.trunk.experts) all += std::ssize(set.w1);
    for (const ops::Step& step : model.trunk.steps) products += std::holds_alternative<ops::Linear>(step);
    EXPECT_EQ(experts, all);
    EXPECT_GT(linear, products / 2);  // the others are part of fused groups

    const std::string text = report_text(reports, 0, 0);
    EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), std::ssize(reports)) << text;
    EXPECT_LT(text.size(), 4000u) << text;
}

TEST(GpuReport, RatesStandBesideThoseOfTheMemory) {
    const OperatorReport reports[] = {{"Linear F8_E4M3", "card", "FewVectors", 12, 800.0},
                                      {"Experts MXFP4", "CPU avx2", "", 64, 40.0}};
    EXPECT_EQ(report_text(reports, 1000.0, 0),
              "what runs where, one row; the card reads 1000 GB/s\n"
              "     12 x Linear F8_E4M3: card, FewVectors, 800.0 GB/s (80 %)\n"
              "     64 x Experts MXFP4: CPU avx2, 40.0 GB/s");
    EXPECT_EQ(report_text(reports, 1000.0, 50.0),
              "what runs where, one row; the card reads 1000 GB/s; the CPU reads 50 GB/s\n"
              "     12 x Linear F8_E4M3: card, FewVectors, 800.0 GB/s (80 %)\n"
              "     64 x Experts MXFP4: CPU avx2, 40.0 GB/s (80 %)");
}

TEST(GpuReport, WhatIsSlowIsSlowOnlyWhereItMatters) {
    EXPECT_EQ(slow_fallback({}), "");
    EXPECT_EQ(slow_fallback({.flag_wait = cuda::FlagWait::kSpinKernel}), "");
    EXPECT_NE(slow_fallback({.flag_wait = cuda::FlagWait::kHostFunction}).find("update the driver"), std::string::npos);
    EXPECT_EQ(slow_fallback({.to_device = 0.8, .to_host = 0.8}), "");
    EXPECT_NE(slow_fallback({.to_device = 12.0, .to_host = 0.8, .experts_cross = true}).find("only 0.8 GB/s"),
              std::string::npos);
    EXPECT_EQ(slow_fallback({.to_device = 3.1, .to_host = 3.1, .experts_cross = true}), "");
    EXPECT_NE(slow_fallback({.experts_cross = true, .scalar_cpu = true}).find("AVX2"), std::string::npos);
    EXPECT_EQ(slow_fallback({.scalar_cpu = true}), "");
}

TEST(GpuReport, SlowFallbacksAreRefusedUnlessAskedFor) {
    const ops::Plan& plan = tiny_model(model::KvCacheDtype::kF32).trunk;
    const auto reserve = [&](cuda::FlagWait way, bool asked) {
        Gpus gpus({.slow_fallback = asked}, cuda::emulation::open({.flag_wait = way}));
        ExecutorLimits limits{.max_rows = 8, .max_outputs = 8, .max_tokens = 64};
        gpus.reserve(plan, "tiny", limits, 1, true);
    };
    EXPECT_NO_THROW(reserve(cuda::FlagWait::kStreamOperation, false));
    EXPECT_NO_THROW(reserve(cuda::FlagWait::kHostFunction, true));
    try {
        reserve(cuda::FlagWait::kHostFunction, false);
        FAIL();
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("--allow-slow-fallback"), std::string::npos) << error.what();
    }
}

}  // namespace
}  // namespace thermocline::scheduler
