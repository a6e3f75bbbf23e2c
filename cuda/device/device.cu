// A card through the CUDA runtime.
#include "cuda/device.h"
#include "cuda/device/check.cuh"
#include "cuda/device/cublas.cuh"
#include "cuda/device/entries.cuh"
#include "cuda/hung.h"
#include "cuda/kernels/handoff.h"
#include "cuda/kernels/list.h"
#include "src/base/check.h"

#include <array>
#include <atomic>
#include <cuda.h>
#include <map>
#include <mutex>
#include <thread>
#include <vector>

namespace thermocline::cuda {

namespace {

using device::Entry;

/// All kernels by their place in Kernels.
const Entry& entry_of(int kernel) {
    static const std::vector<Entry> all = [] {
        std::vector<Entry> entries;
        for (const std::span<const Entry> some :
             {device::row_entries(), device::linear_entries(), device::expert_entries(), device::state_entries(),
              device::attention_entries(), device::meeting_entries(), device::family_entries()})
            entries.insert(entries.end(), some.begin(), some.end());
        CHECK(static_cast<int>(entries.size()) == Kernels::kCount);
        return entries;
    }();
    return all[static_cast<size_t>(kernel)];
}

/// cuStreamWaitValue64 of the driver, which the runtime has no call for; null: the driver lacks it.
using WaitValue = CUresult (*)(CUstream, CUdeviceptr, cuuint64_t, unsigned);
WaitValue find_wait_value() {
    void* function = nullptr;
    cudaDriverEntryPointQueryResult found{};
    constexpr unsigned kVersion = 12000;
    if (cudaGetDriverEntryPointByVersion("cuStreamWaitValue64", &function, kVersion, cudaEnableDefault, &found) !=
            cudaSuccess ||
        found != cudaDriverEntryPointSuccess) {
        (void)cudaGetLastError();
        return nullptr;
    }
    return reinterpret_cast<WaitValue>(function);
}

struct CudaGraph : Graph {
    cudaGraphExec_t graph = nullptr;
    ~CudaGraph() override { cudaGraphExecDestroy(graph); }
};

void CUDART_CB await_on_host(void* flag) {
    const std::atomic_ref<uint64_t> value(static_cast<Flag*>(flag)->value);
    while (value.load(std::memory_order_acquire) == 0) std::this_thread::yield();
}

class CudaStream : public Stream {
public:
    CudaStream(int device, FlagWait flag_wait, WaitValue wait_value, Cublas& cublas)
        : device_(device), flag_wait_(flag_wait), wait_value_(wait_value), cublas_(cublas) {
        use(device);
        check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "GPU ", device, ": making a stream");
    }
    ~CudaStream() override {
        const auto deadline = std::chrono::steady_clock::now() + kEndPatience;
        while (cudaStreamQuery(stream_) == cudaErrorNotReady) {
            if (std::chrono::steady_clock::now() > deadline) end_hung(device_, kEndPatience);
            std::this_thread::yield();
        }
        cudaStreamDestroy(stream_);
    }
    CudaStream(const CudaStream&) = delete;
    CudaStream& operator=(const CudaStream&) = delete;

    void launch(int kernel, const Grid& grid, const void* members, size_t bytes) override {
        if (grid.x == 0 || grid.y == 0) return;
        const Entry& entry = entry_of(kernel);
        CHECK(bytes == entry.bytes);
        void* parameters[] = {const_cast<void*>(members)};
        use(device_);
        const dim3 blocks(static_cast<unsigned>(grid.x), static_cast<unsigned>(grid.y));
        check(cudaLaunchKernel(entry.function, blocks, static_cast<unsigned>(grid.threads), parameters,
                               static_cast<size_t>(grid.shared_bytes), stream_),
              "GPU ", device_, ": starting kernel ", entry.name);
    }
    void multiply(const DenseProduct& product) override { cublas_.multiply(product, stream_); }
    void copy(void* to, const void* from, int64_t bytes) override {
        for (int64_t done = 0, count = 0; done < bytes; done += count) {
            std::byte* const there = static_cast<std::byte*>(to) + done;
            const std::byte* const here = static_cast<const std::byte*>(from) + done;
            count = std::min({bytes - done, pinned_as_one(there), pinned_as_one(here)});
            check(cudaMemcpyAsync(there, here, static_cast<size_t>(count), cudaMemcpyDefault, stream_), "GPU ", device_,
                  ": copying ", count, " bytes");
        }
    }
    void wait_for(const Flag* flag) override {
        use(device_);
        switch (flag_wait_) {
            case FlagWait::kStreamOperation: {
                const CUresult status =
                    wait_value_(stream_, reinterpret_cast<CUdeviceptr>(&flag->value), 1, CU_STREAM_WAIT_VALUE_GEQ);
                if (status != CUDA_SUCCESS)
                    fail("GPU ", device_, ": a stream refused to wait for a flag (driver error ",
                         static_cast<int>(status), ")");
                return;
            }
            case FlagWait::kSpinKernel:
                return cuda::launch(*this, {.threads = kWarp}, AwaitFlag{flag});
            case FlagWait::kHostFunction:
                check(cudaLaunchHostFunc(stream_, await_on_host, const_cast<Flag*>(flag)), "GPU ", device_,
                      ": a function of the host");
        }
    }

