// Every published model on every machine file: whole tables, sane speeds, refusals that say what to change.
#include "scheduler/forecast.h"

#include "src/base/error.h"
#include "src/model/registry.h"

#include <filesystem>
#include <gtest/gtest.h>
#include <memory>

namespace thermocline::scheduler {
namespace {

namespace fs = std::filesystem;

const fs::path kConfigs = fs::path(THERMOCLINE_SOURCE_DIR) / "configs";

const model::Model& flash() {
    static const std::unique_ptr<model::Model> model = [] {
        model::LoadOptions options;
        options.format = model::LoadFormat::kOutline;
        options.kv_cache = model::KvCacheDtype::kFp8;
        return model::load_model((kConfigs / "models/deepseek-v4-flash.json").string(), options);
    }();
    return *model;
}

Forecast ask(const MachineDescription& machine, int64_t gpu_memory = 0, int64_t context = 8192) {
    return forecast({flash().trunk, &*flash().mtp, machine, context, 1, 4096, gpu_memory});
}
MachineDescription machine(const std::string& name) { return read_machine(kConfigs / "machines" / (name + ".json")); }

TEST(Forecast, EveryMachineFileHasAnAnswer) {
    for (const auto& entry : fs::directory_iterator(kConfigs / "machines")) {
        SCOPED_TRACE(entry.path().string());
        const MachineDescription m = read_machine(entry.path());
        const Forecast answer = ask(m);
        double last = 0.0;
        for (const Forecast::Expected& expected : answer.expected) {
            EXPECT_GE(expected.decode.tokens_per_s(), last);  // conservative, target, upper bound
            last = expected.decode.tokens_per_s();
            EXPECT_FALSE(expected.decode.limit.empty());
        }
        EXPECT_LT(last, 1000.0);
        const std::string text = forecast_text(answer, m);
        EXPECT_NE(text.find("upper bound"), std::string::npos) << text;
        EXPECT_EQ(text.find("does not fit") == std::string::npos, answer.refusal.empty()) << text;
        const Json json = parse_json(dump_json(forecast_json(answer)), "json");
        EXPECT_EQ(json["fits"], answer.refusal.empty());
        EXPECT_EQ(json["gpu"].is_null(), m.gpus.empty());
    }
}

TEST(Forecast, AWorkstationHoldsItAll) {
    const MachineDescription m = machine("pro6000-epyc9005-12ch");
    const Forecast answer = ask(m, 96'000'000'000);
    EXPECT_EQ(answer.refusal, "");
    EXPECT_NEAR(answer.resident, 0.55, 0.03);
    EXPECT_NEAR(answer.expected[1].decode.tokens_per_s(), 114, 4);
    int64_t host = 0;
    for (const GpuMemoryLine& line : answer.host) host += line.bytes;
    EXPECT_NEAR(static_cast<double>(host) * 1e-9, 4.0 + 1.06 + 147.2 + 3.42, 0.1);
    EXPECT_EQ(forecast_json(answer)["gpu"]["expert_slots"], answer.gpu->expert_slots);
}

TEST(Forecast, WhatDoesNotFitIsNamed) {
    EXPECT_NE(ask(machine("zen3-vm-2core")).refusal.find("routed experts of 147.2 GB"), std::string::npos);
    EXPECT_NE(ask(machine("h200-box")).refusal.find("host memory of 137.4 GB"), std::string::npos);
    const MachineDescription m = machine("rtx5090-am5-2ch");
    EXPECT_EQ(ask(m).refusal, "");
    EXPECT_NE(ask(m, 8'000'000'000).refusal.find("dense weights"), std::string::npos);
    EXPECT_THROW(ask(m, 64'000'000'000), Error);  // more than the card has
}

TEST(Forecast, OneMemoryForBothSidesIsCountedOnce) {
    const Forecast answer = ask(machine("dgx-spark"));
    EXPECT_TRUE(answer.host.empty());
    EXPECT_NEAR(answer.resident, 0.76, 0.03);  // hybrid-engine.md 1.6, W5
    EXPECT_EQ(answer.expected[1].prefill.seconds, 0.0);
}

}  // namespace
}  // namespace thermocline::scheduler
