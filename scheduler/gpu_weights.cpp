#include "scheduler/gpu_weights.h"

#include "cuda/weights.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <set>
#include <vector>

namespace thermocline::scheduler {

namespace {

constexpr int64_t kStagingBytes = int64_t{32} << 20;
constexpr std::chrono::minutes kPatience(1);  // for so much

std::set<ops::MatrixId> dense_matrices(const ops::Plan& plan) {
    std::set<ops::MatrixId> ids;
    for (const ops::Step& step : plan.steps)
        if (const auto* linear = std::get_if<ops::Linear>(&step)) ids.insert(linear->weight);
    return ids;
}

/// Lays everything out from `begin` on; without memory to lay it into it only counts.
class Layout {
public:
    explicit Layout(std::byte* begin) : begin_(begin) {}

    quant::Matrix add(const quant::Matrix& matrix) {
        std::byte* at = take(cuda::placed_bytes(matrix));
        return at == nullptr ? matrix : cuda::place(matrix, at, copies);
    }
    template <typename T>
    const T* add(const std::vector<T>& values) {
        const auto bytes = static_cast<int64_t>(values.size() * sizeof(T));
        std::byte* at = take(bytes);
        if (at != nullptr) copies.push_back({reinterpret_cast<const std::byte*>(values.data()), at, bytes});
        return reinterpret_cast<const T*>(at);
    }
    int64_t bytes() const { return bytes_; }

    std::vector<cuda::Copy> copies;

private:
    std::byte* take(int64_t bytes) {
        std::byte* taken = begin_ == nullptr ? nullptr : begin_ + bytes_;
        bytes_ += (bytes + cuda::kAlignment - 1) / cuda::kAlignment * cuda::kAlignment;
        return taken;
    }

    std::byte* begin_;
    int64_t bytes_ = 0;
};

cuda::Weights lay_out(const ops::Plan& plan, Layout& layout) {
    cuda::Weights weights;
    weights.matrices.resize(plan.matrices.size());
    for (const ops::MatrixId id : dense_matrices(plan))
        weights.matrices[static_cast<size_t>(id)] = layout.add(plan.matrices[static_cast<size_t>(id)].matrix);
    for (const ops::NamedVector& one : plan.vectors) weights.vectors.push_back(layout.add(one.values));
    for (const ops::NamedTable& one : plan.tables) weights.tables.push_back(layout.add(one.values));
    for (const ops::RopeTable& one : plan.ropes) weights.rope_frequencies.push_back(layout.add(one.frequencies));
    return weights;
}

}  // namespace

int64_t GpuWeights::bytes_of(const ops::Plan& plan) {
    Layout layout(nullptr);
    lay_out(plan, layout);
    return layout.bytes();
}

GpuWeights::GpuWeights(const ops::Plan& plan, cuda::Device& device, cuda::Stream& stream)
    : memory_(device, bytes_of(plan)) {
    Layout layout(memory_.data());
    weights_ = lay_out(plan, layout);
    cuda::PinnedMemory staging(device, kStagingBytes);
    int64_t used = 0;
    for (const cuda::Copy& copy : layout.copies)
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
