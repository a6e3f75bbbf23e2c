// Several independent kernels in one launch: the blocks of one come after those of the other. What a launch costs is
// paid once, and small grids share the card. Which kernels may meet is a closed list: all of a list are compiled into
// one, which takes the registers of the hungriest.
#pragma once

#include "cuda/launch.h"

#include <cstddef>
#include <cstdint>

namespace thermocline::cuda {

inline constexpr int kMostTogether = 8;  // kernels in a launch

/// A thread of a kernel that has a part of a launch: it sees the grid of its own kernel.
template <typename Thread>
class PartThread : public Thread {
public:
    GPU_CODE PartThread(const Thread& whole, int threads, int64_t x, int64_t y, int64_t blocks)
        : Thread(whole), threads_(threads), x_(x), y_(y), blocks_(blocks) {}

    GPU_CODE int threads() const { return threads_; }
    GPU_CODE int warps() const { return threads_ / kWarp; }
    GPU_CODE int64_t block() const { return x_; }
    GPU_CODE int64_t block_y() const { return y_; }
    GPU_CODE int64_t blocks() const { return blocks_; }

private:
    int threads_;
    int64_t x_, y_, blocks_;
};

/// Plays kernel number `kernel` of the list.
template <typename Thread, typename... Kernels>
GPU_CODE void play_one(Thread& t, int kernel, const std::byte* members, KernelList<Kernels...>) {
    int index = 0;
    (void)((index++ == kernel && ((*reinterpret_cast<const Kernels*>(members))(t), true)) || ...);
}

/// Grid: as many blocks as all parts have, of as many threads and as much shared memory as the largest.
template <typename List>
struct Together;
template <typename... Kernels>
struct Together<KernelList<Kernels...>> {
    static constexpr const char* kName = "Together";
    using List = KernelList<Kernels...>;
    static constexpr int kMostThreads = [] {
        int most = 0;
        ((most = most_threads<Kernels>() > most ? most_threads<Kernels>() : most), ...);
        return most;
    }();
    static constexpr size_t kBytes = [] {
        size_t most = 0;
        ((most = sizeof(Kernels) > most ? sizeof(Kernels) : most), ...);
        return most;
    }();

    struct Part {
        alignas(16) std::byte members[kBytes];
        int64_t end, blocks;  // the launch's first block that is not its own; its grid's x
        int32_t kernel, threads;
    };
    Part parts[kMostTogether];

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        int64_t block = t.block(), begin = 0;
        int i = 0;
        while (block >= parts[i].end) begin = parts[i++].end;
        const Part& part = parts[i];
        if (t.id() >= part.threads) return t.leave();
        block -= begin;
        PartThread<Thread> own(t, part.threads, block % part.blocks, block / part.blocks, part.blocks);
        play_one(own, part.kernel, part.members, List());
    }
};

}  // namespace thermocline::cuda
