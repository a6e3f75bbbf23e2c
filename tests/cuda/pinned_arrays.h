// Memory of tests that host and card reach at the same address, so that nothing has to be copied.
#pragma once

#include "cuda/device.h"
#include "memory/page_store.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

namespace thermocline {

/// Arrays that host and card reach, zeros at first. Kept to the end.
class PinnedArrays : public memory::PageStore {
public:
    explicit PinnedArrays(cuda::Device& device) : device_(device) {}

    template <typename T>
    std::span<T> array(size_t count) {
        pieces_.emplace_back(device_, static_cast<int64_t>(std::max<size_t>(1, count) * sizeof(T)));
        return {pieces_.back().as<T>(), count};
    }
    template <typename T>
    T* copy(std::span<const T> values) {
        const std::span<T> own = array<T>(values.size());
        std::ranges::copy(values, own.begin());
        return own.data();
    }
    template <typename T>
    T* copy(const std::vector<T>& values) {
        return copy(std::span<const T>(values));
    }

    std::byte* take(int64_t bytes) override { return array<std::byte>(static_cast<size_t>(bytes)).data(); }
    void give_back(std::byte*, int64_t) noexcept override {}
    void read(const std::byte* page, void* to, int64_t bytes) override {
        std::memcpy(to, page, static_cast<size_t>(bytes));
    }
    void write(std::byte* page, const void* from, int64_t bytes) override {
        std::memcpy(page, from, static_cast<size_t>(bytes));
    }

private:
    cuda::Device& device_;
    std::vector<cuda::PinnedMemory> pieces_;
};

}  // namespace thermocline
