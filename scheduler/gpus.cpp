#include "scheduler/gpus.h"

#include "cuda/emulation/device.h"
#include "scheduler/cpu_executor.h"
#include "scheduler/gpu_executor.h"
#include "src/base/error.h"
#include "src/base/log.h"

#include <utility>

namespace thermocline::scheduler {

namespace {

std::unique_ptr<cuda::Device> open(const std::string& choice) {
    if (choice == "none" || choice == "0") return nullptr;
    if (choice == "emulated" || choice == "emulated:1") return cuda::emulation::open({});
    if (choice == "1") return cuda::open_device(0);
    fail("--gpus is ", printable(choice),
         ", expected none, 1, emulated or emulated:1 (models are not split over several cards)");
}

double gb(int64_t bytes) { return static_cast<double>(bytes) * 1e-9; }

}  // namespace

Gpus::Gpus(const std::string& choice) : device_(open(choice)) {
    if (!device_) return;
    const cuda::DeviceInfo& info = device_->info();
    log::info("GPU {}: {}, SM{}{}, {:.1f} GB; streams wait for the CPU by {}", info.index, info.name,
              info.compute_major, info.compute_minor, gb(info.memory_bytes), cuda::name_of(device_->flag_wait()));
}

Gpus::Gpus(std::unique_ptr<cuda::Device> device) : device_(std::move(device)) {}

Gpus::~Gpus() = default;

std::string Gpus::name() const { return device_ ? device_->info().name : "none"; }

std::unique_ptr<Executor> Gpus::new_executor(const ops::Plan& plan, cpu::Workers& workers,
                                             const cpu::KernelTable& kernels, ExecutorLimits limits,
                                             int64_t sequences) {
    if (!device_) return std::make_unique<CpuExecutor>(plan, workers, kernels, limits);
    const int64_t weights = GpuWeights::bytes_of(plan), workspace = gpu_workspace_bytes(plan, limits);
    const int64_t caches = sequences * gpu_sequence_bytes(plan, limits.max_tokens), free = device_->free_bytes();
    log::info("GPU {}: {:.2f} GB of dense weights, {:.2f} GB of workspace, {:.2f} GB for {} sequences of {} tokens",
              device_->info().index, gb(weights), gb(workspace), gb(caches), sequences, limits.max_tokens);
    if (weights + workspace + caches > free)
        fail("GPU ", device_->info().index, ": needs ", (weights + workspace + caches) >> 20, " MiB (", weights >> 20,
             " of dense weights, ", workspace >> 20, " of workspace, ", caches >> 20, " for sequences), but ",
             free >> 20, " MiB are free: lower --max-model-len");
    return std::make_unique<GpuExecutor>(plan, *device_, workers, kernels, limits, sequences);
}

}  // namespace thermocline::scheduler
