// Hands out a stretch of memory of a card, or of pinned memory, piece after piece.
#pragma once

#include "cuda/device.h"

#include <cstddef>
#include <cstdint>

namespace thermocline::scheduler {

/// From nothing it only counts: what is taken is null then, and bytes() is what will be needed.
class Stretch {
public:
    explicit Stretch(std::byte* begin) : begin_(begin) {}

    /// Aligned to cuda::kAlignment.
    template <typename T>
    T* take(int64_t count) {
        std::byte* taken = begin_ == nullptr ? nullptr : begin_ + bytes_;
        bytes_ += cuda::aligned(count * static_cast<int64_t>(sizeof(T)));
        return reinterpret_cast<T*>(taken);
    }
    int64_t bytes() const { return bytes_; }

private:
    std::byte* begin_;
    int64_t bytes_ = 0;
};

}  // namespace thermocline::scheduler
