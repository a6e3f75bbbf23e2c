#include "scheduler/upload.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace thermocline::scheduler {

namespace {

constexpr int64_t kStagingBytes = int64_t{4} << 20;  // so much is waited for at a time
constexpr int64_t kMadeAtOnce = int64_t{256} << 20;  // or one matrix

}  // namespace

void upload(std::span<const cuda::Copy> copies, cuda::Device& device, const UploadPatience& patience,
            memory::PackedWeights* packed) {
    cuda::PinnedMemory staging(device, kStagingBytes);
    const auto stream = device.new_stream();  // ends with its copies before the memory does
    int64_t used = 0;
    const auto wait = [&] {
        const double ms = std::ceil(static_cast<double>(used) * 1e3 / patience.bytes_per_s);
        stream->wait(patience.any + std::chrono::milliseconds(static_cast<int64_t>(ms)));
        used = 0;
    };
    int64_t made = 0;  // that the copies from here on may use
    for (size_t i = 0; i < copies.size(); ++i) {
        const cuda::Copy& copy = copies[i];
        if (packed != nullptr && made <= 0) {
            std::vector<const std::byte*> places;
            for (size_t next = i; next < copies.size() && made < kMadeAtOnce; made += copies[next++].bytes)
                places.push_back(copies[next].from);
            packed->make(places);
        }
        made -= copy.bytes;
        for (int64_t done = 0; done < copy.bytes;) {
            if (used == kStagingBytes) wait();
            const int64_t count = std::min(copy.bytes - done, kStagingBytes - used);
            std::memcpy(staging.data() + used, copy.from + done, static_cast<size_t>(count));
            stream->copy(copy.to + done, staging.data() + used, count);
            used += count;
            done += count;
        }
    }
    wait();
    if (packed != nullptr) packed->drop();
}

}  // namespace thermocline::scheduler
