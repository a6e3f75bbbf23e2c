#include "cpu/workers.h"

#include "src/base/check.h"
#include "src/base/error.h"
#include "src/base/thread.h"

#include <atomic>
#include <chrono>
#include <sched.h>
#include <string>
#include <system_error>
#include <thread>
#include <vector>

namespace thermocline::cpu {
namespace {

// A core is kept for longer than what one thread does between two passes takes. After that, for as long as it may take
// between two tokens, the core is offered to others every microsecond: waking a parked worker takes tens of
// microseconds, but whom it was offered to may keep it for milliseconds.
using Clock = std::chrono::steady_clock;
constexpr std::chrono::microseconds kKept(200);
constexpr std::chrono::milliseconds kPatience(2);

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

/// Waits until `value` is not `old`: spins, then yields, then parks in the kernel (atomic wait is a futex).
uint32_t wait_for_change(const std::atomic<uint32_t>& value, uint32_t old) {
    constexpr int kLooks = 32;  // half a microsecond to one and a half
    uint32_t now = value.load(std::memory_order_acquire);
    const auto start = Clock::now();
    for (Clock::duration waited(0); now == old && waited < kPatience; waited = Clock::now() - start) {
        if (waited >= kKept) sched_yield();
        for (int i = 0; i < kLooks && now == old; ++i) {
            pause();
            now = value.load(std::memory_order_acquire);
        }
    }
    if (now != old) return now;
    value.wait(old, std::memory_order_acquire);
    return value.load(std::memory_order_acquire);
}

}  // namespace

struct Workers::Shared {
    // Each on its own cache line: `round` is read by spinning workers, `running` written by finishing ones.
    alignas(64) std::atomic<uint32_t> round = 0;    // counts the jobs
    alignas(64) std::atomic<uint32_t> running = 0;  // workers that have not finished the current job
    alignas(64) Function function = nullptr;        // null: stop; published by `round`
    void* context = nullptr;
    uint64_t job = 0;
    std::vector<std::thread> threads;
    std::atomic<uint64_t> begun_alone = 0, done_alone = 0;  // jobs of worker 0 alone

    /// Of a worker: pieces taken of its part, and in which job, so nobody has to reset it; the last job it was done
    /// with, as `round` counts.
    struct alignas(64) Own {
        std::atomic<uint64_t> job_and_pieces = 0;
        std::atomic<uint32_t> done = 0;
    };
    std::vector<Own> own;

    void work(int worker, int cpu) {
        pin_this_thread(cpu);
        name_this_thread("worker " + std::to_string(worker));
        uint32_t seen = 0;
        for (;;) {
            // A worker reports before the next job starts, so the counter never runs ahead by more than one.
            seen = wait_for_change(round, seen);
            if (!function) return;
            function(context, worker);
            own[static_cast<size_t>(worker)].done.store(seen, std::memory_order_relaxed);
            if (running.fetch_sub(1, std::memory_order_acq_rel) == 1) running.notify_one();
        }
    }

    void start(Function next, void* next_context) {
        function = next;
        context = next_context;
        ++job;
        running.store(static_cast<uint32_t>(threads.size()), std::memory_order_relaxed);
        round.fetch_add(1, std::memory_order_release);
        round.notify_all();
    }

    void stop() {
        start(nullptr, nullptr);
        for (std::thread& thread : threads) thread.join();
    }
};

Workers::Workers(std::span<const int> cpus, std::span<const int> nodes)
    : cpus_(cpus.begin(), cpus.end()), count_(cpus.empty() ? 1 : static_cast<int>(cpus.size())) {
    CHECK(nodes.empty() || nodes.size() == cpus.size());
    for (int i = 0; i < count_; ++i) {
        const int node = nodes.empty() ? 0 : nodes[static_cast<size_t>(i)];
        if (node == node_count()) nodes_.push_back({i, 0});
        CHECK(node == node_count() - 1);
        ++nodes_.back().count;
    }
    shared_ = std::make_unique<Shared>();
    shared_->own = std::vector<Shared::Own>(static_cast<size_t>(count_));
    if (count_ == 1) return;
    shared_->threads.reserve(static_cast<size_t>(count_ - 1));
    try {
        for (int i = 1; i < count_; ++i) {
            shared_->threads.emplace_back(&Shared::work, shared_.get(), i, cpus[static_cast<size_t>(i)]);
        }
    } catch (const std::system_error& error) {
        const size_t made = shared_->threads.size();
        shared_->stop();
        fail("cannot start worker thread ", made + 1, " of ", count_ - 1, ": ", error.what());
    }
}

Workers::~Workers() { shared_->stop(); }

void Workers::run(Function function, void* context) {
    CHECK(function != nullptr);
    if (count_ == 1) {
        const auto job = [&](int worker) { function(context, worker); };
        return alone(job);
    }
    shared_->start(function, context);
    function(context, 0);
    shared_->own[0].done.store(shared_->round.load(std::memory_order_relaxed), std::memory_order_relaxed);
    for (uint32_t left = shared_->running.load(std::memory_order_acquire); left != 0;) {
        left = wait_for_change(shared_->running, left);
    }
}

void Workers::begin_alone() noexcept {
    ++shared_->job;
    shared_->begun_alone.store(shared_->begun_alone.load(std::memory_order_relaxed) + 1, std::memory_order_relaxed);
}

void Workers::end_alone() noexcept {
    shared_->done_alone.store(shared_->begun_alone.load(std::memory_order_relaxed), std::memory_order_relaxed);
}

Workers::Standing Workers::standing() const {
    Standing standing;
    const uint64_t done_alone = shared_->done_alone.load(std::memory_order_relaxed),
                   begun_alone = shared_->begun_alone.load(std::memory_order_relaxed);
    const uint32_t round = shared_->round.load(std::memory_order_relaxed);
    standing.progress = round + begun_alone + done_alone;
    if (begun_alone != done_alone) standing.late.push_back(0);
    for (int i = 0; i < count_; ++i) {
        const Shared::Own& own = shared_->own[static_cast<size_t>(i)];
        const uint32_t done = own.done.load(std::memory_order_relaxed);
        standing.progress += own.job_and_pieces.load(std::memory_order_relaxed) + done;
        if (done != round) standing.late.push_back(i);
    }
    return standing;
}

std::string Workers::name_of(int worker) const {
    const std::string name = "worker " + std::to_string(worker);
    return cpus_.empty() ? name : name + " on CPU " + std::to_string(cpus_[static_cast<size_t>(worker)]);
}

int64_t Workers::claim(int owner, int64_t pieces) noexcept {
    constexpr int kPieceBits = 8;
    static_assert(kPieces < 1 << kPieceBits);
    std::atomic<uint64_t>& taken = shared_->own[static_cast<size_t>(owner)].job_and_pieces;
    uint64_t seen = taken.load(std::memory_order_relaxed);
    for (;;) {
        const uint64_t next = seen >> kPieceBits == shared_->job ? seen + 1 : shared_->job << kPieceBits | 1;
        const auto piece = static_cast<int64_t>(next & ((1 << kPieceBits) - 1)) - 1;
        if (piece >= pieces) return pieces;
        // Relaxed: what the items read and write is ordered by the start and the end of the job.
        if (taken.compare_exchange_weak(seen, next, std::memory_order_relaxed)) return piece;
    }
}

}  // namespace thermocline::cpu
