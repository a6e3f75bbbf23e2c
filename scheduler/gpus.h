// Which cards take part, what they keep of a model, and the executor that plays a plan with them or without.
#pragma once

#include "cpu/kernels.h"
#include "cpu/workers.h"
#include "cuda/device.h"
#include "memory/packed_weights.h"
#include "scheduler/executor.h"
#include "scheduler/expert_tiers.h"
#include "scheduler/gpu_memory.h"
#include "scheduler/host_memory.h"
#include "scheduler/placement.h"
#include "scheduler/residency.h"
#include "src/ops/plan.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace thermocline::scheduler {

/// What is asked of a card, and of the memory of the host beside it.
struct GpuWishes {
    std::string gpus = "none";  ///< --gpus: none, 1, emulated, emulated:1
    int64_t memory_bytes = 0;   ///< --gpu-memory: of the whole card; 0: all that is free
    /// auto: as many experts on the card as fit, in prompts others pass through it where that is faster; stream: there
    /// all others do; cpu: none on the card; none: all.
    std::string offload_experts = "auto";
    std::string residency = "adaptive";  ///< adaptive, static, lru: which of them, where not all fit
    std::string placement = {};          ///< --placement: file with those that are there first; empty: any
    std::string profile = {};            ///< --profile: file with what is chosen how often; empty: not known
    int64_t host_bytes = 0;              ///< --host-memory: for this program; 0: all that is free, but a margin
    bool file_experts = false;           ///< --allow-file-experts: those that fit nowhere are read from the file
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
    /// With a card that is open already.
    Gpus(GpuWishes wishes, std::unique_ptr<cuda::Device> device);
    ~Gpus();

    bool any() const { return device_ != nullptr; }
    /// Name of the card; "none".
    std::string name() const;

    /// GB/s that the card reads its memory with, measured now; 0: it is emulated. CHECKs that there is a card.
    double memory_read_gb_per_s() const;

    /// Divides the memory of the card and takes it, before the weights are loaded: later nothing is asked for any more.
    /// May lower limits.max_rows. `model`: its name, which the file of --placement must bear; `sequences`: as many as
    /// may exist at a time; `packed`: weights will be packed, if they are not yet. Experts that host memory has no room
    /// for lie on the card alone. Throws Error if a budget or the card does not hold it, with what to change.
    void reserve(const ops::Plan& plan, const std::string& model, ExecutorLimits& limits, int64_t sequences,
                 bool packed, const HostUse& host = {});
    const ExpertTiers& tiers() const { return tiers_; }
    /// Matrices of `plan` that the card alone is to hold: dense ones and the core of the experts. After reserve().
    std::vector<const quant::Matrix*> card_only(const ops::Plan& plan) const;

    /// Experts on the card, as many as reserve() found room for, the others on the CPU, and all else on the card; or
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
    GpuMemoryWishes card_wishes(const ops::Plan& plan, const ExecutorLimits& limits, int64_t sequences,
                                bool packed) const;
    void divide(const ops::Plan& plan, const ExecutorLimits& limits, const GpuMemoryWishes& card, const HostUse& host,
                int64_t sequences);
    void check_stream() const;
    void choose_first(const ops::Plan& plan, const std::string& model);
    ResidencyRules rules_for(std::span<std::byte> weights, bool none_moves);

    GpuWishes wishes_;
    std::unique_ptr<cuda::Device> device_;
    GpuMemoryPlan memory_plan_;
    HostMemoryPlan host_plan_;
    ExpertTiers tiers_;
    bool mapped_ = false;
    std::vector<ExpertName> resident_;         // at the start
    std::vector<std::vector<double>> shares_;  // of tokens that choose each expert; empty: not known
    int64_t sequences_ = 0;
    cuda::DeviceMemory reserved_;
    std::optional<cuda::Pin> pin_;
};

}  // namespace thermocline::scheduler
