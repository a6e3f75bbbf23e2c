#include "cuda/watched.h"

#include "cuda/hung.h"
#include "src/base/error.h"
#include "src/base/stall_watch.h"

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>
#include <utility>

namespace thermocline::cuda {

namespace {

using Clock = std::chrono::steady_clock;

/// Of all streams of a card.
struct Calls {
    std::atomic<uint64_t> changes{0};  // grows when one begins and when it ends
    std::atomic<int> under_way{0};
};

class Call {
public:
    explicit Call(Calls& calls) : calls_(calls) {
        ++calls_.under_way;
        ++calls_.changes;
    }
    ~Call() {
        ++calls_.changes;
        --calls_.under_way;
    }
    Call(const Call&) = delete;
    Call& operator=(const Call&) = delete;

private:
    Calls& calls_;
};

class WatchedStream : public Stream {
public:
    WatchedStream(std::unique_ptr<Stream> stream, int index, Calls& calls)
        : stream_(std::move(stream)), index_(index), calls_(calls) {}

    void launch(int kernel, const Grid& grid, const void* members, size_t bytes) override {
        const Call call(calls_);
        stream_->launch(kernel, grid, members, bytes);
    }
    void multiply(const DenseProduct& product) override {
        const Call call(calls_);
        stream_->multiply(product);
    }
    void copy(void* to, const void* from, int64_t bytes) override {
        const Call call(calls_);
        stream_->copy(to, from, bytes);
    }
    void wait_for(const Flag* flag) override {
        const Call call(calls_);
        stream_->wait_for(flag);
    }
    void begin_recording() override {
        const Call call(calls_);
        stream_->begin_recording();
    }
    std::unique_ptr<Graph> end_recording() override {
        const Call call(calls_);
        return stream_->end_recording();
    }
    void play(const Graph& graph) override {
        const Call call(calls_);
        stream_->play(graph);
    }
    bool finished() override {
        const Call call(calls_);
        return stream_->finished();
    }
    /// In slices: one that takes long is no call that hangs.
    void wait(std::chrono::milliseconds limit) override {
        constexpr std::chrono::milliseconds kSlice(500);
        const auto until = Clock::now() + limit;
        while (true) {
            const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now());
            {
                const Call call(calls_);
                if (ends_within(*stream_, std::clamp(left, std::chrono::milliseconds(0), kSlice))) return;
            }
            if (left <= kSlice) fail("GPU ", index_, ": no answer within ", limit.count(), " ms");
        }
    }

private:
    std::unique_ptr<Stream> stream_;
    int index_;
    Calls& calls_;
};

class WatchedDevice : public Device {
public:
    WatchedDevice(std::unique_ptr<Device> device, std::chrono::milliseconds patience,
                  std::function<void(const std::string&)> on_stuck)
        : device_(std::move(device)),
          watch_(
              patience,
              [this]() -> std::optional<uint64_t> {
                  if (calls_.under_way == 0) return std::nullopt;
                  return calls_.changes;
              },
              [this, on_stuck = std::move(on_stuck)](Clock::duration waited) {
                  on_stuck("GPU " + std::to_string(info().index) +
                           " hangs: a call of its driver has not returned for " +
                           std::to_string(std::chrono::duration_cast<std::chrono::seconds>(waited).count()) + " s. " +
                           kHungRemedy);
              }) {}

    const DeviceInfo& info() const override { return device_->info(); }
    FlagWait flag_wait() const override { return device_->flag_wait(); }
    const Library& library() override { return device_->library(); }
    int64_t free_bytes() override { return device_->free_bytes(); }
    std::byte* allocate(int64_t bytes) override { return device_->allocate(bytes); }
    void release(std::byte* memory) noexcept override { device_->release(memory); }
    std::byte* allocate_pinned(int64_t bytes) override { return device_->allocate_pinned(bytes); }
    void release_pinned(std::byte* memory) noexcept override { device_->release_pinned(memory); }
    void pin(std::byte* memory, int64_t bytes) override { device_->pin(memory, bytes); }
    void unpin(std::byte* memory) noexcept override { device_->unpin(memory); }
    std::unique_ptr<Stream> new_stream() override {
        return std::make_unique<WatchedStream>(device_->new_stream(), info().index, calls_);
    }

private:
    std::unique_ptr<Device> device_;
    Calls calls_;
    StallWatch watch_;  // last: it looks at the above
};

}  // namespace

std::unique_ptr<Device> watched(std::unique_ptr<Device> device, std::chrono::milliseconds patience,
                                std::function<void(const std::string&)> on_stuck) {
    return std::make_unique<WatchedDevice>(std::move(device), patience, std::move(on_stuck));
}

}  // namespace thermocline::cuda
