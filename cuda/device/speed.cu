// Speed of a card's link and of its memory, for bench-machine.
#include "cuda/cuda.h"
#include "cuda/device/check.cuh"

#include <algorithm>
#include <chrono>
#include <memory>
#include <string>

namespace thermocline::cuda {

namespace {

constexpr int kPasses = 5;
constexpr size_t kLinkBytes = size_t{256} << 20;
constexpr size_t kReadBytes = size_t{1} << 30;

struct HostFree {
    void operator()(void* p) const { cudaFreeHost(p); }
};
struct DeviceFree {
    void operator()(void* p) const { cudaFree(p); }
};
template <typename T>
using PinnedMemory = std::unique_ptr<T, HostFree>;
template <typename T>
using DeviceMemory = std::unique_ptr<T, DeviceFree>;

template <typename T>
PinnedMemory<T> new_pinned(int device, size_t bytes) {
    void* p = nullptr;
    check(cudaHostAlloc(&p, bytes, cudaHostAllocMapped), "GPU ", device, ": pinning ", bytes,
          " bytes of host memory was refused; ", kPinRemedy);
    return PinnedMemory<T>(static_cast<T*>(p));
}

template <typename T>
DeviceMemory<T> new_on_device(int device, size_t bytes) {
    void* p = nullptr;
    check(cudaMalloc(&p, bytes), "GPU ", device, ": allocating ", bytes, " bytes");
    return DeviceMemory<T>(static_cast<T*>(p));
}

class Stream {
public:
    explicit Stream(int device) : device_(device) {
        check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking), "GPU ", device, ": making a stream");
    }
    ~Stream() { cudaStreamDestroy(stream_); }
    Stream(const Stream&) = delete;
    Stream& operator=(const Stream&) = delete;

    operator cudaStream_t() const { return stream_; }
    void wait() const { check(cudaStreamSynchronize(stream_), "GPU ", device_); }

private:
    cudaStream_t stream_ = nullptr;
    int device_;
};

/// Best rate of a few passes of body(), which moves `bytes` and waits for it.
template <typename Body>
double best_gb_per_s(size_t bytes, Body body) {
    double best = 0.0;
    for (int pass = 0; pass < kPasses; ++pass) {
        const auto start = std::chrono::steady_clock::now();
        body();
        const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        best = std::max(best, static_cast<double>(bytes) / seconds * 1e-9);
    }
    return best;
}

/// The sum keeps the loads from being left out; it is 0 with zeroed memory.
__global__ void read_all(const uint4* words, size_t count, uint32_t* sum) {
    uint32_t own = 0;
    const size_t threads = size_t{gridDim.x} * blockDim.x;
    for (size_t i = size_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += threads) {
        const uint4 four = words[i];
        own += four.x + four.y + four.z + four.w;
    }
    if (own != 0) atomicAdd(sum, own);
}

}  // namespace

LinkSpeed measure_link(int device) {
    use(device);
    const auto host = new_pinned<std::byte>(device, 2 * kLinkBytes);
    const auto card = new_on_device<std::byte>(device, 2 * kLinkBytes);
    const Stream down(device), up(device);
    const auto to_device = [&] {
        check(cudaMemcpyAsync(card.get(), host.get(), kLinkBytes, cudaMemcpyHostToDevice, down), "GPU ", device,
              ": copying to it");
    };
    const auto to_host = [&] {
        check(cudaMemcpyAsync(host.get() + kLinkBytes, card.get() + kLinkBytes, kLinkBytes, cudaMemcpyDeviceToHost, up),
              "GPU ", device, ": copying from it");
    };
    LinkSpeed speed;
    speed.to_device = best_gb_per_s(kLinkBytes, [&] { to_device(), down.wait(); });
    speed.to_host = best_gb_per_s(kLinkBytes, [&] { to_host(), up.wait(); });
    speed.both = best_gb_per_s(2 * kLinkBytes, [&] { to_device(), to_host(), down.wait(), up.wait(); });
    return speed;
}

double measure_memory_read(int device) {
    use(device);
    const auto card = new_on_device<uint4>(device, kReadBytes);
    const auto sum = new_on_device<uint32_t>(device, sizeof(uint32_t));
    check(cudaMemset(card.get(), 0, kReadBytes), "GPU ", device, ": clearing memory");
    int multiprocessors = 0;
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device), "GPU ", device);
    const Stream stream(device);
    return best_gb_per_s(kReadBytes, [&] {
        read_all<<<static_cast<unsigned>(multiprocessors * 8), 256, 0, stream>>>(card.get(), kReadBytes / sizeof(uint4),
                                                                                 sum.get());
        check(cudaGetLastError(), "GPU ", device, ": starting a kernel");
        stream.wait();
    });
}

}  // namespace thermocline::cuda
