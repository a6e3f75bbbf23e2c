#include "scheduler/forecast.h"

#include "scheduler/executor.h"
#include "scheduler/gpu_report.h"
#include "scheduler/printed.h"
#include "src/base/error.h"

#include <algorithm>

namespace thermocline::scheduler {

namespace {

double gb(int64_t bytes) { return static_cast<double>(bytes) * 1e-9; }

GpuMemoryWishes card_wishes(const ForecastQuestion& question, const cuda::DeviceInfo& card) {
    if (question.gpu_memory > card.memory_bytes)
        fail("--gpu-memory is ", question.gpu_memory, " bytes, but ", printable(card.name), " has ", card.memory_bytes);
    GpuMemoryWishes wishes = wishes_of(question);
    wishes.budget_bytes = question.gpu_memory > 0 ? question.gpu_memory : card.memory_bytes;
    return wishes;
}

/// A budget of the card with which all experts would lie somewhere; 0: it has not so much.
int64_t sufficient_card(const ForecastQuestion& question, const GpuMemoryPlan& plan, int64_t host_room) {
    const DescribedGpu& gpu = question.machine.gpus[question.card];
    GpuMemoryWishes wishes = card_wishes(question, gpu.speed.device);
    wishes.prefill_chunk = plan.prefill_chunk;
    wishes.least_expert_slots = plan.experts - host_room;
    const int64_t least = least_gpu_budget(question.trunk, nullptr, wishes);
    return least <= gpu.speed.device.memory_bytes ? least : 0;
}

Json lines_json(const std::vector<GpuMemoryLine>& lines) {
    Json list = Json::array();
    for (const GpuMemoryLine& line : lines)
        list.push_back({{"name", line.name}, {"bytes", line.bytes}, {"detail", line.detail}});
    return list;
}

}  // namespace

const char* outlook_name(Outlook outlook) {
    constexpr const char* kNames[] = {"conservative", "target", "upper bound"};
    return kNames[static_cast<size_t>(outlook)];
}

GpuMemoryWishes wishes_of(const ForecastQuestion& question) {
    const ExecutorLimits limits = serving_limits(question.context, question.sequences, question.prefill_chunk);
    return {.context = question.context,
            .sequences = question.sequences,
            .prefill_chunk = limits.max_rows,
            .outputs = limits.max_outputs};
}

HostMemoryPlan host_plan(const ForecastQuestion& question) {
    const int64_t all = question.machine.memory_bytes();
    if (question.host_memory > all)
        fail("--host-memory is ", question.host_memory, " bytes, but the machine has ", all);
    return plan_host_memory(question.trunk, question.draft,
                            {.budget_bytes = question.host_memory > 0 ? question.host_memory : all,
                             .is_asked = question.host_memory > 0,
                             .on_card = !question.machine.gpus.empty(),
                             .context = question.context,
                             .sequences = question.sequences,
                             .rows = wishes_of(question).prefill_chunk});
}

Json card_json(const GpuMemoryPlan& plan) {
    return {{"budget_bytes", plan.budget_bytes},   {"lines", lines_json(plan.lines)},
            {"expert_bytes", plan.slot_bytes},     {"experts", plan.experts},
            {"expert_slots", plan.expert_slots},   {"unused_bytes", plan.unused_bytes},
            {"prefill_chunk", plan.prefill_chunk}, {"given_up", plan.given_up}};
}

Json host_json(const HostMemoryPlan& host, const ExpertTiers& tiers) {
    Json lines = lines_json(host.lines);
    lines.push_back({{"name", "routed experts"}, {"bytes", host.bytes_of(tiers.host)}, {"detail", ""}});
    return {{"memory_bytes", host.budget_bytes}, {"lines", std::move(lines)}};
}

std::string host_text(const HostMemoryPlan& host, const ExpertTiers& tiers, bool is_asked) {
    std::string text = "\nHost memory\n";
    const auto add = [&](const std::string& name, int64_t bytes, const std::string& detail) {
        text += printed("%-27s %8.3f GB%s%s\n", name.c_str(), gb(bytes), detail.empty() ? "" : "  ", detail.c_str());
    };
    for (const GpuMemoryLine& line : host.lines) add(line.name, line.bytes, line.detail);
    const int64_t experts = host.bytes_of(tiers.host);
    add("routed experts", experts, tiers.host == host.experts ? "all of them, resident ones too" : "");
    add("unused", std::max<int64_t>(0, host.budget_bytes - host.fixed_bytes() - experts), "");
    add(is_asked ? "budget" : "this machine has", host.budget_bytes, "");
    return text;
}

Json tiers_json(const ExpertTiers& tiers, int64_t expert_bytes) {
    return {{"card_only", tiers.core},
            {"card_and_host", tiers.slots - tiers.core},
            {"host_only", tiers.host - (tiers.slots - tiers.core)},
            {"file", tiers.file},
            {"expert_bytes", expert_bytes}};
}

std::string slow_link_of(const DescribedGpu& gpu, const ExpertTiers& tiers) {
    if (gpu.unified_memory) return "";
    return slow_fallback({.to_device = gpu.speed.link.to_device,
                          .to_host = gpu.speed.link.to_host,
                          .experts_cross = tiers.slots < tiers.experts});
}

std::string slow_text(const std::string& slow) {
    return slow.empty() ? "" : "\n`serve` and `run` start so only with --allow-slow-fallback: " + slow + "\n";
}

std::string expected_text(const AllExpected& all, bool on_card) {
    std::string text = "\nExpected of one sequence, computed, not measured\n";
    text += printed("%-14s %12s  %-16s %13s  %-24s %s\n", "", "decode tok/s", "limited by", "prefill tok/s",
                    "limited by", on_card ? "hit rate" : "");
    for (const Forecast::Expected& expected : all) {
        const bool known = expected.prefill.seconds > 0.0;
        text += printed("%-14s %12.1f  %-16s %13s  %-24s ", outlook_name(expected.outlook),
                        expected.decode.tokens_per_s(), expected.decode.limit.c_str(),
                        known ? printed("%.0f", expected.prefill.tokens_per_s()).c_str() : "not known",
                        expected.prefill.limit.c_str());
        text += (on_card ? printed("%.2f", expected.hit) : std::string()) + "\n";
    }
    return text;
}

Json expected_json(const AllExpected& all) {
    Json expected = Json::object();
    for (const Forecast::Expected& e : all) {
        Json prefill = nullptr;
        if (e.prefill.seconds > 0.0)
            prefill = {{"tokens_per_s", e.prefill.tokens_per_s()},
                       {"limit", e.prefill.limit},
                       {"chunk", e.prefill.chunk},
                       {"streamed_share", e.prefill.streamed}};
        expected[outlook_name(e.outlook)] = {{"hit_rate", e.hit},
                                             {"decode",
                                              {{"tokens_per_s", e.decode.tokens_per_s()},
                                               {"limit", e.decode.limit},
                                               {"dense_s", e.decode.dense},
                                               {"overhead_s", e.decode.overhead},
                                               {"experts_s", e.decode.experts},
                                               {"file_s", e.decode.file}}},
                                             {"prefill", std::move(prefill)}};
    }
    return expected;
}

Forecast forecast(const ForecastQuestion& question) {
    const MachineDescription& machine = question.machine;
    if (question.card > 0 && question.card >= machine.gpus.size())
        fail("--gpu is ", question.card, ", but the machine has ", machine.gpus.size(),
             " cards, the first of which is 0");
    const DescribedGpu* gpu = machine.gpus.empty() ? nullptr : &machine.gpus[question.card];
    const bool unified = gpu != nullptr && gpu->unified_memory;
    Forecast answer;
    answer.card = question.card;
    answer.host_is_asked = question.host_memory > 0;
    if (gpu != nullptr) {
        answer.gpu = plan_gpu_memory(question.trunk, nullptr, card_wishes(question, gpu->speed.device));
        answer.refusal = answer.gpu->refusal;
    }
    const HostMemoryPlan host = host_plan(question);
    const int64_t slots = gpu != nullptr ? answer.gpu->expert_slots : 0, room = unified ? 0 : host.room();
    answer.tiers = divide_experts({.experts = host.experts, .slots = slots, .host = room});
    answer.expert_bytes = host.expert_bytes;
    answer.resident = static_cast<double>(slots) / static_cast<double>(host.experts);
    if (!unified) answer.host = host;
    if (!unified && answer.refusal.empty()) answer.refusal = host.refusal();
    if (answer.refusal.empty())
        answer.refusal =
            tier_refusal(answer.tiers, question.file_experts,
                         {.expert_bytes = host.expert_bytes,
                          .host_budget = unified ? 0 : host.budget_for(host.experts - slots),
                          .card_budget = gpu != nullptr ? sufficient_card(question, *answer.gpu, room) : 0});
    if (gpu != nullptr) answer.slow = slow_link_of(*gpu, answer.tiers);
    const TokenWork work = token_work(question.trunk, question.context - 1);
    const int64_t chunk = std::min(question.context, answer.gpu ? answer.gpu->prefill_chunk : question.prefill_chunk);
    for (size_t i = 0; i < answer.expected.size(); ++i) {
        const Rates rates = rates_of(machine, gpu, kOutlooks[i]);
        const double hit = unified ? hit_rate(answer.resident, kOutlooks[i]) : hit_rate(answer.tiers, kOutlooks[i]);
        const double in_file = static_cast<double>(answer.tiers.file) / static_cast<double>(host.experts);
        answer.expected[i] = {kOutlooks[i], hit, decode_time(work, rates, hit, file_share(answer.tiers, kOutlooks[i])),
                              prefill_time(work, rates, answer.resident, chunk, in_file)};
    }
    return answer;
}

std::vector<Forecast> forecast_each_card(ForecastQuestion question) {
    std::vector<Forecast> cards;
    const int64_t budget = question.gpu_memory;
    for (question.card = 0; question.card < question.machine.gpus.size(); ++question.card) {
        const int64_t all = question.machine.gpus[question.card].speed.device.memory_bytes;
        question.gpu_memory = budget <= all ? budget : 0;
        cards.push_back(forecast(question));
    }
    return cards;
}

size_t best_card(const std::vector<Forecast>& cards, size_t card) {
    const auto rate = [&](size_t i) {
        return cards[i].refusal.empty() ? cards[i].expected[1].decode.tokens_per_s() : 0.0;
    };
    size_t best = card;
    for (size_t i = 0; i < cards.size(); ++i)
        if (rate(i) > rate(best)) best = i;
    return best;
}

std::string cards_text(const std::vector<Forecast>& cards, const MachineDescription& machine, size_t card) {
    if (cards.size() < 2) return "";
    std::string text = "\nCards of this machine, each alone\n";
    for (size_t i = 0; i < cards.size(); ++i) {
        text += printed("%zu  %-32s ", i, printable(machine.gpus[i].speed.device.name).c_str());
        text += cards[i].refusal.empty() ? printed("%8lld experts %12.1f tok/s at target\n",
                                                   static_cast<long long>(cards[i].gpu->expert_slots),
                                                   cards[i].expected[1].decode.tokens_per_s())
                                         : "does not fit\n";
    }
    text += "Together, each with its own layers: --gpus N\n";
    const size_t best = best_card(cards, card);
    if (best != card)
        text += printed(
            "Card %zu does better: --gpu %zu here; CUDA_VISIBLE_DEVICES=%zu for `serve` and `run`, which use the "
            "first\n",
            best, best, best);
    return text;
}

Json cards_json(const std::vector<Forecast>& cards, const MachineDescription& machine) {
    Json list = Json::array();
    for (size_t i = 0; i < cards.size(); ++i)
        list.push_back({{"name", machine.gpus[i].speed.device.name},
                        {"fits", cards[i].refusal.empty()},
                        {"expert_slots", cards[i].gpu->expert_slots},
                        {"decode_tokens_per_s", cards[i].expected[1].decode.tokens_per_s()}});
    return list;
}

std::string forecast_text(const Forecast& forecast, const MachineDescription& machine) {
    std::string text;
    if (forecast.gpu) {
        text = printable(machine.gpus[forecast.card].speed.device.name);
        if (machine.gpus.size() > 1) text += printed(", card %zu of %zu alone", forecast.card, machine.gpus.size());
        text += "\n" + gpu_memory_text(*forecast.gpu);
    }
    if (forecast.host) text += host_text(*forecast.host, forecast.tiers, forecast.host_is_asked);
    if (forecast.tiers.core > 0 || forecast.tiers.file > 0)
        text += "\nRouted experts\n" + tiers_text(forecast.tiers, forecast.expert_bytes);
    text += expected_text(forecast.expected, forecast.gpu.has_value()) + slow_text(forecast.slow);
    if (!forecast.refusal.empty()) text += "\ndoes not fit: " + forecast.refusal + "\n";
    return text;
}

Json forecast_json(const Forecast& forecast) {
    return {{"fits", forecast.refusal.empty()},
            {"refusal", forecast.refusal},
            {"slow_fallback", forecast.slow},
            {"card", forecast.card},
            {"gpu", forecast.gpu ? card_json(*forecast.gpu) : Json(nullptr)},
            {"host", forecast.host ? host_json(*forecast.host, forecast.tiers) : Json(nullptr)},
            {"tiers", tiers_json(forecast.tiers, forecast.expert_bytes)},
            {"resident_share", forecast.resident},
            {"expected", expected_json(forecast.expected)}};
}

}  // namespace thermocline::scheduler
