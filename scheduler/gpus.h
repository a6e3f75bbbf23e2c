// Which cards take part, what they keep of a model, and the executor that plays a plan with them or without.
#pragma once

#include "cpu/kernels.h"
#include "cpu/workers.h"
#include "cuda/device.h"
#include "cuda/emulation/device.h"
#include "memory/packed_weights.h"
#include "scheduler/executor.h"
#include "scheduler/expert_prefetch.h"
#include "scheduler/expert_tiers.h"
#include "scheduler/gpu_memory.h"
#include "scheduler/host_memory.h"
#include "scheduler/layer_split.h"
#include "scheduler/placement.h"
#include "scheduler/placement_file.h"
#include "scheduler/residency.h"
#include "src/ops/plan.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace thermocline::scheduler {

class GpuExecutor;

/// What --gpus says. Throws Error for anything but none, N, emulated and emulated:N.
struct GpuChoice {
    int cards = 0;  // the first ones
    bool emulated = false;
};
GpuChoice gpu_choice(const std::string& text);

/// What is asked of cards, and of the memory of the host beside them.
struct GpuWishes {
    std::string gpus = "none";  ///< --gpus
    int64_t memory_bytes = 0;   ///< --gpu-memory: of every card as a whole; 0: all that is free
    /// auto: as many experts on the card as fit, in prompts others pass through it where that is faster; stream: there
    /// all others do; cpu: none on the card; none: all.
    std::string offload_experts = "auto";
    /// What a request gets depends on nothing that is measured and on no other request: experts stay where they are at
    /// the start, and results are batch-invariant.
    bool deterministic = false;
    std::string residency = "adaptive";     ///< adaptive, static, lru: which of them, where not all fit
    std::string placement = {};             ///< --placement: file with those that are there first; empty: any
    std::string profile = {};               ///< --profile: file with what is chosen how often; empty: not known
    int64_t host_bytes = 0;                 ///< --host-memory: for this program; 0: all that is free, but a margin
    bool file_experts = false;              ///< --allow-file-experts: those that fit nowhere are read from the file
    bool slow_fallback = false;             ///< --allow-slow-fallback: start with what makes every token slow
    std::string prefetch = "auto";          ///< auto: experts foretold are brought near while that pays; off
    std::string library = "auto";           ///< auto: products of prompts by the card's library where it is faster; off
    int64_t worker_cache_bytes = 0;         ///< that every worker may fill with these; 0: none
    cuda::emulation::Config emulated = {};  ///< what an emulated card is like, for tests: of all of them
    // Of several cards:
    std::vector<int64_t> card_memory = {};  ///< the same where each has its own; else empty
    std::vector<int64_t> layer_split = {};  ///< --layer-split: layers of each card; empty: as is expected to be best
    std::vector<Rates> rates = {};          ///< of each card, by a machine file; empty: not known (assumed_rates())
};

/// What host memory has to hold besides a plan and its experts.
struct HostUse {
    const ops::Plan* draft = nullptr;  // held whole
    bool mapped = false;               // weights are read where the file is mapped
    int64_t kv_bytes = 0;              // of the caches of all sequences, without a card; 0: of one
    int64_t prefix_bytes = 0;          // of the prefix cache, where it was asked for
};

class Gpus {
public:
    /// Throws Error if there is no such card, or a wish is none that is known.
    explicit Gpus(GpuWishes wishes);
    /// With cards that are open already.
    Gpus(GpuWishes wishes, std::unique_ptr<cuda::Device> device);
    Gpus(GpuWishes wishes, std::vector<std::unique_ptr<cuda::Device>> devices);
    ~Gpus();

    bool any() const { return !cards_.empty(); }
    /// Names of the cards; "none".
    std::string name() const;

    /// GB/s that a card reads its memory with, the slowest one, measured now; 0: it is emulated. CHECKs that there is a
    /// card.
    double memory_read_gb_per_s() const;