    void begin_recording() override {
        use(device_);  // a thread may play on several cards in turn
        check(cudaStreamBeginCapture(stream_, cudaStreamCaptureModeThreadLocal), "GPU ", device_, ": recording");
    }
    std::unique_ptr<Graph> end_recording() override {
        cudaGraph_t recorded = nullptr;
        check(cudaStreamEndCapture(stream_, &recorded), "GPU ", device_, ": recording");
        use(device_);
        auto graph = std::make_unique<CudaGraph>();
        const cudaError_t status = cudaGraphInstantiate(&graph->graph, recorded, 0);
        cudaGraphDestroy(recorded);
        check(status, "GPU ", device_, ": making a graph");
        return graph;
    }
    void play(const Graph& graph) override {
        use(device_);
        check(cudaGraphLaunch(static_cast<const CudaGraph&>(graph).graph, stream_), "GPU ", device_,
              ": starting a graph");
    }

    bool finished() override {
        const cudaError_t status = cudaStreamQuery(stream_);
        if (status == cudaErrorNotReady) return false;
        check(status, "GPU ", device_);
        return true;
    }
    void wait(std::chrono::milliseconds limit) override {
        const auto deadline = std::chrono::steady_clock::now() + limit;
        while (!finished())
            if (std::chrono::steady_clock::now() > deadline)
                fail("GPU ", device_, ": no answer within ", limit.count(), " ms");
    }

private:
    int device_;
    FlagWait flag_wait_;
    WaitValue wait_value_;
    Cublas& cublas_;
    cudaStream_t stream_ = nullptr;
};

class CudaDevice : public Device {
public:
    CudaDevice(DeviceInfo info, FlagWait flag_wait, WaitValue wait_value)
        : info_(std::move(info)), flag_wait_(flag_wait), wait_value_(wait_value), cublas_(info_.index) {}

