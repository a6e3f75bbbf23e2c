#include "cuda/emulation/block.h"

#include "cuda/emulation/thread.h"
#include "src/base/check.h"

#include <boost/context/fiber.hpp>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <utility>

// ThreadSanitizer follows a thread by its stack, so it wants to be told of fibers. Null in builds without it.
extern "C" {
// NOLINTBEGIN(bugprone-reserved-identifier)
[[gnu::weak]] void* __tsan_get_current_fiber();
[[gnu::weak]] void* __tsan_create_fiber(unsigned flags);
[[gnu::weak]] void __tsan_destroy_fiber(void* fiber);
[[gnu::weak]] void __tsan_switch_to_fiber(void* fiber, unsigned flags);
// NOLINTEND(bugprone-reserved-identifier)
}

namespace thermocline::cuda::emulation {

namespace {

constexpr size_t kStackBytes = 256 << 10;  // sanitizers want room; untouched pages cost nothing

using boost::context::fiber;

/// Stacks that are used again and again.
class StackPool {
public:
    boost::context::stack_context allocate() {
        if (free_.empty()) {
            owned_.push_back(std::unique_ptr<std::byte[]>(new std::byte[kStackBytes]));
            free_.push_back(owned_.back().get());
        }
        boost::context::stack_context stack;
        stack.size = kStackBytes;
        stack.sp = free_.back() + kStackBytes;
        free_.pop_back();
        return stack;
    }
    void deallocate(boost::context::stack_context& stack) noexcept {
        free_.push_back(static_cast<std::byte*>(stack.sp) - kStackBytes);
    }

private:
    std::vector<std::unique_ptr<std::byte[]>> owned_;
    std::vector<std::byte*> free_;
};

/// A stack allocator as Boost wants it: copied, so it only points to the pool.
struct PooledStack {
    StackPool* pool;
    boost::context::stack_context allocate() { return pool->allocate(); }
    void deallocate(boost::context::stack_context& stack) noexcept { pool->deallocate(stack); }
};

/// The fibers of a block as ThreadSanitizer sees them. A function that switches is inlined always: it would be entered
/// on the stack of calls of one fiber and left on that of the other, which would then begin below its bottom.
class Watched {
public:
    Watched() : runner_(__tsan_create_fiber ? __tsan_get_current_fiber() : nullptr) {}
    void add() {
        if (runner_) fibers_.push_back(__tsan_create_fiber(0));
    }
    ~Watched() {
        for (void* one : fibers_) __tsan_destroy_fiber(one);
    }
    Watched(const Watched&) = delete;
    Watched& operator=(const Watched&) = delete;