    /// Divides layers among the cards and the memory of each, and takes it, before the weights are loaded: later
    /// nothing is asked for any more. May lower limits.max_rows. `model`: its name, which the file of --placement must
    /// bear; `sequences`: as many as may exist at a time; `packed`: weights will be packed, if they are not yet.
    /// Experts that host memory has no room for lie on a card alone. Throws Error if a budget or a card does not hold
    /// it, with what to change.
    void reserve(const ops::Plan& plan, const std::string& model, ExecutorLimits& limits, int64_t sequences,
                 bool packed, const HostUse& host = {});
    /// Of all cards together.
    const ExpertTiers& tiers() const { return tiers_; }
    /// Layers with routed experts that each card has; after reserve(). Without a card nothing.
    std::vector<int64_t> layers_of_cards() const;
    /// Matrices of `plan` that cards alone are to hold: dense ones and the core of the experts. After reserve().
    std::vector<const quant::Matrix*> card_only(const ops::Plan& plan) const;

    /// Experts on the cards, as many as reserve() found room for, the others on the CPU, and all else on the cards; or
    /// without one all on the CPU. After reserve() with the same limits. `packed`: the weights of the plan, of which
    /// those of card_only() may be unmade; its memory is pinned if experts may move. Null: they are mapped. What is
    /// given must outlive the executor, this object too.
    std::unique_ptr<Executor> new_executor(const ops::Plan& plan, cpu::Workers& workers,
                                           const cpu::KernelTable& kernels, ExecutorLimits limits,
                                           memory::PackedWeights* packed);
    /// The same for weights that are all there, in memory of whoever made them.
    std::unique_ptr<Executor> new_executor(const ops::Plan& plan, cpu::Workers& workers,
                                           const cpu::KernelTable& kernels, ExecutorLimits limits,
                                           std::span<std::byte> weights, memory::PackedWeights* packed = nullptr);

private:
    /// A card and what it has of the model. Experts have the names of its part of the plan.
    struct Card {
        std::unique_ptr<cuda::Device> device;
        LayerRange layers = {};
        GpuMemoryPlan memory = {};
        ExpertTiers tiers = {};
        std::vector<int64_t> expert_counts = {};       // of its layers
        std::vector<ExpertName> resident = {};         // at the start
        std::vector<std::vector<double>> shares = {};  // of tokens that choose each expert; empty: not known
        double memory_read = 0;                        // GB/s; 0: not measured
        cuda::DeviceMemory reserved = {};
        bool none_moves() const { return tiers.core == tiers.slots || tiers.slots == tiers.experts; }
    };

    int64_t budget_of(size_t card) const;
    SplitQuestion split_question(const ops::Plan& plan, const ExecutorLimits& limits, int64_t sequences,
                                 bool packed) const;
    /// What files say, all layers.
    PlacedExperts asked_experts(const ops::Plan& plan, const std::string& model) const;
    void divide_layers(const SplitQuestion& question, const PlacedExperts& asked);
    void divide_experts_among(const SplitQuestion& question, const ExecutorLimits& limits, const HostUse& host);
    int64_t sufficient_card(const SplitQuestion& question, int64_t host_room) const;
    void check_stream(size_t card) const;
    void check_speed(Card& card) const;
    void choose_first(const PlacedExperts& asked, size_t card);
    void take_memory(size_t card);
    void pin(std::span<std::byte> weights);
    ResidencyRules rules_for(const Card& card) const;
    PrefetchRules prefetch_rules(const ExpertTiers& tiers) const;
    /// GB/s, what rates of experts on the CPU are held against; 0: none are measured, or this is not.
    double host_memory_read(cpu::Workers& workers) const;
    std::unique_ptr<GpuExecutor> executor_of(Card& card, const ops::Plan& part, cpu::Workers& workers,
                                             const cpu::KernelTable& kernels, const ExecutorLimits& limits,
                                             memory::PackedWeights* packed, double host_read);

    GpuWishes wishes_;
    std::vector<Card> cards_;
    HostMemoryPlan host_plan_;
    ExpertTiers tiers_;
    bool mapped_ = false;
    int64_t sequences_ = 0;
    std::optional<cuda::Pin> pin_;
};

}  // namespace thermocline::scheduler
