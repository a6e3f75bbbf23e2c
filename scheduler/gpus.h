// Which cards take part, what they keep of a model, and the executor that plays a plan with them or without.
#pragma once

#include "cpu/kernels.h"
#include "cpu/workers.h"
#include "cuda/device.h"
#include "scheduler/executor.h"
#include "scheduler/gpu_memory.h"
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

/// What is asked of a card.
struct GpuWishes {
    std::string gpus = "none";  ///< --gpus: none, 1, emulated, emulated:1
    int64_t memory_bytes = 0;   ///< --gpu-memory: of the whole card; 0: all that is free
    /// auto: as many experts on the card as fit, in prompts others pass through it where that is faster; stream: there
    /// all others do; cpu: none on the card; none: all.
    std::string offload_experts = "auto";
    std::string residency = "adaptive";  ///< adaptive, static, lru: which of them, where not all fit
    std::string placement = {};          ///< --placement: file with those that are there first; empty: any
    std::string profile = {};            ///< --profile: file with what is chosen how often; empty: not known
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
    /// may exist at a time; `packed`: weights will be packed, if they are not yet. Throws Error if the budget or the
    /// card does not hold it, with what to change. Without a card it does nothing.
    void reserve(const ops::Plan& plan, const std::string& model, ExecutorLimits& limits, int64_t sequences,
                 bool packed);

    /// Experts on the card, as many as reserve() found room for, the others on the CPU, and all else on the card; or
    /// without one all on the CPU. After reserve() with the same limits. `weights`: memory in which those of the
    /// experts lie; it is pinned if they may move. What is given must outlive the executor, this object too.
    std::unique_ptr<Executor> new_executor(const ops::Plan& plan, cpu::Workers& workers,
                                           const cpu::KernelTable& kernels, ExecutorLimits limits,
                                           std::span<std::byte> weights);

private:
    void choose_first(const ops::Plan& plan, const std::string& model);
    ResidencyRules rules_for(std::span<std::byte> weights, bool all_fit);

    GpuWishes wishes_;
    std::unique_ptr<cuda::Device> device_;
    GpuMemoryPlan memory_plan_;
    std::vector<ExpertName> resident_;         // at the start
    std::vector<std::vector<double>> shares_;  // of tokens that choose each expert; empty: not known
    int64_t sequences_ = 0, ring_ = 0;
    cuda::DeviceMemory reserved_;
    std::optional<cuda::Pin> pin_;
};

}  // namespace thermocline::scheduler
