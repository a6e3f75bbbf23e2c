#include "scheduler/gpu_weights.h"

#include "cuda/weights.h"
#include "scheduler/stretch.h"
#include "scheduler/upload.h"

#include <vector>

namespace thermocline::scheduler {

namespace {

/// Lays everything out from `begin` on; without memory to lay it into it only counts.
class Layout {
public:
    explicit Layout(std::byte* begin) : stretch_(begin) {}

    quant::Matrix add(const quant::Matrix& matrix) {
        auto* at = stretch_.take<std::byte>(cuda::placed_bytes(matrix));
        return at == nullptr ? matrix : cuda::place(matrix, at, copies);
    }
    template <typename T>
    const T* add(const std::vector<T>& values) {
        T* at = stretch_.take<T>(std::ssize(values));
        if (at != nullptr)
            copies.push_back({reinterpret_cast<const std::byte*>(values.data()), reinterpret_cast<std::byte*>(at),
                              static_cast<int64_t>(values.size() * sizeof(T))});
        return at;
    }
    int64_t bytes() const { return stretch_.bytes(); }

    std::vector<cuda::Copy> copies;

private:
    Stretch stretch_;
};

cuda::Weights lay_out(const ops::Plan& plan, Layout& layout) {
    cuda::Weights weights;
    weights.matrices.resize(plan.matrices.size());
    for (const ops::MatrixId id : GpuWeights::matrices_of(plan))
        weights.matrices[static_cast<size_t>(id)] = layout.add(plan.matrices[static_cast<size_t>(id)].matrix);
    for (const ops::NamedVector& one : plan.vectors) weights.vectors.push_back(layout.add(one.values));
    for (const ops::NamedTable& one : plan.tables) weights.tables.push_back(layout.add(one.values));
    for (const ops::RopeTable& one : plan.ropes) weights.rope_frequencies.push_back(layout.add(one.frequencies));
    return weights;
}

}  // namespace

std::set<ops::MatrixId> GpuWeights::matrices_of(const ops::Plan& plan) {
    std::set<ops::MatrixId> ids;
    for (const ops::Step& step : plan.steps)
        if (const auto* linear = std::get_if<ops::Linear>(&step)) ids.insert(linear->weight);
    return ids;
}

int64_t GpuWeights::bytes_of(const ops::Plan& plan) {
    Layout layout(nullptr);
    lay_out(plan, layout);
    return layout.bytes();
}

GpuWeights::GpuWeights(const ops::Plan& plan, cuda::Device& device, std::byte* at, memory::PackedWeights* packed) {
    Layout layout(at);
    weights_ = lay_out(plan, layout);
    upload(layout.copies, device, {}, packed);
}

}  // namespace thermocline::scheduler
