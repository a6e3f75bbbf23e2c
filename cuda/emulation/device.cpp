#include "cuda/emulation/device.h"

#include "cuda/emulation/block.h"
#include "cuda/emulation/thread.h"
#include "cuda/hung.h"
#include "cuda/kernels/list.h"
#include "cuda/remedies.h"
#include "src/base/check.h"
#include "src/base/error.h"
#include "src/quant/scalar.h"

#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <mutex>
#include <new>
#include <thread>
#include <utility>
#include <vector>

namespace thermocline::cuda::emulation {

namespace {

struct KernelRow {
    const char* name;
    Body body;
    int most_threads;
};

/// The list of kernels, each with the function that runs one of its threads.
constexpr auto kRows = Kernels::map([]<typename Kernel>(KernelType<Kernel>) {
    const Body body = [](const void* members, Thread& thread) { (*static_cast<const Kernel*>(members))(thread); };
    return KernelRow{Kernel::kName, body, most_threads<Kernel>()};
});

constexpr int kRaises = Kernels::index_of<RaiseJob>();

/// What device and streams share.
struct State {
    Config config;
    Pace pace;
    std::atomic<int64_t> asked{0}, launches{0}, flags{0}, copies{0}, graphs{0}, allocations{0}, products{0};
    std::atomic<bool> lost{false}, hangs{false};

    bool happens(std::atomic<int64_t>& counter, int64_t at) { return ++counter == at; }
    void check() const {
        if (lost) fail("GPU ", config.index, " (emulated): ", kLostRemedy);
    }
};

using Work = std::function<void()>;
using Clock = std::chrono::steady_clock;

struct RecordedGraph : Graph {
    std::vector<Work> work;
};

class EmulatedStream : public Stream {
public:
    explicit EmulatedStream(State& state) : state_(state), thread_([this] { work_off(); }) {}
    ~EmulatedStream() override {
        {
            std::unique_lock lock(mutex_);
            ending_ = true;
            changed_.notify_all();
            if (!changed_.wait_for(lock, state_.config.end_patience, [&] { return queue_.empty() && !busy_; }))
                end_hung(state_.config.index, state_.config.end_patience);
        }
        thread_.join();
    }

    void launch(int kernel, const Grid& grid, const void* members, size_t bytes) override {
        if (grid.x == 0 || grid.y == 0) return;
        CHECK(kernel >= 0 && kernel < Kernels::kCount && grid.x > 0 && grid.y > 0);
        CHECK(grid.threads <= kRows[static_cast<size_t>(kernel)].most_threads);
        if (state_.happens(state_.asked, state_.config.faults.exhaust_host)) throw std::bad_alloc();
        std::vector<std::byte> own(static_cast<const std::byte*>(members),
                                   static_cast<const std::byte*>(members) + bytes);
        add([this, kernel, grid, own = std::move(own)] {
            if (state_.happens(state_.launches, state_.config.faults.lose_device)) state_.lost = true;
            if (state_.launches == state_.config.faults.hang) state_.hangs = true;
            while (state_.hangs) std::this_thread::sleep_for(std::chrono::milliseconds(10));
            if (kernel == kRaises && state_.happens(state_.flags, state_.config.faults.lose_flag)) return;
            if (state_.pace.kernel)
                if (const auto seconds = state_.pace.kernel(kernel, grid, own.data())) return spend(*seconds);
            const KernelRow& row = kRows[static_cast<size_t>(kernel)];
            for (int64_t y = 0; y < grid.y; ++y)
                for (int64_t x = 0; x < grid.x && !state_.lost; ++x)
                    runner_.run(row.name, row.body, own.data(), grid, x, y);
            until_ = Clock::now();
        });
    }
    void multiply(const DenseProduct& product) override {
        CHECK(state_.config.library && recording_ == nullptr);
        add([this, p = product] {
            const float error = state_.happens(state_.products, state_.config.faults.spoil_product) ? 1.0f : 0.0f;
            for (int64_t v = 0; v < p.vectors; ++v)
                for (int64_t n = 0; n < p.rows; ++n) {
                    float sum = error;
                    for (int64_t k = 0; k < p.cols; ++k)
                        sum +=
                            quant::bf16_to_float(p.w[n * p.cols + k]) * quant::bf16_to_float(p.x[v * p.x_stride + k]);
                    float& out = p.out[v * p.out_stride + n];
                    out = (p.adds ? out : 0.0f) + p.factor * sum;
                }
        });
    }
    void copy(void* to, const void* from, int64_t bytes) override {
        add([this, to, from, bytes] {
            const Link& link = state_.config.link;
            double seconds = link.latency_us * 1e-6;
            if (link.gb_per_s > 0) seconds += static_cast<double>(bytes) * 1e-9 / link.gb_per_s;
            if (state_.pace.copy) seconds = state_.pace.copy(from, bytes);
            if (state_.happens(state_.copies, state_.config.faults.delay_copy))
                seconds += static_cast<double>(state_.config.faults.delay_ms) * 1e-3;
            spend(seconds);
            std::memcpy(to, from, static_cast<size_t>(bytes));
        });
    }
    void wait_for(const Flag* flag) override {
        add([this, flag] {
            const std::atomic_ref<uint64_t> seen(const_cast<Flag*>(flag)->value);
            if (seen.load(std::memory_order_acquire) != 0) return;
            while (seen.load(std::memory_order_acquire) == 0 && !state_.lost) std::this_thread::yield();
            until_ = Clock::now();
        });
    }
    void begin_recording() override {
        CHECK(recording_ == nullptr);
        recording_ = std::make_unique<RecordedGraph>();
    }
    std::unique_ptr<Graph> end_recording() override {
        CHECK(recording_ != nullptr);
        auto graph = std::exchange(recording_, nullptr);
        if (state_.happens(state_.graphs, state_.config.faults.refuse_graph))
            fail("GPU ", state_.config.index, " (emulated): making a graph: out of memory");
        return graph;
    }
    void play(const Graph& graph) override {
        state_.check();
        {
            const std::lock_guard lock(mutex_);
            const auto& work = static_cast<const RecordedGraph&>(graph).work;
            queue_.insert(queue_.end(), work.begin(), work.end());
        }
        changed_.notify_all();
    }

