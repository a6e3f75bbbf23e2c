#include "scheduler/forecast.h"

#include "memory/sequence_cache.h"
#include "scheduler/gpu_weights.h"
#include "scheduler/printed.h"
#include "src/base/error.h"
#include "src/quant/strips.h"

#include <algorithm>
#include <set>

namespace thermocline::scheduler {

namespace {

constexpr int64_t kSystemBytes = 4'000'000'000;  // of host memory, for the system and other programs [A]
constexpr Outlook kOutlooks[] = {Outlook::kConservative, Outlook::kTarget, Outlook::kUpperBound};

double gb(int64_t bytes) { return static_cast<double>(bytes) * 1e-9; }

int64_t routed_bytes(const ops::Plan& plan) {
    int64_t total = 0;
    for (const ops::ExpertSet& set : plan.experts)
        for (const auto* projection : {&set.w1, &set.w2, &set.w3})
            for (const quant::Matrix& matrix : *projection) total += quant::packed_form(matrix).bytes();
    return total;
}

/// Tables of embeddings that no Linear reads as well.
int64_t embedding_bytes(const ops::Plan& plan) {
    std::set<const std::byte*> multiplied;
    for (const ops::Step& step : plan.steps)
        if (const auto* linear = std::get_if<ops::Linear>(&step))
            multiplied.insert(plan.matrices[static_cast<size_t>(linear->weight)].matrix.data);
    int64_t total = 0;
    for (const ops::Step& step : plan.steps)
        if (const auto* embed = std::get_if<ops::Embed>(&step)) {
            const quant::Matrix& table = plan.matrices[static_cast<size_t>(embed->table)].matrix;
            if (multiplied.insert(table.data).second) total += table.bytes();
        }
    return total;
}

/// All slots for passes of so many rows; those of outputs are few.
int64_t slot_bytes(const ops::Plan& plan, int64_t rows) {
    int64_t total = 0;
    for (const ops::SlotSpec& slot : plan.slots)
        if (slot.rows == ops::Rows::kTokens) total += slot.cols * rows * 4;
    return total;
}

std::vector<GpuMemoryLine> host_lines(const ForecastQuestion& question) {
    std::vector<GpuMemoryLine> lines = {{"system", kSystemBytes, "and other programs"}};
    lines.push_back({"embedding", embedding_bytes(question.trunk), ""});
    if (question.machine.gpus.empty()) {
        lines.push_back({"dense weights", GpuWeights::bytes_of(question.trunk), ""});
        lines.push_back(
            {"KV", question.sequences * memory::sequence_bytes(question.trunk.caches, question.context), ""});
        lines.push_back({"activations", slot_bytes(question.trunk, question.prefill_chunk), ""});
    }
    lines.push_back({"routed experts", routed_bytes(question.trunk), "all of them, resident ones too"});
    if (question.draft != nullptr) lines.push_back({"routed experts, draft", routed_bytes(*question.draft), ""});
    return lines;
}

std::string host_refusal(const Forecast& forecast) {
    int64_t left = forecast.host_bytes;
    for (const GpuMemoryLine& line : forecast.host) {
        left -= line.bytes;
        if (left < 0)
            return "host memory of " +
                   printed("%.1f GB: %s of %.1f GB is %.1f GB more than is left", gb(forecast.host_bytes),
                           line.name.c_str(), gb(line.bytes), gb(-left)) +
                   "; needs more memory, a smaller format of the weights, or a model with fewer experts";
    }
    return "";
}

GpuMemoryPlan card_plan(const ForecastQuestion& question, const cuda::DeviceInfo& card) {
    if (question.gpu_memory > card.memory_bytes)
        fail("--gpu-memory is ", question.gpu_memory, " bytes, but ", printable(card.name), " has ", card.memory_bytes);
    return plan_gpu_memory(question.trunk, question.draft,
                           {.budget_bytes = question.gpu_memory > 0 ? question.gpu_memory : card.memory_bytes,
                            .context = question.context,
                            .sequences = question.sequences,
                            .prefill_chunk = question.prefill_chunk});
}

Json lines_json(const std::vector<GpuMemoryLine>& lines) {
    Json list = Json::array();
    for (const GpuMemoryLine& line : lines)
        list.push_back({{"name", line.name}, {"bytes", line.bytes}, {"detail", line.detail}});
    return list;
}

Json card_json(const GpuMemoryPlan& plan) {
    return {{"budget_bytes", plan.budget_bytes},
            {"lines", lines_json(plan.lines)},
            {"expert_bytes", plan.slot_bytes},
            {"experts", plan.experts},
            {"expert_slots", plan.expert_slots},
            {"unused_bytes", plan.unused_bytes},
            {"prefill_chunk", plan.prefill_chunk},
            {"draft_head", plan.draft_heads},
            {"given_up", plan.given_up}};
}

std::string host_text(const Forecast& forecast) {
    std::string text = "\nHost memory\n";
    int64_t used = 0;
    const auto add = [&](const std::string& name, int64_t bytes, const std::string& detail) {
        text += printed("%-27s %8.3f GB%s%s\n", name.c_str(), gb(bytes), detail.empty() ? "" : "  ", detail.c_str());
    };
    for (const GpuMemoryLine& line : forecast.host) {
        add(line.name, line.bytes, line.detail);
        used += line.bytes;
    }
    if (used <= forecast.host_bytes) add("unused", forecast.host_bytes - used, "");
    add("this machine has", forecast.host_bytes, "");
    return text;
}

}  // namespace

const char* outlook_name(Outlook outlook) {
    constexpr const char* kNames[] = {"conservative", "target", "upper bound"};
    return kNames[static_cast<size_t>(outlook)];
}

Forecast forecast(const ForecastQuestion& question) {
    const MachineDescription& machine = question.machine;
    const DescribedGpu* gpu = machine.gpus.empty() ? nullptr : &machine.gpus.front();
    Forecast answer;
    answer.host_bytes = machine.memory_bytes();
    if (gpu != nullptr) {
        answer.gpu = card_plan(question, gpu->speed.device);
        answer.refusal = answer.gpu->refusal;
        answer.resident = static_cast<double>(answer.gpu->expert_slots) / static_cast<double>(answer.gpu->experts);
    }
    if (gpu == nullptr || !gpu->unified_memory) {
        answer.host = host_lines(question);
        if (answer.refusal.empty()) answer.refusal = host_refusal(answer);
    }
    const TokenWork work = token_work(question.trunk, question.context - 1);
    const int64_t chunk = std::min(question.context, answer.gpu ? answer.gpu->prefill_chunk : question.prefill_chunk);
    for (size_t i = 0; i < answer.expected.size(); ++i) {
        const Rates rates = rates_of(machine, gpu, kOutlooks[i]);
        const double hit = hit_rate(answer.resident, kOutlooks[i]);
        answer.expected[i] = {kOutlooks[i], hit, decode_time(work, rates, hit),
                              prefill_time(work, rates, answer.resident, chunk)};
    }
    return answer;
}

std::string forecast_text(const Forecast& forecast, const MachineDescription& machine) {
    std::string text;
    if (forecast.gpu) {
        text = printable(machine.gpus.front().speed.device.name);
        if (machine.gpus.size() > 1) text += printed(", one of %zu (only one is planned with)", machine.gpus.size());
        text += "\n" + gpu_memory_text(*forecast.gpu);
    }
    if (!forecast.host.empty()) text += host_text(forecast);
    text += "\nExpected of one sequence, computed, not measured\n";
    text += printed("%-14s %12s  %-16s %13s  %-24s %s\n", "", "decode tok/s", "limited by", "prefill tok/s",
                    "limited by", forecast.gpu ? "hit rate" : "");
    for (const Forecast::Expected& expected : forecast.expected) {
        const bool known = expected.prefill.seconds > 0.0;
        text += printed("%-14s %12.1f  %-16s %13s  %-24s ", outlook_name(expected.outlook),
                        expected.decode.tokens_per_s(), expected.decode.limit.c_str(),
                        known ? printed("%.0f", expected.prefill.tokens_per_s()).c_str() : "not known",
                        expected.prefill.limit.c_str());
        text += (forecast.gpu ? printed("%.2f", expected.hit) : std::string()) + "\n";
    }
    if (!forecast.refusal.empty()) text += "\ndoes not fit: " + forecast.refusal + "\n";
    return text;
}

Json forecast_json(const Forecast& forecast) {
    Json expected = Json::object();
    for (const Forecast::Expected& e : forecast.expected) {
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
                                               {"experts_s", e.decode.experts}}},
                                             {"prefill", std::move(prefill)}};
    }
    return {{"fits", forecast.refusal.empty()},
            {"refusal", forecast.refusal},
            {"gpu", forecast.gpu ? card_json(*forecast.gpu) : Json(nullptr)},
            {"host", {{"memory_bytes", forecast.host_bytes}, {"lines", lines_json(forecast.host)}}},
            {"resident_share", forecast.resident},
            {"expected", std::move(expected)}};
}

}  // namespace thermocline::scheduler
