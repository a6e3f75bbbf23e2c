// Which kernels a pass over few rows starts, and which of them share a launch.
#include "scheduler/gpu_order.h"

#include "cuda/kernels/list.h"
#include "tests/model/engine_fixture.h"

#include <gtest/gtest.h>
#include <string>

namespace thermocline {
namespace {

constexpr auto kNames = cuda::Kernels::map([]<typename Kernel>(cuda::KernelType<Kernel>) { return Kernel::kName; });

/// Notes what is launched, plays nothing.
class Notes : public cuda::Stream {
public:
    struct Launch {
        std::string name;
        cuda::Grid grid;
    };
    std::vector<Launch> launches;

    void launch(int kernel, const cuda::Grid& grid, const void*, size_t) override {
        launches.push_back({kNames[static_cast<size_t>(kernel)], grid});
    }
    void multiply(const cuda::DenseProduct&) override {}
    void copy(void*, const void*, int64_t) override {}
    void wait_for(const cuda::Flag*) override {}
    void begin_recording() override {}
    std::unique_ptr<cuda::Graph> end_recording() override { return nullptr; }
    void play(const cuda::Graph&) override {}
    bool finished() override { return true; }
    void wait(std::chrono::milliseconds) override {}
};

/// The tiny model's plan with matrices as those of V4-Flash are: nothing is played, so their data may lie nowhere.
ops::Plan as_flash() {
    ops::Plan plan = tiny_model(model::KvCacheDtype::kFp8).trunk;
    for (ops::Step& step : plan.steps) {
        auto* linear = std::get_if<ops::Linear>(&step);
        if (linear == nullptr) continue;
        const auto& [name, matrix] = plan.matrices[static_cast<size_t>(linear->weight)];
        const auto has = [&, &n = name](const char* part) { return n.find(part) != std::string::npos; };
        quant::Matrix& w = plan.matrices[static_cast<size_t>(linear->weight)].matrix;
        if (has("hc_")) {
            linear->rounding = ops::InputRounding::kExact;
            continue;
        }
        w.layout = quant::Layout::kStrips;
        const bool bf16 = has("compressor") || has("gate") || has("weights_proj") || has("head");
        w.format = bf16 ? quant::Format::kBF16 : quant::Format::kE4M3;
        linear->rounding = bf16 || has("wo_a") ? ops::InputRounding::kExact : ops::InputRounding::kE4M3;
    }
    return plan;
}

/// A pass of one row over a plan whose weights and slots are nowhere.
struct Nowhere {
    explicit Nowhere(const ops::Plan& plan_) : plan(plan_), slots(plan.slots.size()), rotations(plan.ropes.size()) {
        for (const ops::NamedMatrix& one : plan.matrices) weights.matrices.push_back(one.matrix);
        weights.vectors.resize(plan.vectors.size());
        weights.tables.resize(plan.tables.size());
        weights.rope_frequencies.resize(plan.ropes.size());
        batch.rows = batch.outputs = 1;
    }
    cuda::Frame frame() { return {plan, weights, batch, slots.data(), rotations.data(), nullptr, nullptr, notes}; }

    const ops::Plan& plan;
    cuda::Weights weights;
    cuda::Batch batch{};
    std::vector<float*> slots, rotations;
    Notes notes;
};

/// Groups of a plan from the end of one site to the end of the second one after it: a layer and its way in. Routed
/// experts are left out: their hand-off is three launches more.
std::vector<scheduler::Group> layer_groups(const ops::Plan& plan, int layer) {
    std::vector<scheduler::Group> groups;
    int sites = 0;
    for (const scheduler::Group& group : scheduler::group_steps(plan)) {
        const ops::Step& step = plan.steps[static_cast<size_t>(group.first)];
        if (std::holds_alternative<cuda::SiteSteps>(group.fused)) ++sites;
        const bool here = sites == 2 * layer + 1 || sites == 2 * layer + 2;
        if (here && !std::holds_alternative<ops::Experts>(step)) groups.push_back(group);
    }
    return groups;
}

std::string counted(const std::vector<Notes::Launch>& launches) {
    std::string text = std::to_string(launches.size()) + ":";
    for (const Notes::Launch& one : launches) text += " " + one.name;
    return text;
}

// Launches of one token and one layer: window alone, sparse context, dense context.
TEST(GpuOrder, StepsThatDoNotNeedEachOtherShareLaunches) {
    const ops::Plan plan = as_flash();
    constexpr int64_t kPlenty = int64_t{1} << 40;
    constexpr size_t kAlone[] = {38, 59, 45}, kTogether[] = {21, 24, 22};
    for (int layer = 0; layer < 3; ++layer) {
        Nowhere alone(plan), together(plan);
        const cuda::Frame frame = alone.frame();
        scheduler::GpuOrder order(together.frame(), kPlenty);
        for (const scheduler::Group& group : layer_groups(plan, layer)) {
            for (int32_t i = group.first; i < group.first + group.count; ++i)
                std::visit([&](const auto& one) { cuda::run(one, frame); }, plan.steps[static_cast<size_t>(i)]);
            order.play(group);
        }
        order.flush();
        EXPECT_EQ(alone.notes.launches.size(), kAlone[layer]) << counted(alone.notes.launches);
        EXPECT_EQ(together.notes.launches.size(), kTogether[layer]) << counted(together.notes.launches);
    }
}

// With little scratch an order waits now and then, and still plays all.
TEST(GpuOrder, LittleScratchOnlyCostsLaunches) {
    const ops::Plan plan = as_flash();
    Nowhere plenty(plan), little(plan);
    for (const auto& [pass, bytes] :
         {std::pair(&plenty, int64_t{1} << 40), std::pair(&little, cuda::scratch_bytes(plan, 1, 1))}) {
        scheduler::GpuOrder order(pass->frame(), std::max(bytes, int64_t{4096}));
        for (const scheduler::Group& group : layer_groups(plan, 1)) order.play(group);
        order.flush();
    }
    EXPECT_GE(little.notes.launches.size(), plenty.notes.launches.size());
}

}  // namespace
}  // namespace thermocline
