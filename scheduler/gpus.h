// Which cards take part, and the executor that plays a plan with them or without.
#pragma once

#include "cpu/kernels.h"
#include "cpu/workers.h"
#include "scheduler/executor.h"
#include "src/ops/plan.h"

#include <cstdint>
#include <memory>
#include <string>

namespace thermocline::cuda {
class Device;
}

namespace thermocline::scheduler {

class Gpus {
public:
    /// `choice` as of --gpus: "none", "1", "emulated", "emulated:1". Throws Error if it is none of these, or if there
    /// is no such card.
    explicit Gpus(const std::string& choice);
    /// One that is open already.
    explicit Gpus(std::unique_ptr<cuda::Device> device);
    ~Gpus();

    bool any() const { return device_ != nullptr; }
    /// Name of the card; "none".
    std::string name() const;

    /// Experts on the CPU and all else on the card, or without one all on the CPU. `sequences`: as many as may exist at
    /// a time. What is given must outlive the executor, this object too.
    std::unique_ptr<Executor> new_executor(const ops::Plan& plan, cpu::Workers& workers,
                                           const cpu::KernelTable& kernels, ExecutorLimits limits, int64_t sequences);

private:
    std::unique_ptr<cuda::Device> device_;
};

}  // namespace thermocline::scheduler
