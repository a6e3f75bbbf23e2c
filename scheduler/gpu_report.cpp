#include "scheduler/gpu_report.h"

#include "scheduler/gpu_order.h"
#include "scheduler/printed.h"
#include "src/base/check.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <limits>

namespace thermocline::scheduler {

namespace {

constexpr std::chrono::minutes kPatience(1);
constexpr int kTimes = 3;
/// Half of what PCIe generation 3 does with four lanes. A layer's experts for a prompt take seconds below it.
constexpr double kSlowLink = 1.6;

/// Writes down which kernels are started, and starts none.
class NamingStream : public cuda::Stream {
public:
    void launch(int kernel, const cuda::Grid& grid, const void*, size_t) override {
        if (grid.x == 0 || grid.y == 0) return;
        const std::string name = cuda::kernel_name(kernel);
        if (names_.find(name) == std::string::npos) names_ += (names_.empty() ? "" : ", ") + name;
    }
    void multiply(const cuda::DenseProduct&) override {}
    void copy(void*, const void*, int64_t) override {}
    void wait_for(const cuda::Flag*) override {}
    void begin_recording() override {}
    std::unique_ptr<cuda::Graph> end_recording() override { return nullptr; }
    void play(const cuda::Graph&) override {}
    bool finished() override { return true; }
    void wait(std::chrono::milliseconds) override {}

    std::string take() { return std::exchange(names_, ""); }

private:
    std::string names_;
};

std::string name_of(const ops::Plan& plan, const ops::Step& step) {
    std::string name = ops::step_name(step);
    if (const auto* linear = std::get_if<ops::Linear>(&step)) {
        const quant::Matrix& w = plan.matrices[static_cast<size_t>(linear->weight)].matrix;
        name += " " + std::string(quant::traits(w.format).name);
    }
    if (const auto* experts = std::get_if<ops::Experts>(&step)) name = experts_name(plan, *experts);
    return name;
}

std::string name_of(const ops::Plan& plan, const Group& group) {
    std::string name;
    for (int32_t i = group.first; i < group.first + group.count; ++i)
        name += (name.empty() ? "" : " + ") + name_of(plan, plan.steps[static_cast<size_t>(i)]);
    return name;
}

}  // namespace

std::string experts_name(const ops::Plan& plan, const ops::Experts& step) {
    const ops::ExpertSet& set = plan.experts[static_cast<size_t>(step.experts)];
    return "Experts " + std::string(quant::traits(set.w1.front().format).name);
}

std::vector<OperatorReport> card_operators(const cuda::Frame& f, std::span<const Group> groups, int64_t scratch_bytes) {
    NamingStream names;
    GpuOrder order({f.plan, f.weights, f.batch, f.slots, f.rotations, f.embeddings, f.scratch, names, f.expert_slots,
                    f.pairs, f.tickets, f.variants, f.balance, nullptr, f.batch_invariant},
                   scratch_bytes);
    std::vector<OperatorReport> reports;
    for (const Group& group : groups) {
        order.play(group);
        order.flush();
        OperatorReport report{name_of(f.plan, group), "card", names.take(), 1};
        if (report.kernels.empty()) continue;  // experts of which none is on the card
        const auto same = std::find_if(reports.begin(), reports.end(), [&](const OperatorReport& other) {
            return other.operators == report.operators && other.kernels == report.kernels;
        });
        if (same != reports.end())
            ++same->count;
        else
            reports.push_back(std::move(report));
    }
    return reports;
}

void measure_products(const cuda::Frame& f, cuda::Device& device, std::vector<OperatorReport>& reports) {
    int64_t widest = 0;
    for (const ops::SlotSpec& slot : f.plan.slots) widest = std::max(widest, slot.cols);
    const cuda::PinnedMemory zeros(device, widest * 4);
    for (OperatorReport& report : reports) {
        std::vector<const ops::Linear*> products;
        int64_t bytes = 0;
        for (const ops::Step& step : f.plan.steps) {
            const auto* linear = std::get_if<ops::Linear>(&step);
            if (linear == nullptr || name_of(f.plan, step) != report.operators) continue;
            products.push_back(linear);
            bytes += f.plan.matrices[static_cast<size_t>(linear->weight)].matrix.bytes();
            f.stream.copy(f.slot(linear->in), zeros.data(), f.cols(linear->in) * 4);
        }
        if (products.empty()) continue;
        double least = std::numeric_limits<double>::infinity();
        for (int i = 0; i < kTimes; ++i) {
            f.stream.wait(kPatience);
            const auto began = std::chrono::steady_clock::now();
            for (const ops::Linear* product : products) cuda::run(*product, f);
            f.stream.wait(kPatience);
            least = std::min(least, std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
        }
        report.gb_per_s = static_cast<double>(bytes) * 1e-9 / least;
    }
}

std::string report_text(std::span<const OperatorReport> reports, double card_gb_per_s, double host_gb_per_s) {
    std::string text = "what runs where, one row";
    if (card_gb_per_s > 0) text += printed("; the card reads %.0f GB/s", card_gb_per_s);
    if (host_gb_per_s > 0) text += printed("; the CPU reads %.0f GB/s", host_gb_per_s);
    for (const OperatorReport& one : reports) {
        text +=
            printed("\n  %5lld x %s: %s", static_cast<long long>(one.count), one.operators.c_str(), one.where.c_str());
        if (!one.kernels.empty()) text += ", " + one.kernels;
        if (one.gb_per_s <= 0) continue;
        text += printed(", %.1f GB/s", one.gb_per_s);
        const double limit = one.where == "card" ? card_gb_per_s : host_gb_per_s;
        if (limit > 0) text += printed(" (%.0f %%)", 100.0 * one.gb_per_s / limit);
    }
    return text;
}

std::string slow_fallback(const Fallbacks& found) {
    if (found.flag_wait == cuda::FlagWait::kHostFunction)
        return "streams can wait for the CPU only by functions of the host, which costs every layer of every token 50 "
               "to 100 us: update the driver, or leave the virtual machine or WSL that keeps the better ways from it";
    const double slower = std::min(found.to_device, found.to_host);
    if (found.experts_cross && slower > 0 && slower < kSlowLink)
        return printed(
            "the link to the card moves only %.1f GB/s: put it into a slot with more lanes, or mend what "
            "slows the link down (`thermocline doctor`)",
            slower);
    if (found.experts_cross && found.scalar_cpu)
        return "this CPU computes experts without vector instructions (no AVX2), ten times slower: in a virtual "
               "machine pass the host's CPU model through, or keep all experts on the card (--offload-experts none)";
    return "";
}

}  // namespace thermocline::scheduler
