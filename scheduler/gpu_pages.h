// Pages of sequences in the memory of a card, out of a stretch given at start: what fits at start always fits. Used
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
    /// In `bytes` at `memory` of the card. `passes`, which play on the pages: one that was given up may write to those
    /// that another sequence has by now, so pages are read and written when it has ended.
    GpuPages(cuda::Device& device, cuda::Stream& passes, std::byte* memory, int64_t bytes);

    std::byte* take(int64_t bytes) override;
    void give_back(std::byte* page, int64_t bytes) noexcept override;
    void read(const std::byte* page, void* to, int64_t bytes) override;
    void write(std::byte* page, const void* from, int64_t bytes) override;

private:
    cuda::Stream& passes_;
    std::byte* memory_;
    int64_t bytes_;
    cuda::PinnedMemory staging_;
    std::unique_ptr<cuda::Stream> stream_;
    int64_t used_ = 0;                                 // from the start on; pages given back lie in lists
    std::map<int64_t, std::vector<std::byte*>> free_;  // by size
};

}  // namespace thermocline::scheduler