    bool finished() override {
        state_.check();
        const std::lock_guard lock(mutex_);
        return queue_.empty() && !busy_;
    }
    void wait(std::chrono::milliseconds limit) override {
        {
            std::unique_lock lock(mutex_);
            if (!changed_.wait_for(lock, limit, [&] { return (queue_.empty() && !busy_) || state_.lost; }))
                fail("GPU ", state_.config.index, " (emulated): no answer within ", limit.count(), " ms");
        }
        state_.check();
    }

private:
    void add(Work work) {
        state_.check();
        if (recording_) {
            recording_->work.push_back(std::move(work));
            return;
        }
        {
            std::unique_lock lock(mutex_);
            changed_.wait(lock, [&] { return std::ssize(queue_) < state_.config.most_pending || state_.lost; });
            queue_.push_back(std::move(work));
        }
        changed_.notify_all();
    }

    /// Works that follow one another take as long together as each alone, however late the thread wakes up.
    void spend(double seconds) {
        if (seconds <= 0) return;
        until_ += std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
        std::this_thread::sleep_until(until_);
    }

    void work_off() {
        std::unique_lock lock(mutex_);
        while (true) {
            if (queue_.empty()) until_ = Clock::time_point::min();
            changed_.wait(lock, [&] { return !queue_.empty() || ending_; });
            if (queue_.empty()) return;
            if (until_ == Clock::time_point::min()) until_ = Clock::now();
            const Work work = std::move(queue_.front());
            queue_.pop_front();
            busy_ = true;
            lock.unlock();
            if (!state_.lost) work();
            lock.lock();
            busy_ = false;
            changed_.notify_all();
        }
    }

    State& state_;
    BlockRunner runner_;
    std::unique_ptr<RecordedGraph> recording_;
    std::mutex mutex_;
    std::condition_variable changed_;
    std::deque<Work> queue_;
    bool busy_ = false, ending_ = false;
    Clock::time_point until_ = Clock::time_point::min();  // to when it has spent its time; the thread's
    std::thread thread_;                                  // last: it uses all of the above
};

class EmulatedDevice : public Device {
public:
    EmulatedDevice(const Config& config, Pace pace) {
        state_.config = config;
        state_.pace = std::move(pace);
        info_ = {config.index,
                 "emulated",
                 config.compute_major,
                 0,
                 config.memory_bytes,
                 4,
                 "emulated:" + std::to_string(config.index)};
        library_ = config.library ? Library{"naive product", ""} : Library{"", "an emulated card has none"};
    }

    const DeviceInfo& info() const override { return info_; }
    FlagWait flag_wait() const override { return state_.config.flag_wait; }
    const Library& library() override { return library_; }
    int64_t free_bytes() override {
        const std::lock_guard lock(mutex_);
        return state_.config.memory_bytes - used_;
    }
    std::byte* allocate(int64_t bytes) override {
        state_.check();
        if (state_.happens(state_.allocations, state_.config.faults.refuse_memory) || bytes > free_bytes())
            fail("GPU ", info_.index, " (emulated): no room for ", bytes, " bytes, ", free_bytes(), " are free");
        std::byte* memory = take(bytes);
        std::memset(memory, 0xff, static_cast<size_t>(bytes));
        const std::lock_guard lock(mutex_);
        sizes_[memory] = bytes;
        used_ += bytes;
        return memory;
    }
    void release(std::byte* memory) noexcept override {
        const std::lock_guard lock(mutex_);
        const auto found = sizes_.find(memory);
        CHECK(found != sizes_.end());
        used_ -= found->second;
        sizes_.erase(found);
        std::free(memory);
    }
    std::byte* allocate_pinned(int64_t bytes) override {
        if (state_.happens(state_.allocations, state_.config.faults.refuse_memory))
            fail("GPU ", info_.index, " (emulated): pinning ", bytes, " bytes of host memory was refused; ",
                 kPinRemedy);
        std::byte* memory = take(bytes);
        std::memset(memory, 0, static_cast<size_t>(bytes));
        return memory;
    }
    void release_pinned(std::byte* memory) noexcept override { std::free(memory); }
    void pin(std::byte*, int64_t bytes) override {
        state_.check();
        if (state_.happens(state_.allocations, state_.config.faults.refuse_memory))
            fail("GPU ", info_.index, " (emulated): pinning ", bytes, " bytes of host memory was refused; ",
                 kPinRemedy);
    }
    void unpin(std::byte*) noexcept override {}
    std::unique_ptr<Stream> new_stream() override { return std::make_unique<EmulatedStream>(state_); }

private:
    static std::byte* take(int64_t bytes) {
        const auto size = static_cast<size_t>(aligned(bytes));
        void* memory = std::aligned_alloc(kAlignment, size == 0 ? kAlignment : size);
        if (memory == nullptr) throw std::bad_alloc();
        return static_cast<std::byte*>(memory);
    }

    DeviceInfo info_;
    Library library_;
    State state_;
    std::mutex mutex_;
    std::map<std::byte*, int64_t> sizes_;
    int64_t used_ = 0;
};

}  // namespace

std::unique_ptr<Device> open(const Config& config, Pace pace) {
    return std::make_unique<EmulatedDevice>(config, std::move(pace));
}

}  // namespace thermocline::cuda::emulation
