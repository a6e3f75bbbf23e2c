// A plan's steps on the emulated device: buffers of one plan, weights where they lie, since kernels of the emulated
// device reach all of the host's memory.
#pragma once

#include "cpu/kernels.h"
#include "cuda/emulation/device.h"
#include "cuda/run.h"
#include "tests/step_check.h"

#include <gtest/gtest.h>

namespace thermocline {

inline cuda::Weights weights_of(const ops::Plan& plan) {
    cuda::Weights weights;
    for (const ops::NamedMatrix& one : plan.matrices) weights.matrices.push_back(one.matrix);
    for (const ops::NamedVector& one : plan.vectors) weights.vectors.push_back(one.values.data());
    for (const ops::NamedTable& one : plan.tables) weights.tables.push_back(one.values.data());
    for (const ops::RopeTable& one : plan.ropes) weights.rope_frequencies.push_back(one.frequencies.data());
    return weights;
}

class CudaStage : public Stage {
public:
    explicit CudaStage(const ops::Plan& plan)
        : plan_(plan), weights_(weights_of(plan)), device_(cuda::emulation::open({})), stream_(device_->new_stream()) {
        for (const ops::SlotSpec& slot : plan.slots) storage_.emplace_back(static_cast<size_t>(slot.cols * kMaxRows));
        for (const ops::RopeTable& rope : plan.ropes)
            rotations_.emplace_back(static_cast<size_t>(rope.dims() * kMaxRows));
        for (auto& slot : storage_) slots_.push_back(slot.data());
        for (auto& rope : rotations_) rotation_pointers_.push_back(rope.data());
        scratch_ = cuda::DeviceMemory(*device_, cuda::scratch_bytes(plan, kMaxRows, kMaxRows));
    }

    void begin(const ops::Batch& batch) override {
        segment_of_.clear();
        segments_.clear();
        caches_.clear();
        for (const ops::Segment& segment : batch.segments) {
            segment_of_.insert(segment_of_.end(), static_cast<size_t>(segment.rows),
                               static_cast<int32_t>(segments_.size()));
            segments_.push_back({segment.first_row, segment.rows, segment.position});
            for (size_t i = 0; i < plan_.caches.size(); ++i) {
                const ops::CacheView& view = segment.caches[i];
                caches_.push_back({view.pages, view.page_rows, view.row_bytes, view.ring_rows});
            }
        }
        embed(batch);
        cuda::rotations(frame(batch));
        wait();
    }
    void run(const ops::Step& step, const ops::Batch& batch) override {
        const std::string why = cuda::why_not(plan_, step);
        ASSERT_TRUE(why.empty()) << ops::step_name(step) << ": " << why;
        std::visit([&](const auto& one) { cuda::run(one, frame(batch)); }, step);
        wait();
    }
    std::span<float> slot(ops::Slot id) override { return storage_[static_cast<size_t>(id)]; }

private:
    void wait() { stream_->wait(std::chrono::minutes(1)); }
    void embed(const ops::Batch& batch) {
        for (const ops::Step& step : plan_.steps)
            if (const auto* s = std::get_if<ops::Embed>(&step)) {
                const quant::Matrix& table = plan_.matrices[static_cast<size_t>(s->table)].matrix;
                embeddings_.resize(static_cast<size_t>(batch.rows() * table.cols));
                for (int64_t t = 0; t < batch.rows(); ++t)
                    cpu::find_kernels("scalar")->decode_row(table, batch.tokens[static_cast<size_t>(t)],
                                                            embeddings_.data() + t * table.cols);
            }
    }
    cuda::Frame frame(const ops::Batch& batch) {
        return {plan_,
                weights_,
                {batch.tokens.data(), batch.positions.data(), segment_of_.data(), segments_.data(), caches_.data(),
                 batch.output_rows.data(), batch.rows(), batch.outputs(), static_cast<int64_t>(segments_.size()),
                 static_cast<int64_t>(plan_.caches.size())},
                slots_.data(),
                rotation_pointers_.data(),
                embeddings_.data(),
                scratch_.data(),
                *stream_};
    }

    const ops::Plan& plan_;
    cuda::Weights weights_;
    std::unique_ptr<cuda::Device> device_;
    std::unique_ptr<cuda::Stream> stream_;
    std::vector<std::vector<float>> storage_, rotations_;
    std::vector<float*> slots_, rotation_pointers_;
    std::vector<float> embeddings_;
    std::vector<int32_t> segment_of_;
    std::vector<cuda::Segment> segments_;
    std::vector<cuda::CacheView> caches_;
    cuda::DeviceMemory scratch_;
};

}  // namespace thermocline
