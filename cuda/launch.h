// A kernel is a plain struct: its members are what it is given, its call operator is what one thread does. The operator
// is a template over the thread, so that the same text runs on a card (device/thread.cuh) and on the CPU
// (emulation/thread.h). GPU_CODE marks what runs there; the build defines it (cuda/CMakeLists.txt).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace thermocline::cuda {

inline constexpr int kWarp = 32;  // lanes

/// Blocks of a launch and what each has.
struct Grid {
    int64_t x = 1, y = 1;      // blocks
    int threads = 256;         // of a block, a multiple of kWarp
    int64_t shared_bytes = 0;  // of a block, at most kMaxSharedBytes
};

/// What every target has for one block (SM120 is the smallest: 99 KB).
inline constexpr int64_t kMaxSharedBytes = 96 << 10;

template <typename Kernel>
struct KernelType {};

/// The largest block that a kernel is launched with; registers are given out for that.
template <typename Kernel>
constexpr int most_threads() {
    if constexpr (requires { Kernel::kMostThreads; }) return Kernel::kMostThreads;
    return 512;
}

/// How many blocks of a kernel a multiprocessor shall at least hold at once, where the compiler would rather spill
/// registers to hold more; 0: left to it.
template <typename Kernel>
constexpr int least_blocks() {
    if constexpr (requires { Kernel::kLeastBlocks; }) return Kernel::kLeastBlocks;
    return 0;
}

/// A closed list of kernels; a kernel is known by its place in it.
template <typename... Kernels>
struct KernelList {
    static constexpr int kCount = sizeof...(Kernels);

    template <typename Kernel>
    static constexpr int index_of() {
        static_assert((std::is_same_v<Kernel, Kernels> || ...), "the kernel stands in no list");
        static_assert(std::is_trivially_copyable_v<Kernel>, "a kernel is copied to the card byte by byte");
        int index = 0;
        (void)((std::is_same_v<Kernel, Kernels> || (++index, false)) || ...);
        return index;
    }
    /// make(KernelType<Kernel>()) of each.
    template <typename Make>
    static constexpr auto map(Make make) {
        return std::array{make(KernelType<Kernels>())...};
    }
};

template <typename... Lists>
struct JoinedLists;
template <typename... Kernels>
struct JoinedLists<KernelList<Kernels...>> {
    using List = KernelList<Kernels...>;
};
template <typename... First, typename... Second, typename... Others>
struct JoinedLists<KernelList<First...>, KernelList<Second...>, Others...> {
    using List = typename JoinedLists<KernelList<First..., Second...>, Others...>::List;
};
/// One list of several.
template <typename... Lists>
using Joined = typename JoinedLists<Lists...>::List;

}  // namespace thermocline::cuda
