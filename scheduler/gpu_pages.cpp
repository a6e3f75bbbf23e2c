#include "scheduler/gpu_pages.h"

#include <algorithm>
#include <chrono>
#include <cstring>

namespace thermocline::scheduler {

namespace {

constexpr int64_t kStagingBytes = int64_t{1} << 20;
constexpr std::chrono::minutes kPatience(1);

}  // namespace

GpuPages::GpuPages(cuda::Device& device, cuda::Stream& passes, std::byte* memory, int64_t bytes)
    : passes_(passes), memory_(memory), bytes_(bytes), staging_(device, kStagingBytes), stream_(device.new_stream()) {}

std::byte* GpuPages::take(int64_t bytes) {
    std::vector<std::byte*>& free = free_[cuda::aligned(bytes)];
    if (!free.empty()) {
        std::byte* page = free.back();
        free.pop_back();
        return page;
    }
    if (used_ + cuda::aligned(bytes) > bytes_) return nullptr;
    std::byte* page = memory_ + used_;
    used_ += cuda::aligned(bytes);
    return page;
}

void GpuPages::give_back(std::byte* page, int64_t bytes) noexcept { free_[cuda::aligned(bytes)].push_back(page); }

void GpuPages::read(const std::byte* page, void* to, int64_t bytes) {
    passes_.wait(kPatience);
    for (int64_t done = 0; done < bytes; done += kStagingBytes) {
        const int64_t count = std::min(kStagingBytes, bytes - done);
        stream_->copy(staging_.data(), page + done, count);
        stream_->wait(kPatience);
        std::memcpy(static_cast<std::byte*>(to) + done, staging_.data(), static_cast<size_t>(count));
    }
}

void GpuPages::write(std::byte* page, const void* from, int64_t bytes) {
    passes_.wait(kPatience);
    for (int64_t done = 0; done < bytes; done += kStagingBytes) {
        const int64_t count = std::min(kStagingBytes, bytes - done);
        std::memcpy(staging_.data(), static_cast<const std::byte*>(from) + done, static_cast<size_t>(count));
        stream_->copy(page + done, staging_.data(), count);
        stream_->wait(kPatience);
    }
}

}  // namespace thermocline::scheduler
