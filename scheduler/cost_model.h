// How fast a model will run on a machine with so many experts resident on its card: the formulas of hybrid-engine.md
// 1.5 (R1 to R3, R6) over bytes and operations of a plan (src/ops/cost.h) and the rates of a machine file. Pure
// functions; nothing is measured here. What is predicted is one card with its CPU, one sequence.
#pragma once

#include "scheduler/expert_tiers.h"
#include "scheduler/machine_file.h"
#include "src/ops/plan.h"

#include <cstdint>
#include <string>
#include <vector>

namespace thermocline::scheduler {

/// How well kernels and hand-offs do.
enum class Outlook : uint8_t {
    kConservative,  ///< as existing engines do
    kTarget,        ///< as this one is meant to
    kUpperBound,    ///< nominal rates, nothing lost
};

/// What one token needs of each part of a machine.
struct TokenWork {
    double dense_bytes = 0;   // of the card, without shared and routed experts, with KV
    double shared_bytes = 0;  // shared experts, computed beside the routed ones
    double expert_bytes = 0;  // of one routed expert
    double expert_flops = 0;  // of one routed expert for one token
    double flops = 0;         // of everything, experts included
    int layers = 0;           // with routed experts
    int top_k = 0;
    int64_t experts = 0;  // of a layer
};

/// Of the token at position `context`. Throws Error for a plan without routed experts.
TokenWork token_work(const ops::Plan& plan, int64_t context);

/// Rates that an outlook grants, bytes/s and operations/s; times in seconds.
struct Rates {
    double gpu_dense = 0, gpu_expert = 0;  // GEMV; 0: no card, the CPU does everything
    double gpu_flops = 0;                  // of prompts; 0: not known
    double dram = 0;                       // experts on the CPU
    double cpu_flops = 0;                  // of these; 0: not known
    double link = 0;                       // to the card
    double layer_overhead = 0;             // launches and tails on the card
    double handoff = 0;                    // to the CPU and back
    bool balanced = true;                  // resident experts may go to an idle CPU (R2)
    double disk = 0;                       // experts that are in no memory; 0: not known
    bool unified = false;                  // card and CPU share one memory: missing experts come from files
};

/// For a card of the machine, or null. Nominal rates times the efficiencies of hybrid-engine.md 1.6 where the file has
/// them; else measured ones times what kernels are to reach of those (floor and aim). `unit`: of the CPU's experts;
/// float32 where it has no such.
Rates rates_of(const MachineDescription& machine, const DescribedGpu* gpu, Outlook outlook,
               cpu::Unit unit = cpu::Unit::kBF16);

/// Share of chosen experts that are resident when a share `resident` of all is: planning curves of 1.4, until a profile
/// says better. `adaptive`: kept by recency; else a fixed set.
double planned_hit_rate(double resident, bool adaptive);

/// The hit rate of an outlook: adaptive, or half-way to the fixed set (1.6). The core of a division is a fixed set, and
/// only what is left of choices and experts adapts.
double hit_rate(double resident, Outlook outlook);
double hit_rate(const ExpertTiers& tiers, Outlook outlook);
/// Of chosen experts that are not on the card, the share that is in no memory: the page cache keeps those used lately.
double file_share(const ExpertTiers& tiers, Outlook outlook);

struct DecodeTime {
    double seconds = 0;      // of a token
    double dense = 0;        // of it: reading dense weights and KV
    double overhead = 0;     // launches and tails
    double experts = 0;      // shared and routed experts, the longer side of every layer
    double gpu_experts = 0;  // what the card alone would take for its part
    double cpu_experts = 0;  // what the CPU would for its own, hand-offs included
    double file = 0;         // of it: reading experts that are in no memory
    std::string limit;       // the resource that the most time goes to
    double tokens_per_s() const { return 1.0 / seconds; }
};

/// R2 and R3: every layer takes the longer of card and CPU, averaged over how many of the chosen experts are missing. A
/// share `from_file` of these is read first.
DecodeTime decode_time(const TokenWork& work, const Rates& rates, double hit, double from_file = 0.0);

/// That `resident` of `chosen` experts are, each with probability `hit`.
double probability_of_hits(int chosen, int resident, double hit);

/// R2: of the experts of one layer, shared ones too, when 0 .. top_k of the chosen ones are resident: [top_k + 1].
/// `always_asks`: a layer with nothing for the CPU pays for the hand-off as well; so every further resident expert
/// gains at most what the one before did.
std::vector<double> layer_seconds(const TokenWork& work, const Rates& rates, bool always_asks);

/// R1: time of one expert on the CPU for `tokens` tokens at once, and the number of tokens from which a transfer over
/// the link is faster; infinite when the CPU's operations or the link are not known.
double cpu_expert_seconds(const TokenWork& work, const Rates& rates, double tokens);
double stream_crossover(const TokenWork& work, const Rates& rates);

struct PrefillTime {
    double seconds = 0;   // of the chunk
    double streamed = 0;  // share of the missing experts that go over the link
    std::string limit;
    int64_t chunk = 0;
    double tokens_per_s() const { return seconds > 0.0 ? static_cast<double>(chunk) / seconds : 0.0; }
};

/// R6: of every layer the link carries the hottest missing experts, the CPU computes the coldest, the card the rest.
/// `resident`: share of all experts; `from_file`: that are in no memory and are read before. 0 seconds if the file does
/// not say how fast card or CPU compute.
PrefillTime prefill_time(const TokenWork& work, const Rates& rates, double resident, int64_t chunk,
                         double from_file = 0.0);

}  // namespace thermocline::scheduler
