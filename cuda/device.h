// A card as the scheduler sees it: memory, streams, kernels, graphs, flags. Two implementations: the CUDA runtime
// (device/device.cu) and host threads (emulation/device.h). Addresses of a card's memory are kept as plain pointers but
// may be followed by kernels alone.
//
// Threads: a Device may be used by several at once, a Stream by one. All functions throw Error, naming the card and the
// remedy, unless they say otherwise; after a card is lost all of them do.
#pragma once

#include "cuda/cuda.h"
#include "cuda/launch.h"

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

namespace thermocline::cuda {

/// How a stream waits for a flag in host memory.
enum class FlagWait : uint8_t {
    kStreamOperation,  ///< the front end of the card polls; occupies no multiprocessor
    kSpinKernel,       ///< a kernel of one thread polls
    kHostFunction,     ///< the driver calls a function on a thread of its own: slow, works everywhere
};
const char* name_of(FlagWait way);
inline constexpr FlagWait kFlagWaits[] = {FlagWait::kStreamOperation, FlagWait::kSpinKernel, FlagWait::kHostFunction};

/// Of a kernel by its number in kernels/list.h.
const char* kernel_name(int kernel);

/// What one side raises and the other waits for, on a cache line of its own, in pinned host memory.
struct alignas(128) Flag {
    uint64_t value;
};

/// out[v, n] = factor * sum_k w[n, k] x[v, k], on top of what is there if it adds. All in memory of the card.
struct DenseProduct {
    const uint16_t* w;  // [rows, cols] bf16
    const uint16_t* x;  // [vectors, cols] bf16, x_stride apart
    float* out;         // [vectors, rows], out_stride apart
    int64_t rows, cols, vectors, x_stride, out_stride;
    float factor = 1.0f;
    bool adds = false;
};

/// What stands behind Stream::multiply().
struct Library {
    std::string name;      // "cuBLASLt 13.1.0"; empty: there is none
    std::string why_none;  // in a clause
};

/// Work of one stream, recorded once and played as often as wanted.
class Graph {
public:
    virtual ~Graph() = default;
};

/// Work in order. Nothing waits for the work but finished(), wait() and the destructor.
class Stream {
public:
    virtual ~Stream() = default;

    /// Starts kernel number `kernel` of the list with these members; launch() of kernels/list.h calls this. A grid
    /// without blocks starts nothing: a pass that wants no logits has no output rows.
    virtual void launch(int kernel, const Grid& grid, const void* members, size_t bytes) = 0;

    /// By the library of the device, if it has one; not while recording.
    virtual void multiply(const DenseProduct& product) = 0;

    /// Between any two of: pinned host memory, memory of the card.
    virtual void copy(void* to, const void* from, int64_t bytes) = 0;
    /// Goes on once the flag is raised (its value is not 0).
    virtual void wait_for(const Flag* flag) = 0;

    /// From here to end_recording() work is recorded, not done.
    virtual void begin_recording() = 0;
    virtual std::unique_ptr<Graph> end_recording() = 0;
    virtual void play(const Graph& graph) = 0;

    /// Whether all work is done.
    virtual bool finished() = 0;
    /// Until all work is done; Error if that takes longer than `limit`.
    virtual void wait(std::chrono::milliseconds limit) = 0;
};

/// Every piece of memory of a card begins at a multiple of so many bytes.
inline constexpr int64_t kAlignment = 256;
constexpr int64_t aligned(int64_t bytes) { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }

/// Memory of the host is registered in pieces, since the driver refuses 512 GiB at once and no copy may reach from one
/// piece into the next. They end where the address is a multiple of this, so that everybody knows where to divide.
inline constexpr int64_t kPinnedPiece = int64_t{256} << 30;
/// Bytes from `memory` to the end of its piece.
inline int64_t pinned_as_one(const void* memory) {
    return kPinnedPiece - static_cast<int64_t>(reinterpret_cast<uintptr_t>(memory) % uintptr_t{kPinnedPiece});
}

class Device {
public:
    virtual ~Device() = default;

    virtual const DeviceInfo& info() const = 0;
    virtual FlagWait flag_wait() const = 0;
    /// Looked for when this is first asked.
    virtual const Library& library() = 0;
    /// Bytes that allocate() could still give.
    virtual int64_t free_bytes() = 0;

    /// Memory of the card, aligned to kAlignment, its content undefined.
    virtual std::byte* allocate(int64_t bytes) = 0;
    virtual void release(std::byte* memory) noexcept = 0;
    /// Host memory that the card reaches at the same address, zeroed.
    virtual std::byte* allocate_pinned(int64_t bytes) = 0;
    virtual void release_pinned(std::byte* memory) noexcept = 0;
    /// Locks memory of the host, [bytes], in its place, so that copies of it run beside everything else. Not needed for
    /// a copy, but without it the caller waits.
    virtual void pin(std::byte* memory, int64_t bytes) = 0;
    virtual void unpin(std::byte* memory) noexcept = 0;

    virtual std::unique_ptr<Stream> new_stream() = 0;
};

/// Owns memory of a card, or pinned memory of the host.
template <bool kPinned>
class Memory {
public:
    Memory() = default;
    Memory(Device& device, int64_t bytes) : device_(&device), bytes_(bytes) {
        data_ = kPinned ? device.allocate_pinned(bytes) : device.allocate(bytes);
    }
    Memory(Memory&& other) noexcept { swap(other); }
    Memory& operator=(Memory&& other) noexcept {
        Memory taken(std::move(other));
        swap(taken);
        return *this;
    }
    ~Memory() {
        if (data_ == nullptr) return;
        if (kPinned)
            device_->release_pinned(data_);
        else
            device_->release(data_);
    }

    std::byte* data() const { return data_; }
    int64_t bytes() const { return bytes_; }
    template <typename T>
    T* as() const {
        return reinterpret_cast<T*>(data_);
    }

private:
    void swap(Memory& other) noexcept {
        std::swap(device_, other.device_);
        std::swap(data_, other.data_);
        std::swap(bytes_, other.bytes_);
    }

    Device* device_ = nullptr;
    std::byte* data_ = nullptr;
    int64_t bytes_ = 0;
};
using DeviceMemory = Memory<false>;
using PinnedMemory = Memory<true>;

/// Memory of the host that stays pinned in its place for the life of this object.
class Pin {
public:
    Pin(Device& device, std::byte* memory, int64_t bytes) : device_(device), memory_(memory) {
        device.pin(memory, bytes);
    }
    ~Pin() { device_.unpin(memory_); }
    Pin(const Pin&) = delete;
    Pin& operator=(const Pin&) = delete;

private:
    Device& device_;
    std::byte* memory_;
};

/// Opens a card of find_devices(): its contexts, modules, and the way its streams wait for flags, the first of `ways`
/// that works when it is tried.
std::unique_ptr<Device> open_device(int index, std::span<const FlagWait> ways = kFlagWaits);

}  // namespace thermocline::cuda
