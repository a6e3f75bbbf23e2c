#include "memory/read_ahead.h"

#include <algorithm>
#include <sys/mman.h>

namespace thermocline::memory {

namespace {

// The kernel reads no more of one request than its read-ahead window, 128 KiB unless it was set otherwise.
constexpr int64_t kRequest = 128 << 10, kPage = 4096;

void will_need(std::span<const std::byte> piece) {
    auto begin = reinterpret_cast<uintptr_t>(piece.data());
    const uintptr_t end = begin + piece.size();
    for (begin -= begin % kPage; begin < end; begin += kRequest)  // a refusal costs time only
        ::madvise(reinterpret_cast<void*>(begin), std::min<uintptr_t>(kRequest, end - begin), MADV_WILLNEED);
}

}  // namespace

ReadAhead::ReadAhead() : thread_([this] { work(); }) {}

ReadAhead::~ReadAhead() {
    stopping_.store(true, std::memory_order_relaxed);
    asked_.fetch_add(1, std::memory_order_release);
    asked_.notify_one();
    thread_.join();
}

bool ReadAhead::ask(std::span<const std::byte> piece) noexcept {
    const uint32_t next = asked_.load(std::memory_order_relaxed);
    if (next - taken_.load(std::memory_order_acquire) == kWaiting) return false;
    pieces_[next % kWaiting] = piece;
    asked_.store(next + 1, std::memory_order_release);
    asked_.notify_one();
    return true;
}

void ReadAhead::work() {
    for (uint32_t next = 0;; ++next) {
        asked_.wait(next, std::memory_order_acquire);
        if (stopping_.load(std::memory_order_relaxed)) return;
        will_need(pieces_[next % kWaiting]);
        taken_.store(next + 1, std::memory_order_release);
    }
}

}  // namespace thermocline::memory
