// Pages of sequences in the memory of a card, out of one stretch taken at start: what fits at start always fits. Used
// by the engine thread.
#pragma once

#include "cuda/device.h"
#include "memory/page_store.h"

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

namespace thermocline::scheduler {

class GpuPages : public memory::PageStore {
public:
    /// Throws Error if the card has no room for `bytes`.
    GpuPages(cuda::Device& device, int64_t bytes);

    std::byte* take(int64_t bytes) override;
    void give_back(std::byte* page, int64_t bytes) noexcept override;
    void read(const std::byte* page, void* to, int64_t bytes) override;
    void write(std::byte* page, const void* from, int64_t bytes) override;

    /// What a page of `bytes` takes of the stretch.
    static int64_t rounded(int64_t bytes);

private:
    cuda::DeviceMemory memory_;
    cuda::PinnedMemory staging_;
    std::unique_ptr<cuda::Stream> stream_;
    int64_t used_ = 0;                                 // from the start on; pages given back lie in lists
    std::map<int64_t, std::vector<std::byte*>> free_;  // by size
};

}  // namespace thermocline::scheduler
