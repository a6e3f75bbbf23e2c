// A plan's steps on a card, emulated or real (test_device.h): weights in its memory, buffers and caches of one plan in
// pinned memory, which both sides reach at the same address.
#pragma once

#include "cpu/kernels.h"
#include "cpu/run.h"
#include "cpu/scratch.h"
#include "cuda/run.h"
#include "scheduler/gpu_weights.h"
#include "tests/cuda/pinned_arrays.h"
#include "tests/cuda/test_device.h"
#include "tests/step_check.h"

#include <gtest/gtest.h>

namespace thermocline {

class CudaStage : public Stage {
public:
    explicit CudaStage(const ops::Plan& plan)
        : plan_(plan),
          device_(cuda::test_device()),
          stream_(device_->new_stream()),
          arrays_(*device_),
          weight_memory_(*device_, std::max<int64_t>(1, scheduler::GpuWeights::bytes_of(plan))),
          weights_(plan, *device_, weight_memory_.data()),
          scratch_(*device_, cuda::scratch_bytes(plan, kMaxRows, kMaxRows)) {
        for (const ops::SlotSpec& slot : plan.slots) {
            storage_.push_back(arrays_.array<float>(static_cast<size_t>(slot.cols * kMaxRows)));
            slots_.push_back(storage_.back().data());
        }
        for (const ops::RopeTable& rope : plan.ropes)
            rotations_.push_back(arrays_.array<float>(static_cast<size_t>(rope.dims() * kMaxRows)).data());
        for (const ops::Step& step : plan.steps)
            if (const auto* s = std::get_if<ops::Embed>(&step))
                embeddings_ = arrays_.array<float>(static_cast<size_t>(table_of(*s).cols * kMaxRows)).data();
    }

    void begin(const ops::Batch& batch) override {
        std::vector<int32_t> segment_of;
        std::vector<cuda::Segment> segments;
        std::vector<cuda::CacheView> caches;
        for (const ops::Segment& segment : batch.segments) {
            segment_of.insert(segment_of.end(), static_cast<size_t>(segment.rows),
                              static_cast<int32_t>(segments.size()));
            segments.push_back({segment.first_row, segment.rows, segment.position});
            for (size_t i = 0; i < plan_.caches.size(); ++i) {
                const ops::CacheView& view = segment.caches[i];
                const std::span<std::byte* const> pages(view.pages, static_cast<size_t>(view.page_count));
                caches.push_back({arrays_.copy(pages), view.page_rows, view.row_bytes, view.ring_rows});
            }
        }
        batch_ = {arrays_.copy(batch.tokens),
                  arrays_.copy(batch.positions),
                  arrays_.copy(segment_of),
                  arrays_.copy(segments),
                  arrays_.copy(caches),
                  arrays_.copy(batch.output_rows),
                  batch.rows(),
                  batch.outputs(),
                  std::ssize(segments),
                  std::ssize(plan_.caches)};
        embed(batch);
        cuda::rotations(frame());
        wait();
    }
    void run(const ops::Step& step, const ops::Batch& batch) override {
        const std::string why = cuda::why_not(plan_, step);
        const bool by_scheduler = std::holds_alternative<ops::Experts>(step);
        ASSERT_EQ(why.empty(), !by_scheduler) << ops::step_name(step) << ": " << why;
        std::visit(
            [&](const auto& one) {
                if constexpr (std::is_same_v<decltype(one), const ops::Experts&>)
                    run_experts(one, batch);
                else
                    cuda::run(one, frame());
            },
            step);
        wait();
    }
    std::span<float> slot(ops::Slot id) override { return storage_[static_cast<size_t>(id)]; }
    memory::PageStore& pages() override { return arrays_; }

private:
    void wait() { stream_->wait(std::chrono::minutes(1)); }
    /// Experts are not played step by step on a card; what follows them wants their output.
    void run_experts(const ops::Experts& s, const ops::Batch& batch) {
        cpu::Workers workers{std::span<const int>()};
        const cpu::ScratchSize size = cpu::scratch_size(plan_, kMaxRows, kMaxTokens);
        std::vector<float> shared(static_cast<size_t>(size.shared)), own(static_cast<size_t>(size.per_worker));
        cpu::run(s,
                 {plan_, batch, slots_.data(), rotations_.data(), shared, own, workers, *cpu::find_kernels("scalar")});
    }
    void embed(const ops::Batch& batch) {
        for (const ops::Step& step : plan_.steps)
            if (const auto* s = std::get_if<ops::Embed>(&step)) {
                const quant::Matrix& table = table_of(*s);
                for (int64_t t = 0; t < batch.rows(); ++t)
                    cpu::find_kernels("scalar")->decode_row(table, batch.tokens[static_cast<size_t>(t)],
                                                            embeddings_ + t * table.cols);
            }
    }
    const quant::Matrix& table_of(const ops::Embed& step) const {
        return plan_.matrices[static_cast<size_t>(step.table)].matrix;
    }
    cuda::Frame frame() {
        return {plan_,       weights_.on_card(), batch_,  slots_.data(), rotations_.data(),
                embeddings_, scratch_.data(),    *stream_};
    }

    const ops::Plan& plan_;
    std::unique_ptr<cuda::Device> device_;
    std::unique_ptr<cuda::Stream> stream_;
    PinnedArrays arrays_;
    cuda::DeviceMemory weight_memory_;
    scheduler::GpuWeights weights_;
    cuda::DeviceMemory scratch_;
    std::vector<std::span<float>> storage_;
    std::vector<float*> slots_, rotations_;
    float* embeddings_ = nullptr;
    cuda::Batch batch_{};
};

}  // namespace thermocline