    [[gnu::always_inline]] void enter(size_t i) const {
        if (runner_) __tsan_switch_to_fiber(fibers_[i], 0);
    }
    [[gnu::always_inline]] void enter_runner() const {
        if (runner_) __tsan_switch_to_fiber(runner_, 0);
    }

private:
    void* runner_;
    std::vector<void*> fibers_;
};

}  // namespace

class BlockRunner::Fibers {
public:
    /// A fiber plays one thread after the other until one has to wait; the next fiber goes on with those behind it.
    void run(const char* name, Body body, const void* members, const Grid& grid, int64_t x, int64_t y) {
        block_.begin(name, grid, x, y);
        int next = 0;              // thread to begin
        std::vector<int> playing;  // the thread that each fiber plays
        std::vector<fiber> fibers;
        Watched watched;
        fiber runner;  // where the running fiber goes back to
        block_.switch_away = [&] {
            watched.enter_runner();
            runner = std::move(runner).resume();
        };
        const auto resume = [&](size_t i) {
            watched.enter(i);
            fibers[i] = std::move(fibers[i]).resume();
            ++block_.progress;
            if (!fibers[i]) watched.enter_runner();  // only now: what a fiber leaves is counted as its own
        };
        while (next < grid.threads) {
            playing.push_back(next);
            watched.add();
            watched.enter(fibers.size());  // its first function is entered as it is made, and never left
            fibers.emplace_back(std::allocator_arg, PooledStack{&stacks_}, [&, i = fibers.size()](fiber&& from) {
                runner = std::move(from);
                while (next < grid.threads) {
                    playing[i] = next++;
                    Thread thread(block_, playing[i]);
                    body(members, thread);
                    block_.finish(playing[i]);
                }
                return std::move(runner);
            });
            watched.enter_runner();
            resume(fibers.size() - 1);
        }
        while (block_.left() > 0) {
            const uint64_t before = block_.progress;
            for (size_t i = 0; i < fibers.size(); ++i)
                if (fibers[i] && !block_.waiting(playing[i])) resume(i);
            if (block_.progress == before)
                block_.refuse("threads wait for others that never come; still running:", block_.left());
        }
    }

private:
    StackPool stacks_;
    Block block_;
};

BlockRunner::BlockRunner() : fibers_(std::make_unique<Fibers>()) {}
BlockRunner::~BlockRunner() = default;

void BlockRunner::run(const char* name, Body body, const void* members, const Grid& grid, int64_t x, int64_t y) {
    fibers_->run(name, body, members, grid, x, y);
}

void Block::begin(const char* name, const Grid& grid_, int64_t x_, int64_t y_) {
    name_ = name;
    grid = grid_;
    x = x_;
    y = y_;
    if (grid.threads < kWarp || grid.threads % kWarp != 0 || grid.threads > 1024)
        refuse("threads of a block:", grid.threads);
    if (grid.shared_bytes > kMaxSharedBytes) refuse("bytes of shared memory:", grid.shared_bytes);
    threads_.assign(static_cast<size_t>(grid.threads), {});
    warps_.assign(static_cast<size_t>(grid.threads / kWarp), {});
    arrived_ = 0;
    left_ = grid.threads;
    gone_ = 0;
    barriers_ = 0;
    shared_.assign(static_cast<size_t>(grid.shared_bytes), std::byte{0xff});
    uses_.resize(static_cast<size_t>((grid.shared_bytes + 3) / 4));
    ++run_;
}

void Block::refuse(const char* what, int64_t detail) const {
    std::fprintf(stderr, "emulated kernel %s, block (%lld, %lld): %s %lld\n", name_, static_cast<long long>(x),
                 static_cast<long long>(y), what, static_cast<long long>(detail));
    std::abort();
}

void Block::yield() {
    ++progress;
    switch_away();
}

void Block::barrier(int thread) {
    ThreadState& own = threads_[static_cast<size_t>(thread)];
    if (++arrived_ < left_) {
        own.waiting = true;
        const uint32_t round = barriers_;
        while (barriers_ == round) switch_away();
        return;
    }
    end_barrier();
}

void Block::end_barrier() {
    if (left_ + gone_ != grid.threads) refuse("a barrier after threads have ended; left:", left_);
    arrived_ = 0;
    ++barriers_;
    ++progress;
    for (ThreadState& one : threads_) one.waiting = false;
}

const Block::Given* Block::exchange(int thread, Collective kind, const void* bytes, size_t count) {
    Warp& warp = warps_[static_cast<size_t>(thread / kWarp)];
    ThreadState& own = threads_[static_cast<size_t>(thread)];
    const uint32_t round = warp.round;
    if (warp.arrived == 0) warp.kind = kind;
    if (warp.kind != kind) refuse("lanes of a warp meet in different collectives; thread", thread);
    Given* given = warp.given[round % 2];
    std::memcpy(given[thread % kWarp].bytes, bytes, count);
    if (kind == Collective::kBarrier) ++own.warp_barriers;  // the others order no memory
    if (++warp.arrived < kWarp) {
        own.waiting = true;
        while (warp.round == round) switch_away();
        return given;
    }
    warp.arrived = 0;
    ++warp.round;
    ++progress;
    const auto first = static_cast<size_t>(thread) / kWarp * kWarp;
    for (size_t lane = 0; lane < kWarp; ++lane) threads_[first + lane].waiting = false;
    return given;
}

void Block::finish(int thread) {
    if (!threads_[static_cast<size_t>(thread)].gone) --left_;
    ++progress;
}

void Block::leave(int thread) {
    threads_[static_cast<size_t>(thread)].gone = true;
    --left_;
    ++gone_;
    if (arrived_ > 0 && arrived_ == left_) end_barrier();
}

/// Whether what `other` did then comes before what `thread` does now.
bool Block::ordered(int thread, int other, uint32_t barriers, uint32_t warp_barriers) const {
    if (thread == other || barriers != barriers_) return true;
    return thread / kWarp == other / kWarp && warp_barriers < threads_[static_cast<size_t>(thread)].warp_barriers;
}

void Block::touch(int thread, int64_t word, bool write) {
    if (word < 0 || word >= static_cast<int64_t>(uses_.size())) refuse("shared memory out of bounds, word", word);
    Use& use = uses_[static_cast<size_t>(word)];
    if (use.run != run_) use = {.run = run_};
    const uint32_t warp_barriers = threads_[static_cast<size_t>(thread)].warp_barriers;
    if (use.writer >= 0 && !ordered(thread, use.writer, use.write_barriers, use.write_warp_barriers))
        refuse("shared memory used by two threads without a barrier after the write, word", word);
    if (write) {
        const bool round = use.reader >= 0 && use.read_barriers == barriers_;
        const bool warp_round =
            round && use.reader / kWarp == thread / kWarp && use.read_warp_barriers == warp_barriers;
        if (use.reader >= 0 && (!ordered(thread, use.reader, use.read_barriers, use.read_warp_barriers) ||
                                (round && use.other_warps) || (warp_round && use.other_lanes)))
            refuse("shared memory written while another thread reads it, word", word);
        use.writer = thread;
        use.write_barriers = barriers_;
        use.write_warp_barriers = warp_barriers;
        use.reader = -1;
        use.other_lanes = use.other_warps = false;
        return;
    }
    // Of several readers since the last barrier only the last is known, and whether there were others.
    const bool same_round = use.reader >= 0 && use.read_barriers == barriers_;
    const bool same_warp = same_round && use.reader / kWarp == thread / kWarp;
    use.other_warps = same_round && (use.other_warps || !same_warp);
    use.other_lanes = same_warp && use.read_warp_barriers == warp_barriers && (use.other_lanes || use.reader != thread);
    use.reader = thread;
    use.read_barriers = barriers_;
    use.read_warp_barriers = warp_barriers;
}

}  // namespace thermocline::cuda::emulation
