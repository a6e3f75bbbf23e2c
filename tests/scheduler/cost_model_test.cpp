// The cost model against the tables of hybrid-engine.md 1.5 and 1.6, from the bundled configs and machine files.
#include "scheduler/cost_model.h"

#include "scheduler/gpu_memory.h"
#include "src/base/error.h"
#include "src/model/registry.h"

#include <cmath>
#include <gtest/gtest.h>
#include <memory>

namespace thermocline::scheduler {
namespace {

const std::string kConfigs = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/";

TokenWork work_of(const std::string& name) {
    model::LoadOptions options;
    options.format = model::LoadFormat::kOutline;
    options.kv_cache = model::KvCacheDtype::kFp8;
    return token_work(model::load_model(kConfigs + "models/" + name + ".json", options)->trunk, 8192);
}
const TokenWork& flash() {
    static const TokenWork work = work_of("deepseek-v4-flash");
    return work;
}
const TokenWork& pro() {
    static const TokenWork work = work_of("deepseek-v4-pro");
    return work;
}
MachineDescription machine(const std::string& name) { return read_machine(kConfigs + "machines/" + name + ".json"); }

TEST(CostModel, BytesAndOperationsOfATokenAreThoseOfTheTables) {
    EXPECT_NEAR(flash().dense_bytes * 1e-9, 7.76 - 1.082 + 0.016, 0.03);
    EXPECT_NEAR(flash().shared_bytes * 1e-9, 1.082, 0.002);
    EXPECT_NEAR(flash().expert_bytes * flash().layers * flash().top_k * 1e-9, 3.449, 0.001);
    EXPECT_NEAR(pro().dense_bytes * 1e-9, 26.81 - 4.030 + 0.032, 0.1);
    EXPECT_NEAR(pro().shared_bytes * 1e-9, 4.030, 0.01);
    EXPECT_NEAR(pro().expert_bytes * pro().layers * pro().top_k * 1e-9, 12.845, 0.001);
    EXPECT_NEAR(flash().flops * 1e-9, 26.5 + 3.0, 1.0);
    EXPECT_NEAR(pro().flops * 1e-9, 97.7 + 11.6, 3.0);
    EXPECT_EQ(flash().layers, 43);
    EXPECT_EQ(flash().experts, 256);
}

TEST(CostModel, OneExpertOnTheCpuOrOverTheLink) {  // the table of R1
    struct Row {
        const char* name;
        double one_us, token_us, crossover;
    };
    for (const Row& row : {Row{"rtx5090-epyc9004-12ch", 36, 5.2, 46},
                           {"pro6000-epyc9005-12ch", 29, 2.8, 87},
                           {"rtx5090-am5-2ch", 178, 5.5, 43}}) {
        const MachineDescription m = machine(row.name);
        const Rates rates = rates_of(m, &m.gpus[0], Outlook::kTarget, cpu::Unit::kI8);
        EXPECT_NEAR(cpu_expert_seconds(flash(), rates, 1) * 1e6, row.one_us, 0.7) << row.name;
        EXPECT_NEAR(cpu_expert_seconds(flash(), rates, 1000) * 1e3, row.token_us, 0.1) << row.name;
        EXPECT_NEAR(stream_crossover(flash(), rates), row.crossover, 1.0) << row.name;
    }
}

TEST(CostModel, PlannedHitRates) {
    EXPECT_NEAR(planned_hit_rate(6039.0 / 11008, true), 0.82, 0.005);
    EXPECT_NEAR(planned_hit_rate(6039.0 / 11008, false), 0.62, 0.005);
    EXPECT_NEAR(planned_hit_rate(1323.0 / 11008, true), 0.58, 0.005);
    EXPECT_NEAR(planned_hit_rate(1323.0 / 11008, false), 0.18, 0.005);
    EXPECT_EQ(planned_hit_rate(0.0, true), 0.0);
    EXPECT_EQ(planned_hit_rate(1.0, false), 1.0);
}

struct Machine16 {
    const char* name;
    int slots;
    double all_on_cpu, conservative, target, upper;
};
constexpr Machine16 kMachines[] = {{"pro6000-epyc9005-12ch", 6039, 73, 76, 114, 170},
                                   {"pro6000-threadripper9000-8ch", 6039, 60, 72, 108, 159},
                                   {"rtx5090-epyc9004-12ch", 1323, 64, 61, 96, 140},
                                   {"rtx5090-am5-2ch", 1323, 19, 23, 39, 53},
                                   {"pro6000-2s-epyc9005-24ch", 6039, 98, 78, 122, 186}};

TEST(CostModel, DecodeOfTheReferenceMachines) {  // 1.6, within 3 %
    for (const Machine16& row : kMachines) {
        const MachineDescription m = machine(row.name);
        const double resident = row.slots / 11008.0;
        const auto speed = [&](Outlook outlook, double f) {
            return decode_time(flash(), rates_of(m, &m.gpus[0], outlook), hit_rate(f, outlook)).tokens_per_s();
        };
        EXPECT_NEAR(speed(Outlook::kTarget, 0.0), row.all_on_cpu, 0.03 * row.all_on_cpu) << row.name;
        EXPECT_NEAR(speed(Outlook::kConservative, resident), row.conservative, 0.03 * row.conservative) << row.name;
        EXPECT_NEAR(speed(Outlook::kTarget, resident), row.target, 0.03 * row.target) << row.name;
        EXPECT_NEAR(speed(Outlook::kUpperBound, resident), row.upper, 0.03 * row.upper) << row.name;
    }
}

TEST(CostModel, ItKnowsWhatLimits) {
    const auto limit = [](const char* name, double resident) {
        const MachineDescription m = machine(name);
        return decode_time(flash(), rates_of(m, &m.gpus[0], Outlook::kTarget), hit_rate(resident, Outlook::kTarget))
            .limit;
    };
    EXPECT_EQ(limit("pro6000-epyc9005-12ch", 0.55), "GPU memory");
    EXPECT_EQ(limit("rtx5090-am5-2ch", 0.12), "host memory");
}

TEST(CostModel, WhatTheTargetOfW1DependsOn) {  // the sensitivities of 1.6
    const MachineDescription m = machine("pro6000-epyc9005-12ch");
    const Rates target = rates_of(m, &m.gpus[0], Outlook::kTarget);
    const double hit = planned_hit_rate(6039.0 / 11008, true);
    const auto with = [&](auto change, double h) {
        Rates rates = target;
        change(rates);
        return decode_time(flash(), rates, h).tokens_per_s();
    };
    const auto nothing = [](Rates&) {};
    EXPECT_NEAR(with(nothing, 1.0), 115, 3);
    EXPECT_NEAR(with([](Rates& r) { r.layer_overhead += 40e-6; }, hit), 95, 2);
    EXPECT_NEAR(with([](Rates& r) { r.gpu_dense *= 0.72 / 0.82; }, hit), 106, 3);
    EXPECT_NEAR(with([](Rates& r) { r.dram *= 0.8; }, hit), 110, 3);
    EXPECT_NEAR(with([](Rates& r) { r.balanced = false; }, hit), 110, 3);
    const DecodeTime time = decode_time(flash(), target, hit);
    EXPECT_NEAR(time.dense * 1e3, 3.13 + 0.35 + 0.19 + 0.09 + 0.06 + 0.72, 0.1);
    EXPECT_NEAR(time.seconds, time.dense + time.overhead + time.experts, 1e-9);
}

TEST(CostModel, TheLargerModel) {
    const MachineDescription m = machine("pro6000-epyc9005-12ch");
    const double slots = 96.0e9 * 0.985 - 28.66e9 - 5e9;
    const double resident = slots / pro().expert_bytes / (61.0 * 384.0);
    const auto speed = [&](Outlook outlook) {
        return decode_time(pro(), rates_of(m, &m.gpus[0], outlook), hit_rate(resident, outlook)).tokens_per_s();
    };
    EXPECT_NEAR(speed(Outlook::kTarget), 32, 1.5);
    EXPECT_NEAR(speed(Outlook::kUpperBound), 42, 2);
}

TEST(CostModel, PrefillByChunk) {  // 1.6, within 6 %; at 8192 on slow links the table is up to 11 % lower
    struct Row {
        const char* name;
        int slots;
        int64_t chunk;
        double speed, streamed;  // < 0: not in the table
    };
    for (const Row& row : {Row{"pro6000-epyc9005-12ch", 6039, 32, 410, -1},
                           {"pro6000-epyc9005-12ch", 6039, 128, 910, -1},
                           {"pro6000-epyc9005-12ch", 6039, 512, 3450, 0.12},
                           {"pro6000-epyc9005-12ch", 6039, 2048, 4700, 0.35},
                           {"pro6000-epyc9005-12ch", 6039, 8192, 5000, -1},
                           {"rtx5090-epyc9004-12ch", 1323, 512, 1050, 0.21},
                           {"rtx5090-epyc9004-12ch", 1323, 2048, 1700, 0.51},
                           {"rtx5090-epyc9004-12ch", 1323, 4096, 2570, 0.68},
                           {"rtx5090-epyc9004-12ch", 1323, 16384, 5000, -1},
                           {"rtx5090-am5-2ch", 1323, 32, 34, -1},
                           {"rtx5090-am5-2ch", 1323, 512, 290, -1},
                           {"rtx5090-am5-2ch", 1323, 2048, 1170, -1},
                           {"rtx5090-am5-2ch", 1323, 4096, 2330, -1}}) {
        const MachineDescription m = machine(row.name);
        const PrefillTime time = prefill_time(flash(), rates_of(m, &m.gpus[0], Outlook::kTarget, cpu::Unit::kI8),
                                              row.slots / 11008.0, row.chunk);
        EXPECT_NEAR(time.tokens_per_s(), row.speed, 0.06 * row.speed)
            << row.name << " " << row.chunk << " " << time.limit;
        if (row.streamed >= 0.0) {
            EXPECT_NEAR(time.streamed, row.streamed, 0.02) << row.name << " " << row.chunk;
        }
    }
}

TEST(CostModel, MachinesOfOtherKinds) {
    // Without a card everything comes from host memory.
    const MachineDescription small = machine("zen3-vm-2core");
    const DecodeTime alone = decode_time(flash(), rates_of(small, nullptr, Outlook::kUpperBound), 0.0);
    EXPECT_NEAR(alone.seconds, (7.776e9 + 3.449e9) / (small.all.read_gb_per_s[0] * 1e9), 0.02);
    EXPECT_EQ(alone.limit, "host memory");
    EXPECT_GT(prefill_time(flash(), rates_of(small, nullptr, Outlook::kTarget), 0.0, 512).tokens_per_s(), 1.0);
    // One memory, missing experts from the disk: 8 to 20 tokens/s are expected of 76 %.
    const MachineDescription spark = machine("dgx-spark");
    const Rates rates = rates_of(spark, &spark.gpus[0], Outlook::kTarget);
    EXPECT_GT(decode_time(flash(), rates, 0.91).tokens_per_s(), 8.0);
    EXPECT_LT(decode_time(flash(), rates, 1.0).tokens_per_s(), 21.0);
    EXPECT_EQ(decode_time(flash(), rates, 0.91).limit, "disk");
    EXPECT_EQ(prefill_time(flash(), rates, 0.76, 512).seconds, 0.0);  // its arithmetic is not in the file
    EXPECT_TRUE(std::isinf(stream_crossover(flash(), rates)));
    EXPECT_THROW(token_work(ops::Plan{}, 0), Error);
}

}  // namespace
}  // namespace thermocline::scheduler
