#include "scheduler/split_forecast.h"

#include "scheduler/printed.h"
#include "src/base/error.h"

#include <algorithm>
#include <utility>

namespace thermocline::scheduler {

namespace {

SplitQuestion split_question(const ForecastQuestion& question, std::vector<std::vector<double>> shares) {
    const MachineDescription& machine = question.machine;
    if (question.cards > machine.gpus.size())
        fail("--gpus is ", question.cards, ", but the machine has ", machine.gpus.size(), " cards");
    if (!question.card_memory.empty() && question.card_memory.size() != question.cards)
        fail("--gpu-memory has ", question.card_memory.size(), " sizes, expected one, or one for each of ",
             question.cards, " cards");
    SplitQuestion split{question.trunk, {}, wishes_of(question), std::move(shares)};
    for (size_t i = 0; i < question.cards; ++i) {
        const DescribedGpu& gpu = machine.gpus[i];
        const cuda::DeviceInfo& card = gpu.speed.device;
        if (gpu.unified_memory)
            fail("card ", i, " shares the memory of the CPU: a model is not split over such cards; use --gpus 1");
        const int64_t asked = question.card_memory.empty() ? question.gpu_memory : question.card_memory[i];
        if (asked > card.memory_bytes)
            fail("--gpu-memory is ", asked, " bytes, but ", printable(card.name), ", card ", i, ", has ",
                 card.memory_bytes);
        split.cards.push_back({asked > 0 ? asked : card.memory_bytes, {}, rates_of(machine, &gpu, Outlook::kTarget)});
    }
    return split;
}

std::vector<LayerRange> ranges_for(const ForecastQuestion& question, const SplitQuestion& split) {
    if (question.layer_counts.empty()) return split_over_cards(split);
    return ranges_of(question.layer_counts, layers_to_split(question.trunk), question.cards);
}

/// What one card adds to a token, or to a chunk of a prompt.
void add(DecodeTime& all, const DecodeTime& one) {
    if (one.seconds > all.seconds) all.limit = one.limit;  // of the first cards together, or of this one
    all.seconds += one.seconds;
    all.dense += one.dense;
    all.overhead += one.overhead;
    all.experts += one.experts;
    all.gpu_experts += one.gpu_experts;
    all.cpu_experts += one.cpu_experts;
    all.file += one.file;
}
void add(PrefillTime& all, const PrefillTime& one) {
    if (one.seconds > all.seconds) all.limit = one.limit;
    all.seconds += one.seconds;
    all.chunk = one.chunk;
    all.streamed = std::max(all.streamed, one.streamed);
}

/// Of `rows` residual streams: to the host and to the next card.
double hand_over_seconds(const ops::Plan& plan, const Rates& rates, int64_t rows) {
    const double bytes = static_cast<double>(rows * plan.slots[static_cast<size_t>(plan.streams)].cols) * sizeof(float);
    return rates.handoff + (rates.link > 0.0 ? 2.0 * bytes / rates.link : 0.0);
}

std::string layers_text(LayerRange range) {
    return range.count() == 1 ? printed("%zu", range.first) : printed("%zu to %zu", range.first, range.last - 1);
}

}  // namespace

SplitForecast forecast_split(const ForecastQuestion& question, std::vector<std::vector<double>> shares) {
    const SplitQuestion split = split_question(question, std::move(shares));
    SplitForecast answer;
    answer.cards = parts_of(split, ranges_for(question, split));
    answer.host = host_plan(question);
    answer.host_is_asked = question.host_memory > 0;
    std::vector<ExpertRoom> rooms;
    for (size_t i = 0; i < answer.cards.size(); ++i) {
        const GpuMemoryPlan& memory = answer.cards[i].memory;
        rooms.push_back({.experts = memory.experts, .slots = memory.expert_slots});
        if (answer.refusal.empty() && !memory.refusal.empty())
            answer.refusal =
                "card " + std::to_string(i) + ", layers " + layers_text(answer.cards[i].layers) + ": " + memory.refusal;
    }
    answer.tiers = divide_experts(rooms, answer.host.room());
    for (size_t i = 0; i < answer.cards.size() && answer.slow.empty(); ++i)
        if (const std::string slow = slow_link_of(question.machine.gpus[i], answer.tiers[i]); !slow.empty())
            answer.slow = "card " + std::to_string(i) + ": " + slow;
    if (answer.refusal.empty()) answer.refusal = answer.host.refusal();
    const ExpertTiers all = answer.all();
    if (answer.refusal.empty())
        answer.refusal = tier_refusal(
            all, question.file_experts,
            {.expert_bytes = answer.host.expert_bytes, .host_budget = answer.host.budget_for(all.experts - all.slots)});
    const int64_t chunk = std::min(question.context, answer.cards.front().memory.prefill_chunk);
    for (size_t o = 0; o < answer.expected.size(); ++o) {
        Forecast::Expected& sum = answer.expected[o] = {kOutlooks[o], 0.0, {}, {}};
        bool prefill_known = true;
        for (size_t i = 0; i < answer.cards.size(); ++i) {
            const Rates rates = rates_of(question.machine, &question.machine.gpus[i], sum.outlook);
            const ops::Plan& plan = answer.cards[i].part.plan;
            const TokenWork work = token_work(plan, question.context - 1);
            const ExpertTiers& tiers = answer.tiers[i];
            const auto experts = static_cast<double>(tiers.experts);
            const double hit = hit_rate(tiers, sum.outlook);
            DecodeTime decode = decode_time(work, rates, hit, file_share(tiers, sum.outlook));
            PrefillTime prefill = prefill_time(work, rates, static_cast<double>(tiers.slots) / experts, chunk,
                                               static_cast<double>(tiers.file) / experts);
            prefill_known = prefill_known && prefill.seconds > 0.0;
            if (i + 1 < answer.cards.size()) {
                decode.seconds += hand_over_seconds(plan, rates, 1);
                prefill.seconds += hand_over_seconds(plan, rates, chunk);
            }
            if (sum.outlook == Outlook::kTarget) answer.seconds.push_back(decode.seconds);
            add(sum.decode, decode);
            add(sum.prefill, prefill);
            sum.hit += hit * experts / static_cast<double>(all.experts);
        }
        if (!prefill_known) sum.prefill = {};
    }
    return answer;
}

std::string split_text(const SplitForecast& forecast, const MachineDescription& machine) {
    std::string text = printed(
        "%zu cards, each with its own layers, one after the other: of one sequence the times of the cards add up\n"
        "%4s  %-32s  %-9s %6s  %-16s  %s\n",
        forecast.cards.size(), "card", "", "layers", "count", "resident experts", "ms of a token");
    std::string counts;
    for (size_t i = 0; i < forecast.cards.size(); ++i) {
        const CardPart& card = forecast.cards[i];
        text += printed("%4zu  %-32s  %-9s %6zu  %6lld of %6lld  %13.2f\n", i,
                        printable(machine.gpus[i].speed.device.name).c_str(), layers_text(card.layers).c_str(),
                        card.layers.count(), static_cast<long long>(forecast.tiers[i].slots),
                        static_cast<long long>(card.memory.experts), forecast.seconds[i] * 1e3);
        counts += (i > 0 ? "," : "") + std::to_string(card.layers.count());
    }
    text += printed("The same by hand: --gpus %zu --layer-split %s\n", forecast.cards.size(), counts.c_str());
    for (size_t i = 0; i < forecast.cards.size(); ++i) {
        text += printed("\nCard %zu, layers %s%s\n", i, layers_text(forecast.cards[i].layers).c_str(),
                        i + 1 == forecast.cards.size() ? " and the head" : "");
        text += gpu_memory_text(forecast.cards[i].memory);
    }
    const ExpertTiers all = forecast.all();
    text += host_text(forecast.host, all, forecast.host_is_asked);
    if (all.core > 0 || all.file > 0) text += "\nRouted experts\n" + tiers_text(all, forecast.host.expert_bytes);
    text += expected_text(forecast.expected, true) + slow_text(forecast.slow);
    if (!forecast.refusal.empty()) text += "\ndoes not fit: " + forecast.refusal + "\n";
    return text;
}

Json split_json(const SplitForecast& forecast, const MachineDescription& machine) {
    Json cards = Json::array();
    for (size_t i = 0; i < forecast.cards.size(); ++i) {
        Json card = card_json(forecast.cards[i].memory);
        card["name"] = machine.gpus[i].speed.device.name;
        card["first_layer"] = forecast.cards[i].layers.first;
        card["layers"] = forecast.cards[i].layers.count();
        card["token_s"] = forecast.seconds[i];
        card["tiers"] = tiers_json(forecast.tiers[i], forecast.host.expert_bytes);
        cards.push_back(std::move(card));
    }
    const ExpertTiers all = forecast.all();
    return {{"fits", forecast.refusal.empty()},
            {"refusal", forecast.refusal},
            {"slow_fallback", forecast.slow},
            {"split", std::move(cards)},
            {"host", host_json(forecast.host, all)},
            {"tiers", tiers_json(all, forecast.host.expert_bytes)},
            {"resident_share", static_cast<double>(all.slots) / static_cast<double>(all.experts)},
            {"expected", expected_json(forecast.expected)}};
}

}  // namespace thermocline::scheduler
