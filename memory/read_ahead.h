// Has the kernel read pieces of mapped files before somebody needs them. A thread of its own asks for them, because
// asking takes as long as a page of a file takes to be found missing, page after page.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <thread>

namespace thermocline::memory {

class ReadAhead {
public:
    ReadAhead();
    ~ReadAhead();
    ReadAhead(const ReadAhead&) = delete;
    ReadAhead& operator=(const ReadAhead&) = delete;

    /// Returns at once; false: too much waits already, and this is not read ahead. Of one thread.
    bool ask(std::span<const std::byte> piece) noexcept;
    /// What was asked for has all been passed on to the kernel.
    bool idle() const { return taken_.load(std::memory_order_acquire) == asked_.load(std::memory_order_relaxed); }

private:
    static constexpr uint32_t kWaiting = 1024;  // at most; a power of two
    void work();

    std::array<std::span<const std::byte>, kWaiting> pieces_;
    alignas(64) std::atomic<uint32_t> asked_ = 0;  // counts; the last one ends the thread if stopping_
    alignas(64) std::atomic<uint32_t> taken_ = 0;
    std::atomic<bool> stopping_ = false;
    std::thread thread_;
};

}  // namespace thermocline::memory
