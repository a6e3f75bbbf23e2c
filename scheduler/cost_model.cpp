#include "scheduler/cost_model.h"

#include "scheduler/gpu_memory.h"
#include "src/base/error.h"
#include "src/ops/cost.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <iterator>
#include <limits>

namespace thermocline::scheduler {

namespace {

/// By outlook: of a nominal rate; of a rate measured by plain reading.
struct Efficiency {
    double of_nominal[3], of_measured[3];
};
constexpr Efficiency kGpuDense = {{0.72, 0.82, 1.0}, {0.70, 0.85, 1.0}};
constexpr Efficiency kGpuExpert = {{0.60, 0.72, 1.0}, {0.60, 0.75, 1.0}};
constexpr double kDramOfMeasured[] = {0.66, 0.85, 1.0}, kConservativeDram = 0.68;
constexpr double kLayerOverhead[] = {100e-6, 30e-6, 0.0};
constexpr double kGemmEfficiency = 0.8;  // of the CPU's peak, measured (hybrid-engine.md 2.3)

double rate_of(const Efficiency& efficiency, double nominal, double measured, size_t outlook) {
    return 1e9 *
           (nominal > 0.0 ? nominal * efficiency.of_nominal[outlook] : measured * efficiency.of_measured[outlook]);
}

/// Where a file has a nominal rate, what it has as read rate is what is planned with.
double dram_of(const MachineDescription& machine, Outlook outlook) {
    const double read = machine.all.read_gb_per_s.front(), nominal = machine.nominal_gb_per_s;
    if (nominal <= 0.0) return 1e9 * read * kDramOfMeasured[static_cast<size_t>(outlook)];
    return 1e9 * (outlook == Outlook::kConservative ? kConservativeDram * nominal
                  : outlook == Outlook::kTarget     ? read
                                                    : nominal);
}

double cpu_flops_of(const MachineDescription& machine, cpu::Unit unit) {
    double best = 0.0;
    for (const cpu::Unit wanted : {unit, cpu::Unit::kF32}) {
        for (const TierPeak& peak : machine.peaks)
            if (peak.unit == wanted) best = std::max(best, peak.all_cores);
        if (best > 0.0) break;
    }
    return best * 1e9 * kGemmEfficiency;
}

struct Sides {
    double gpu, cpu;
    double longer() const { return std::max(gpu, cpu); }
};

/// A layer with `on_gpu` of the chosen experts on the card.
Sides layer_sides(const TokenWork& work, const Rates& rates, int on_gpu) {
    const int on_cpu = work.top_k - on_gpu;
    const double shared = work.shared_bytes / work.layers / rates.gpu_dense;
    return {shared + on_gpu * work.expert_bytes / rates.gpu_expert,
            on_cpu == 0 ? 0.0 : on_cpu * cpu_expert_seconds(work, rates, 1.0) + rates.handoff};
}

/// Everything read by the CPU.
DecodeTime on_cpu_alone(const TokenWork& work, const Rates& rates) {
    DecodeTime time;
    time.dense = (work.dense_bytes + work.shared_bytes) / rates.dram;
    time.experts = time.cpu_experts = work.layers * work.top_k * cpu_expert_seconds(work, rates, 1.0);
    time.seconds = time.dense + time.experts;
    time.limit = "host memory";
    return time;
}

/// One memory for both sides: the card computes all experts.
void on_card_alone(const TokenWork& work, const Rates& rates, DecodeTime& time) {
    const double chosen = static_cast<double>(work.layers) * work.top_k;
    time.gpu_experts = work.shared_bytes / rates.gpu_dense + chosen * work.expert_bytes / rates.gpu_expert;
    time.experts = time.gpu_experts;
    time.limit = "GPU memory";
}

/// A layer with `resident` of the chosen experts on the card, of which some may go to the CPU all the same.
Sides best_sides(const TokenWork& work, const Rates& rates, int resident) {
    Sides best = layer_sides(work, rates, resident);
    for (int on_gpu = 0; rates.balanced && on_gpu < resident; ++on_gpu)
        if (const Sides sides = layer_sides(work, rates, on_gpu); sides.longer() < best.longer()) best = sides;
    return best;
}

void balance(const TokenWork& work, const Rates& rates, double hit, DecodeTime& time) {
    for (int resident = 0; resident <= work.top_k; ++resident) {
        const Sides best = best_sides(work, rates, resident);
        const double weight = work.layers * probability_of_hits(work.top_k, resident, hit);
        time.experts += weight * best.longer();
        time.gpu_experts += weight * best.gpu;
        time.cpu_experts += weight * best.cpu;
    }
    time.limit = time.cpu_experts > time.dense + time.gpu_experts ? "host memory" : "GPU memory";
}

/// Without what is in no memory.
DecodeTime in_memory(const TokenWork& work, const Rates& rates, double hit) {
    if (rates.gpu_dense <= 0.0) return on_cpu_alone(work, rates);
    DecodeTime time;
    time.dense = work.dense_bytes / rates.gpu_dense;
    time.overhead = work.layers * rates.layer_overhead;
    if (rates.unified)
        on_card_alone(work, rates, time);
    else
        balance(work, rates, hit, time);
    time.seconds = time.dense + time.overhead + time.experts;
    return time;
}

}  // namespace

TokenWork token_work(const ops::Plan& plan, int64_t context) {
    const int32_t token = 0, output = 0;
    const ops::Segment segment{0, 1, context, nullptr};
    const ops::Batch batch{{&token, 1}, {&context, 1}, {&segment, 1}, {&output, 1}};
    TokenWork work;
    ops::Slot sum = ops::kNone;  // of the experts of this layer, until the shared ones are added to it
    for (const ops::Step& step : plan.steps) {
        const ops::Cost cost = ops::step_cost(plan, step, batch);
        work.flops += static_cast<double>(cost.flops);
        if (std::holds_alternative<ops::Embed>(step)) continue;  // a row from host memory
        if (const auto* experts = std::get_if<ops::Experts>(&step)) {
            const ops::ExpertSet& set = plan.experts[static_cast<size_t>(experts->experts)];
            ++work.layers;
            work.top_k = std::max(work.top_k, static_cast<int>(experts->top_k));
            work.experts = std::max(work.experts, static_cast<int64_t>(set.w1.size()));
            work.expert_flops = 6.0 * static_cast<double>(set.hidden) * static_cast<double>(set.intermediate);
            sum = experts->out;
            continue;
        }
        if (const auto* add = std::get_if<ops::Add>(&step); add != nullptr && add->x == sum) sum = ops::kNone;
        if (std::holds_alternative<ops::HyperOut>(step)) sum = ops::kNone;
        (sum == ops::kNone ? work.dense_bytes : work.shared_bytes) += static_cast<double>(cost.bytes);
    }
    if (work.layers == 0) fail("plan ", plan.name, ": has no routed experts");
    work.expert_bytes = static_cast<double>(expert_slot_bytes(plan));
    return work;
}

Rates rates_of(const MachineDescription& machine, const DescribedGpu* gpu, Outlook outlook, cpu::Unit unit) {
    const auto at = static_cast<size_t>(outlook);
    Rates rates;
    rates.dram = dram_of(machine, outlook);
    rates.cpu_flops = cpu_flops_of(machine, unit);
    rates.balanced = outlook != Outlook::kConservative;
    rates.disk = std::max(0.1, machine.disk_gb_per_s) * 1e9;
    if (gpu == nullptr) return rates;
    rates.gpu_dense = rate_of(kGpuDense, gpu->nominal_gb_per_s, gpu->speed.memory_read, at);
    rates.gpu_expert = rate_of(kGpuExpert, gpu->nominal_gb_per_s, gpu->speed.memory_read, at);
    rates.gpu_flops = gpu->matmul_tflops * 1e12;
    rates.link = 1e9 * (gpu->speed.busy_link.to_device > 0.0 ? gpu->speed.busy_link : gpu->speed.link).to_device;
    rates.layer_overhead = kLayerOverhead[at];
    rates.handoff = outlook == Outlook::kUpperBound ? 0.0 : gpu->speed.handoff_us * 1e-6;
    rates.unified = gpu->unified_memory;
    return rates;
}

double planned_hit_rate(double resident, bool adaptive) {
    if (resident <= 0.0) return 0.0;
    if (resident >= 1.0) return 1.0;
    return adaptive ? 0.42 + 0.58 * std::pow(resident, 0.6) : std::pow(resident, 0.8);
}

double hit_rate(double resident, Outlook outlook) {
    const double adaptive = planned_hit_rate(resident, true);
    return outlook == Outlook::kConservative ? 0.5 * (adaptive + planned_hit_rate(resident, false)) : adaptive;
}

double hit_rate(const ExpertTiers& tiers, Outlook outlook) {
    const auto share = [](int64_t part, int64_t all) {
        return all > 0 ? static_cast<double>(part) / static_cast<double>(all) : 0.0;
    };
    const double resident = share(tiers.slots, tiers.experts), all_adapt = hit_rate(resident, outlook);
    if (tiers.core == 0) return all_adapt;
    const double core = planned_hit_rate(share(tiers.core, tiers.experts), false),
                 rest = hit_rate(share(tiers.slots - tiers.core, tiers.experts - tiers.core), outlook);
    return std::min(all_adapt, core + (1.0 - core) * rest);
}

double file_share(const ExpertTiers& tiers, Outlook outlook) {
    const int64_t elsewhere = tiers.host + tiers.file;
    if (tiers.file == 0) return 0.0;
    return 1.0 - hit_rate(static_cast<double>(tiers.host) / static_cast<double>(elsewhere), outlook);
}

DecodeTime decode_time(const TokenWork& work, const Rates& rates, double hit, double from_file) {
    DecodeTime time = in_memory(work, rates, hit);
    const double read = work.layers * work.top_k * (1.0 - hit) * (rates.unified ? 1.0 : from_file);  // experts
    if (read <= 0.0) return time;
    time.file = read * work.expert_bytes / rates.disk;
    if (time.file > time.seconds) time.limit = "disk";
    time.experts += time.file;
    time.seconds += time.file;
    return time;
}

double probability_of_hits(int chosen, int resident, double hit) {
    double ways = 1.0;
    for (int i = 0; i < resident; ++i) ways = ways * (chosen - i) / (i + 1);
    return ways * std::pow(hit, resident) * std::pow(1.0 - hit, chosen - resident);
}

std::vector<double> layer_seconds(const TokenWork& work, const Rates& rates, bool always_asks) {
    std::vector<double> seconds;
    for (int resident = 0; resident <= work.top_k; ++resident) {
        Sides best = best_sides(work, rates, resident);
        if (always_asks && resident == work.top_k) best.cpu = std::max(best.cpu, rates.handoff);
        seconds.push_back(best.longer());
    }
    return seconds;
}

double cpu_expert_seconds(const TokenWork& work, const Rates& rates, double tokens) {
    const double compute = rates.cpu_flops > 0.0 ? work.expert_flops * tokens / rates.cpu_flops : 0.0;
    return std::max(work.expert_bytes / rates.dram, compute);
}

double stream_crossover(const TokenWork& work, const Rates& rates) {
    if (rates.cpu_flops <= 0.0 || rates.link <= 0.0) return std::numeric_limits<double>::infinity();
    return rates.cpu_flops * work.expert_bytes / (work.expert_flops * rates.link);
}

PrefillTime prefill_time(const TokenWork& work, const Rates& rates, double resident, int64_t chunk, double from_file) {
    PrefillTime time;
    time.chunk = chunk;
    const auto rows = static_cast<double>(chunk), experts = static_cast<double>(work.experts);
    const double compute_rate = rates.gpu_dense > 0.0 ? rates.gpu_flops : rates.cpu_flops;
    if (compute_rate <= 0.0 || (rates.cpu_flops <= 0.0 && resident < 1.0)) return time;
    // Of a layer: how many of the experts are chosen at all, and by how many tokens each.
    const double used = experts * (1.0 - std::pow(1.0 - 1.0 / experts, rows * work.top_k));
    const double tokens = rows * work.top_k / experts;
    const double missing = (rates.gpu_dense > 0.0 ? 1.0 - resident : 1.0) * used;
    const double computed = work.expert_flops * tokens / std::max(rates.cpu_flops, 1.0);
    const double streamed = rates.link > 0.0 ? work.expert_bytes / rates.link : std::numeric_limits<double>::infinity();
    time.streamed = missing > 0.0 && rates.link > 0.0 ? computed / (computed + streamed) : 0.0;
    struct Limit {
        const char* name;
        double seconds;
    };
    const Limit limits[] = {
        {rates.gpu_dense > 0.0 ? "GPU arithmetic" : "CPU arithmetic", rows * work.flops / compute_rate / work.layers},
        {"link and CPU arithmetic", missing * (1.0 - time.streamed) * computed},
        // Whoever computes it, a missing expert is read from host memory once.
        {"host memory", missing * work.expert_bytes / rates.dram}};
    const Limit* longest = std::max_element(std::begin(limits), std::end(limits),
                                            [](const Limit& a, const Limit& b) { return a.seconds < b.seconds; });
    const double read = from_file > 0.0 ? from_file * used * work.expert_bytes / rates.disk : 0.0;
    time.limit = read > longest->seconds ? "disk" : longest->name;
    time.seconds = (longest->seconds + read) * work.layers;
    return time;
}

}  // namespace thermocline::scheduler