    const DeviceInfo& info() const override { return info_; }
    FlagWait flag_wait() const override { return flag_wait_; }
    const Library& library() override { return cublas_.library(); }
    int64_t free_bytes() override {
        use(info_.index);
        size_t free = 0, all = 0;
        check(cudaMemGetInfo(&free, &all), "GPU ", info_.index, ": asking for its free memory");
        return static_cast<int64_t>(free);
    }
    std::byte* allocate(int64_t bytes) override {
        use(info_.index);
        void* memory = nullptr;
        check(cudaMalloc(&memory, static_cast<size_t>(bytes)), "GPU ", info_.index, ": no room for ", bytes, " bytes, ",
              free_bytes(), " are free");
        return static_cast<std::byte*>(memory);
    }
    void release(std::byte* memory) noexcept override { cudaFree(memory); }
    std::byte* allocate_pinned(int64_t bytes) override {
        use(info_.index);
        void* memory = nullptr;
        check(cudaHostAlloc(&memory, static_cast<size_t>(bytes), cudaHostAllocMapped | cudaHostAllocPortable), "GPU ",
              info_.index, ": pinning ", bytes, " bytes of host memory was refused; ", kPinRemedy);
        std::memset(memory, 0, static_cast<size_t>(bytes));
        return static_cast<std::byte*>(memory);
    }
    void release_pinned(std::byte* memory) noexcept override { cudaFreeHost(memory); }
    void pin(std::byte* memory, int64_t bytes) override {
        use(info_.index);
        for (int64_t done = 0, count = 0; done < bytes; done += count) {
            count = std::min(bytes - done, pinned_as_one(memory + done));
            const cudaError_t status =
                cudaHostRegister(memory + done, static_cast<size_t>(count), cudaHostRegisterPortable);
            if (status == cudaSuccess) {
                const std::lock_guard lock(mutex_);
                pinned_[memory].push_back(memory + done);
                continue;
            }
            unpin(memory);
            check(status, "GPU ", info_.index, ": pinning ", bytes, " bytes of host memory was refused; ", kPinRemedy);
        }
    }
    void unpin(std::byte* memory) noexcept override {
        const std::lock_guard lock(mutex_);
        for (std::byte* piece : pinned_[memory]) cudaHostUnregister(piece);
        pinned_.erase(memory);
    }
    std::unique_ptr<Stream> new_stream() override {
        return std::make_unique<CudaStream>(info_.index, flag_wait_, wait_value_, cublas_);
    }

private:
    std::mutex mutex_;                                      // guards what follows
    std::map<std::byte*, std::vector<std::byte*>> pinned_;  // pieces of what pin() was given
    DeviceInfo info_;
    FlagWait flag_wait_;
    WaitValue wait_value_;
    Cublas cublas_;
};

/// Whether a recorded wait for a flag ends when the flag is raised, and not before.
bool works(CudaDevice& device) {
    constexpr std::chrono::milliseconds kShort(20), kLong(2000);
    PinnedMemory memory(device, sizeof(Flag));
    Flag* flag = memory.as<Flag>();
    const std::atomic_ref<uint64_t> value(flag->value);
    try {
        const std::unique_ptr<Stream> stream = device.new_stream();
        stream->begin_recording();
        try {
            stream->wait_for(flag);
        } catch (const Error&) {
            (void)stream->end_recording();
            throw;
        }
        const std::unique_ptr<Graph> graph = stream->end_recording();
        stream->play(*graph);
        std::this_thread::sleep_for(kShort);
        const bool waited = !stream->finished();
        value.store(1, std::memory_order_release);
        stream->wait(kLong);
        return waited;
    } catch (const Error&) {
        value.store(1, std::memory_order_release);
        return false;
    }
}

}  // namespace

std::unique_ptr<Device> open_device(int index, std::span<const FlagWait> ways) {
    Devices devices = find_devices();
    for (DeviceInfo& info : devices.found) {
        if (info.index != index) continue;
        if (kernel_target(info.compute_major, info.compute_minor).empty())
            fail("GPU ", index, " (", info.name, ", SM ", info.compute_major, ".", info.compute_minor,
                 "): no kernels for it; this program carries ", kTargets, ": ", kNoCodeRemedy);
        use(index);
        const int family = info.compute_major == 12 ? 0 : FamilyKernels::kCount;  // of the last ones, without code
        for (int kernel = 0; kernel < Kernels::kCount - family; ++kernel) {
            const Entry& entry = entry_of(kernel);
            check(cudaFuncSetAttribute(entry.function, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                       static_cast<int>(kMaxSharedBytes)),
                  "GPU ", index, ": preparing kernel ", entry.name);
            // Loads it. At its first launch it might be loaded behind a wait that this very thread has to end, for
            // which loading waits (CUDA programming guide, lazy loading).
            cudaFuncAttributes attributes{};
            check(cudaFuncGetAttributes(&attributes, entry.function), "GPU ", index, ": loading kernel ", entry.name);
        }
        const WaitValue wait_value = find_wait_value();
        for (const FlagWait way : ways) {
            if (way == FlagWait::kStreamOperation && wait_value == nullptr) continue;
            auto device = std::make_unique<CudaDevice>(info, way, wait_value);
            if (works(*device)) return device;
        }
        std::string tried;
        for (const FlagWait way : ways) tried += (tried.empty() ? "" : ", ") + std::string(name_of(way));
        fail("GPU ", index, ": a recorded graph cannot wait for a flag by: ", tried, "; update the driver");
    }
    if (devices.found.empty()) fail("GPU ", index, ": ", devices.why_none, "; ", kNoCardRemedy);
    fail("GPU ", index, ": this machine has ", devices.found.size(), "; use --gpus ", devices.found.size());
}

}  // namespace thermocline::cuda
