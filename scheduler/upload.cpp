#include "scheduler/upload.h"

#include <algorithm>
#include <chrono>
#include <cstring>

namespace thermocline::scheduler {

namespace {

constexpr int64_t kStagingBytes = int64_t{32} << 20;
constexpr std::chrono::minutes kPatience(1);  // for so much

}  // namespace

void upload(std::span<const cuda::Copy> copies, cuda::Device& device, cuda::Stream& stream) {
    cuda::PinnedMemory staging(device, kStagingBytes);
    int64_t used = 0;
    for (const cuda::Copy& copy : copies)
        for (int64_t done = 0; done < copy.bytes;) {
            if (used == kStagingBytes) {
                stream.wait(kPatience);
                used = 0;
            }
            const int64_t count = std::min(copy.bytes - done, kStagingBytes - used);
            std::memcpy(staging.data() + used, copy.from + done, static_cast<size_t>(count));
            stream.copy(copy.to + done, staging.data() + used, count);
            used += count;
            done += count;
        }
    stream.wait(kPatience);
}

}  // namespace thermocline::scheduler
