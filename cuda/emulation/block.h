// Runs one block of a kernel on the CPU: its threads are fibers of the calling thread, one goes on until it has to wait
// for others. What hardware would leave undefined ends the program with a message: threads of a warp that call
// different collectives, barriers that some threads never reach, shared memory used out of bounds or by two threads
// without a barrier between them.
#pragma once

#include "cuda/launch.h"

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace thermocline::cuda::emulation {

class Thread;

/// What one thread does.
using Body = void (*)(const void* members, Thread& thread);

/// Runs blocks, one after the other, on stacks of its own. Used by one thread at a time.
class BlockRunner {
public:
    BlockRunner();
    ~BlockRunner();

    /// Block (x, y) of `grid`. `name` of the kernel, for messages.
    void run(const char* name, Body body, const void* members, const Grid& grid, int64_t x, int64_t y);

private:
    class Fibers;
    std::unique_ptr<Fibers> fibers_;
};

/// Collectives of a warp, so that lanes which meet in different ones are found out.
enum class Collective : uint8_t { kShuffle, kBallot, kMma, kBarrier };

/// What the threads of a running block share. A thread's calls go through here.
class Block {
public:
    /// From here on it is block (x, y) of `grid`.
    void begin(const char* name, const Grid& grid, int64_t x, int64_t y);

    Grid grid;
    int64_t x = 0, y = 0;

    [[noreturn]] void refuse(const char* what, int64_t detail) const;

    /// Waits for all threads of the block.
    void barrier(int thread);
    /// Gives `bytes` to the other lanes of the warp and waits for theirs: what lane i gave, valid until the thread's
    /// next collective.
    struct Given {
        alignas(16) std::byte bytes[32];
    };
    const Given* exchange(int thread, Collective kind, const void* bytes, size_t count);

    /// Checked use of 4-byte word number `word` of shared memory.
    void touch(int thread, int64_t word, bool write);
    std::byte* shared() { return shared_.data(); }

    /// Lets other fibers run.
    void yield();

    bool waiting(int thread) const { return threads_[static_cast<size_t>(thread)].waiting; }
    void finish(int thread);
    /// Barriers wait no longer for this thread, which is about to end.
    void leave(int thread);
    /// Threads that have neither finished nor left.
    int left() const { return left_; }

    std::function<void()> switch_away;  // back to the runner; set by it
    uint64_t progress = 0;              // counts whatever wakes a thread

private:
    struct ThreadState {
        bool waiting = false, gone = false;
        uint32_t warp_barriers = 0;  // passed
    };
    struct Warp {
        int arrived = 0;
        uint32_t round = 0;
        Collective kind{};
        Given given[2][kWarp];  // of even and odd rounds: who is ahead by one does not write over what is still read
    };
    struct Use {           // the last ones of a word of shared memory
        uint64_t run = 0;  // of another block: none yet
        int32_t writer = -1, reader = -1;
        uint32_t write_barriers = 0, write_warp_barriers = 0, read_barriers = 0, read_warp_barriers = 0;
        bool other_lanes = false, other_warps = false;  // read it in the same round as the last reader
    };
    void end_barrier();
    bool ordered(int thread, int other, uint32_t barriers, uint32_t warp_barriers) const;

    const char* name_ = nullptr;
    std::vector<ThreadState> threads_;
    std::vector<Warp> warps_;
    int arrived_ = 0, left_ = 0, gone_ = 0;
    uint32_t barriers_ = 0;
    std::vector<std::byte> shared_;
    std::vector<Use> uses_;
    uint64_t run_ = 0;
};

}  // namespace thermocline::cuda::emulation
