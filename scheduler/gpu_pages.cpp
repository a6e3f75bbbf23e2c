#include "scheduler/gpu_pages.h"

#include "cuda/weights.h"

#include <algorithm>
#include <chrono>
#include <cstring>

namespace thermocline::scheduler {

namespace {

constexpr int64_t kStagingBytes = int64_t{1} << 20;
constexpr std::chrono::seconds kPatience(10);

}  // namespace

GpuPages::GpuPages(cuda::Device& device, int64_t bytes)
    : memory_(device, bytes), staging_(device, kStagingBytes), stream_(device.new_stream()) {}

int64_t GpuPages::rounded(int64_t bytes) {
    return (bytes + cuda::kAlignment - 1) / cuda::kAlignment * cuda::kAlignment;
}

std::byte* GpuPages::take(int64_t bytes) {
    std::vector<std::byte*>& free = free_[rounded(bytes)];
    if (!free.empty()) {
        std::byte* page = free.back();
        free.pop_back();
        return page;
    }
    if (used_ + rounded(bytes) > memory_.bytes()) return nullptr;
    std::byte* page = memory_.data() + used_;
    used_ += rounded(bytes);
    return page;
}

void GpuPages::give_back(std::byte* page, int64_t bytes) noexcept { free_[rounded(bytes)].push_back(page); }

void GpuPages::read(const std::byte* page, void* to, int64_t bytes) {
    for (int64_t done = 0; done < bytes; done += kStagingBytes) {
        const int64_t count = std::min(kStagingBytes, bytes - done);
        stream_->copy(staging_.data(), page + done, count);
        stream_->wait(kPatience);
        std::memcpy(static_cast<std::byte*>(to) + done, staging_.data(), static_cast<size_t>(count));
    }
}

void GpuPages::write(std::byte* page, const void* from, int64_t bytes) {
    for (int64_t done = 0; done < bytes; done += kStagingBytes) {
        const int64_t count = std::min(kStagingBytes, bytes - done);
        std::memcpy(staging_.data(), static_cast<const std::byte*>(from) + done, static_cast<size_t>(count));
        stream_->copy(page + done, staging_.data(), count);
        stream_->wait(kPatience);
    }
}

}  // namespace thermocline::scheduler
