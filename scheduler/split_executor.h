// Plays a plan whose layers are split over several cards (layer_split.h), one after the other: each card plays its own
// layers with an executor of its own, and the residual streams of the batch pass from card to card through pinned
// memory of the host. Sequences keep the pages of each layer on its card.
#pragma once

#include "memory/page_store.h"
#include "scheduler/batch_rows.h"
#include "scheduler/executor.h"
#include "scheduler/gpu_executor.h"
#include "scheduler/layer_split.h"
#include "src/ops/layers.h"

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

namespace thermocline::scheduler {

class SplitExecutor : public Executor {
public:
    /// Plays nothing before all layers were add()ed. `plan` must outlive the executor.
    SplitExecutor(const ops::Plan& plan, ExecutorLimits limits);
    ~SplitExecutor() override;

    /// The next layers; `make` is given their part of the plan, which lives as long as this object, and its executor
    /// must have the limits of this one.
    void add(LayerRange layers, const std::function<std::unique_ptr<GpuExecutor>(const ops::Plan& part)>& make);

    const ops::Plan& plan() const override { return plan_; }
    const ExecutorLimits& limits() const override { return limits_; }
    std::unique_ptr<memory::SequenceCache> new_sequence() override;
    int64_t sequence_bytes(int64_t tokens) const override;
    /// Of trunks: CHECKs that `streams_in` is null.
    void forward(std::span<const Part> parts, const float* streams_in = nullptr) override;
    const float* logits(int64_t output) const override { return cards_.back().executor->logits(output); }
    std::optional<ops::TopLogits> top_logits(int64_t output) const override {
        return cards_.back().executor->top_logits(output);
    }
    const float* streams(int64_t row) const override { return cards_.back().executor->streams(row); }
    int64_t workspace_bytes() const override;
    ops::Cost last_cost() const override;
    void profile_steps(StepProfile* profile) override;
    void record_routing(RoutingRecord* record) override;
    ResidencyCounters residency() const override;
    std::vector<ExpertName> resident() const override;
    int64_t movable_slots() const override;
    std::vector<SlotRange> slot_ranges() const override;
    std::vector<ExpertName> core() const override;
    void order(const ExpertOrders& orders) override;

    /// GpuExecutor::set_patience(), of the part of a pass on each card.
    void set_patience(std::chrono::milliseconds few, std::chrono::milliseconds many);

private:
    struct Card {
        LayerRange layers;
        std::unique_ptr<const ops::PlanPart> part;
        std::unique_ptr<GpuExecutor> executor;
        RoutingRecord routing = {};
    };
    void play(std::span<const Part> parts, const ops::Batch& batch);
    /// Names of all layers, of what each card says of its own.
    std::vector<ExpertName> gathered(std::vector<ExpertName> (GpuExecutor::*names)() const) const;

    const ops::Plan& plan_;
    ExecutorLimits limits_;
    BatchRows rows_;
    std::vector<Card> cards_;
    std::vector<ops::Segment> segments_;  // of a card
    RoutingRecord* routing_ = nullptr;
};

}  // namespace thermocline::scheduler
