// Every published model on every machine file: whole tables, sane speeds, refusals that say what to change.
#include "scheduler/forecast.h"

#include "scheduler/split_forecast.h"
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
Forecast ask_both(const MachineDescription& machine, int64_t gpu_memory, int64_t host_memory, bool file = false) {
    return forecast({flash().trunk, &*flash().mtp, machine, 8192, 1, 4096, gpu_memory, host_memory, file});
}
constexpr int64_t kGB = 1'000'000'000;
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
    EXPECT_EQ(answer.tiers.core, 0);
    const int64_t host = answer.host->fixed_bytes() + answer.host->bytes_of(answer.tiers.host);
    EXPECT_NEAR(static_cast<double>(host) * 1e-9, 4.0 + 1.06 + 147.2 + 3.42 + 0.14, 0.1);  // 0.14: of the draft head
    EXPECT_EQ(forecast_json(answer)["gpu"]["expert_slots"], answer.gpu->expert_slots);
}

TEST(Forecast, WhatDoesNotFitIsNamed) {
    EXPECT_NE(ask(machine("zen3-vm-2core")).refusal.find("routed experts of 147.2 GB"), std::string::npos);
    const MachineDescription m = machine("rtx5090-am5-2ch");
    EXPECT_EQ(ask(m).refusal, "");
    EXPECT_NE(ask(m, 8'000'000'000).refusal.find("dense weights"), std::string::npos);
    EXPECT_THROW(ask(m, 64'000'000'000), Error);  // more than the card has
}

/// A machine with which the program would not start unasked is no machine without a word.
TEST(Forecast, ASlowLinkIsSaid) {
    MachineDescription m = machine("rtx5090-am5-2ch");
    EXPECT_EQ(ask(m).slow, "");
    m.gpus[0].speed.link = {.to_device = 0.9, .to_host = 0.9};  // PCIe at x1
    const Forecast answer = ask(m);
    EXPECT_EQ(answer.refusal, "");
    EXPECT_NE(answer.slow.find("moves only 0.9 GB/s"), std::string::npos) << answer.slow;
    const std::string text = forecast_text(answer, m);
    EXPECT_NE(text.find("only with --allow-slow-fallback: the link"), std::string::npos) << text;
    EXPECT_EQ(forecast_json(answer)["slow_fallback"], answer.slow);
    m.gpus.push_back(m.gpus[0]);
    ForecastQuestion both{flash().trunk, nullptr, m, 8192, 1, 4096};
    both.cards = 2;
    const SplitForecast split = forecast_split(both);
    EXPECT_EQ(split.slow.find("card 0: the link"), 0u) << split.slow;
    EXPECT_NE(split_text(split, m).find(split.slow), std::string::npos);
    // Where nothing crosses the link it does not matter.
    MachineDescription large = machine("h200-box");
    large.gpus[0].speed.device.memory_bytes = 400 * int64_t{1'000'000'000};
    large.gpus[0].speed.link = {.to_device = 0.9, .to_host = 0.9};
    EXPECT_EQ(ask(large).slow, "");
}

TEST(Forecast, CardAndHostMemoryAddUp) {
    // Issue 5: V4-Flash on 96 GB of VRAM and 96 GB of RAM.
    const MachineDescription m = machine("pro6000-epyc9005-12ch");
    const Forecast answer = ask_both(m, 96 * kGB, 96 * kGB), roomy = ask(m, 96 * kGB);
    EXPECT_EQ(answer.refusal, "");
    const ExpertTiers& tiers = answer.tiers;
    EXPECT_EQ(tiers.slots, answer.gpu->expert_slots);
    EXPECT_EQ(tiers.file, 0);
    EXPECT_EQ(tiers.core + tiers.host, 43 * 256);
    EXPECT_NEAR(static_cast<double>(tiers.host * answer.expert_bytes) * 1e-9, 96.0 - 1.0 - 1.06 - 3.42 - 0.14, 0.1);
    EXPECT_GT(tiers.ring, 0);
    EXPECT_LE(answer.host->fixed_bytes() + answer.host->bytes_of(tiers.host), 96 * kGB);
    EXPECT_GT(answer.host->fixed_bytes() + answer.host->bytes_of(tiers.host + 1), 96 * kGB);
    const std::string text = forecast_text(answer, m);
    for (const char* part : {"on the card alone", "in host memory alone", "budget                        96.000 GB"})
        EXPECT_NE(text.find(part), std::string::npos) << text;
    const Json json = forecast_json(answer);
    EXPECT_EQ(json["tiers"]["card_only"], tiers.core);
    EXPECT_EQ(json["tiers"]["host_only"], tiers.host - (tiers.slots - tiers.core));
    for (size_t i = 0; i < 3; ++i) {  // a core adapts less, but reads nothing from the file
        EXPECT_LE(answer.expected[i].hit, roomy.expected[i].hit);
        EXPECT_GT(answer.expected[i].hit, 0.8 * roomy.expected[i].hit);
        EXPECT_EQ(answer.expected[i].decode.file, 0.0);
    }
    // The H200 box has less host memory than the model, and a card for the rest.
    const Forecast h200 = ask(machine("h200-box"));
    EXPECT_EQ(h200.refusal, "");
    EXPECT_GT(h200.tiers.core, 0);
    EXPECT_THROW(ask_both(m, 0, 2000 * kGB), Error);  // more than the machine has
}

TEST(Forecast, WhatFitsNowhereIsReadFromTheFileIfThatIsAsked) {
    const MachineDescription m = machine("rtx5090-am5-2ch");
    const Forecast refused = ask_both(m, 32 * kGB, 64 * kGB), asked = ask_both(m, 32 * kGB, 64 * kGB, true);
    EXPECT_NE(refused.refusal.find("--allow-file-experts"), std::string::npos) << refused.refusal;
    EXPECT_EQ(asked.refusal, "");
    EXPECT_EQ(refused.tiers.file, asked.tiers.file);
    EXPECT_NEAR(static_cast<double>(asked.tiers.file * asked.expert_bytes) * 1e-9, 147.2 - 58.5 - 21, 3.0);
    EXPECT_GT(asked.expected[1].decode.file, 0.0);
    EXPECT_LT(asked.expected[1].decode.tokens_per_s(), ask(m).expected[1].decode.tokens_per_s());
    EXPECT_NEAR(forecast_json(asked)["expected"]["target"]["decode"]["file_s"].get<double>(),
                asked.expected[1].decode.file, 1e-12);
    // The budget that the refusal names is enough, and not a MiB less.
    const auto at = refused.refusal.find("--host-memory ") + 14;
    const int64_t least = std::stoll(refused.refusal.substr(at)) << 20;
    EXPECT_EQ(ask_both(m, 32 * kGB, least).refusal, "");
    EXPECT_EQ(ask_both(m, 32 * kGB, least).tiers.core, asked.tiers.slots);
    EXPECT_NE(ask_both(m, 32 * kGB, least - (1 << 20)).refusal, "");
    // A card that could hold the rest is named too.
    const MachineDescription w1 = machine("pro6000-epyc9005-12ch");
    const Forecast small = ask_both(w1, 48 * kGB, 96 * kGB);
    const auto card = small.refusal.find("--gpu-memory ");
    ASSERT_NE(card, std::string::npos) << small.refusal;
    const int64_t least_card = std::stoll(small.refusal.substr(card + 13)) << 20;
    EXPECT_EQ(ask_both(w1, least_card, 96 * kGB).refusal, "");
    EXPECT_NE(ask_both(w1, least_card - (2 << 20), 96 * kGB).refusal, "");
    // From CPU and file alone.
    const Forecast no_card = ask_both(machine("zen3-vm-2core"), 0, 0, true);
    EXPECT_EQ(no_card.refusal, "");
    EXPECT_EQ(no_card.expected[1].decode.limit, "disk");
}

TEST(Forecast, OfUnequalCardsTheBetterOneIsNamed) {
    // Without --gpus the answer is what one card does; the machine file may list the lesser first.
    MachineDescription mixed = machine("rtx5090-am5-2ch");
    mixed.nodes[0].memory_bytes = 256 * kGB;
    mixed.gpus.push_back(machine("pro6000-epyc9005-12ch").gpus[0]);
    ForecastQuestion question{flash().trunk, &*flash().mtp, mixed, 8192, 1, 4096};
    const std::vector<Forecast> cards = forecast_each_card(question);
    ASSERT_EQ(cards.size(), 2u);
    EXPECT_EQ(best_card(cards), 1u);
    MachineDescription alone = mixed;
    for (size_t i = 0; i < 2; ++i) {
        alone.gpus = {mixed.gpus[i]};
        const Forecast one = ask(alone);
        EXPECT_EQ(cards[i].gpu->expert_slots, one.gpu->expert_slots);
        EXPECT_EQ(cards[i].expected[1].decode.seconds, one.expected[1].decode.seconds);
    }
    EXPECT_GT(cards[1].gpu->expert_slots, 2 * cards[0].gpu->expert_slots);
    EXPECT_GT(cards[1].expected[1].decode.tokens_per_s(), cards[0].expected[1].decode.tokens_per_s());
    const std::string text = cards_text(cards, mixed, 0);
    EXPECT_NE(text.find("Card 1 does better: --gpu 1 here"), std::string::npos) << text;
    EXPECT_EQ(cards_text(cards, mixed, 1).find("does better"), std::string::npos);
    question.card = 1;
    const std::string whole = forecast_text(forecast(question), mixed);
    EXPECT_EQ(whole.rfind("NVIDIA RTX PRO 6000 Blackwell, card 1 of 2 alone", 0), 0u) << whole;
    EXPECT_EQ(cards_json(cards, mixed)[1]["expert_slots"], cards[1].gpu->expert_slots);
    // A budget that only the larger card has.
    question.gpu_memory = 90 * kGB;
    EXPECT_EQ(forecast_each_card(question)[1].gpu->budget_bytes, 90 * kGB);
    EXPECT_EQ(forecast_each_card(question)[0].gpu->budget_bytes, mixed.gpus[0].speed.device.memory_bytes);
    // What does not fit is not better.
    mixed.gpus[1].speed.device.memory_bytes = 8 * kGB;
    EXPECT_EQ(best_card(forecast_each_card({flash().trunk, &*flash().mtp, mixed, 8192, 1, 4096})), 0u);
    question.card = 2;
    EXPECT_THROW(forecast(question), Error);
    // Equal cards: the first, and nothing to say against it.
    const MachineDescription two = machine("2x-pro6000-epyc9005-12ch");
    const auto equal = forecast_each_card({flash().trunk, &*flash().mtp, two, 8192, 1, 4096});
    EXPECT_EQ(best_card(equal), 0u);
    for (const size_t card : {0, 1}) EXPECT_EQ(cards_text(equal, two, card).find("does better"), std::string::npos);
}

TEST(Forecast, OneMemoryForBothSidesIsCountedOnce) {
    const Forecast answer = ask(machine("dgx-spark"));
    EXPECT_FALSE(answer.host);
    EXPECT_NE(answer.refusal.find("use a smaller format of the weights, or --allow-file-experts"), std::string::npos);
    EXPECT_EQ(ask_both(machine("dgx-spark"), 0, 0, true).refusal, "");
    EXPECT_NEAR(answer.resident, 0.76, 0.03);  // hybrid-engine.md 1.6, W5
    EXPECT_EQ(answer.expected[1].prefill.seconds, 0.0);
}

}  // namespace
}  // namespace thermocline::scheduler
