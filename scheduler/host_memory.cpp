#include "scheduler/host_memory.h"

#include "memory/sequence_cache.h"
#include "scheduler/gpu_weights.h"
#include "scheduler/printed.h"
#include "src/base/error.h"
#include "src/quant/strips.h"

#include <algorithm>
#include <cstdlib>
#include <numeric>
#include <set>

namespace thermocline::scheduler {

namespace {

// Of a machine's memory, for the system and other programs, but no more than a sixteenth of it [A]. Of a budget that
// was asked for, likewise, for buffers and the prefix cache.
constexpr int64_t kSystemBytes = 4'000'000'000, kBufferBytes = 1'000'000'000;
constexpr int64_t kVectors = 1 << 20;  // which lines count and PackedWeights does not

int64_t routed_bytes(const ops::Plan& plan) {
    int64_t total = 0;
    for (const ops::ExpertSet& set : plan.experts)
        for (const auto* projection : {&set.w1, &set.w2, &set.w3})
            for (const quant::Matrix& matrix : *projection) total += quant::packed_form(matrix).bytes();
    return total;
}

/// Tables of embeddings that no Linear reads as well.
int64_t embedding_bytes(const ops::Plan& plan) {
    std::set<const std::byte*> multiplied;
    for (const ops::Step& step : plan.steps)
        if (const auto* linear = std::get_if<ops::Linear>(&step))
            multiplied.insert(plan.matrices[static_cast<size_t>(linear->weight)].matrix.data);
    int64_t total = 0;
    for (const ops::Step& step : plan.steps)
        if (const auto* embed = std::get_if<ops::Embed>(&step)) {
            const quant::Matrix& table = plan.matrices[static_cast<size_t>(embed->table)].matrix;
            if (multiplied.insert(table.data).second) total += table.bytes();
        }
    return total;
}

/// All slots for passes of so many rows; those of outputs are few.
int64_t slot_bytes(const ops::Plan& plan, int64_t rows) {
    int64_t total = 0;
    for (const ops::SlotSpec& slot : plan.slots)
        if (slot.rows == ops::Rows::kTokens) total += slot.cols * rows * 4;
    return total;
}

double gb(int64_t bytes) { return static_cast<double>(bytes) * 1e-9; }

}  // namespace

int64_t buffer_bytes(int64_t budget_bytes) { return std::min(kBufferBytes, budget_bytes / 32); }

int64_t HostMemoryPlan::fixed_bytes() const {
    return std::accumulate(lines.begin(), lines.end(), int64_t{0},
                           [](int64_t sum, const GpuMemoryLine& line) { return sum + line.bytes; });
}

int64_t HostMemoryPlan::room() const {
    const int64_t left = std::max<int64_t>(0, budget_bytes - fixed_bytes());
    return all_expert_bytes <= left ? experts : left / expert_bytes;
}

int64_t HostMemoryPlan::budget_for(int64_t count) const {
    const int64_t needed = fixed_bytes() - lines.front().bytes + bytes_of(count);
    return needed + std::min(kBufferBytes, needed / 31 + 1);  // buffer_bytes() of the sum
}

std::string HostMemoryPlan::refusal() const {
    int64_t left = budget_bytes;
    for (const GpuMemoryLine& line : lines) {
        left -= line.bytes;
        if (left < 0)
            return printed("host memory of %.1f GB: %s of %.1f GB is %.1f GB more than is left", gb(budget_bytes),
                           line.name.c_str(), gb(line.bytes), gb(-left)) +
                   "; needs more memory (--host-memory), a smaller format of the weights, or a smaller model";
    }
    return "";
}

HostMemoryPlan plan_host_memory(const ops::Plan& trunk, const ops::Plan* draft, const HostMemoryWishes& wishes) {
    HostMemoryPlan plan;
    plan.budget_bytes = wishes.budget_bytes;
    plan.experts = expert_count(trunk);
    plan.expert_bytes = expert_slot_bytes(trunk);
    plan.all_expert_bytes = routed_bytes(trunk);
    std::vector<GpuMemoryLine>& lines = plan.lines;
    if (wishes.is_asked)
        lines.push_back({"buffers, prefix cache", buffer_bytes(wishes.budget_bytes), ""});
    else
        lines.push_back({"system", std::min(kSystemBytes, wishes.budget_bytes / 16), "and other programs"});
    if (wishes.prefix_bytes > 0) lines.push_back({"prefix cache", wishes.prefix_bytes, ""});
    const auto add_weights = [&](const char* name, int64_t bytes) {
        lines.push_back({name, bytes, ""});
        plan.other_weight_bytes += bytes;
    };
    add_weights("embedding", embedding_bytes(trunk));
    if (!wishes.on_card) {
        add_weights("dense weights", GpuWeights::bytes_of(trunk));
        const int64_t each = memory::sequence_bytes(trunk.caches, wishes.context);
        lines.push_back({"KV", wishes.kv_bytes > 0 ? wishes.kv_bytes : wishes.sequences * each, ""});
        lines.push_back({"activations", slot_bytes(trunk, wishes.rows), ""});
    }
    if (draft != nullptr) {
        if (!wishes.draft_on_card) add_weights("dense weights, draft", draft_dense_bytes(trunk, *draft));
        add_weights("routed experts, draft", routed_bytes(*draft));
    }
    return plan;
}

void check_weights(const HostMemoryPlan& plan, int64_t experts, int64_t loaded_bytes) {
    const int64_t planned = plan.other_weight_bytes + plan.bytes_of(experts);
    if (std::abs(loaded_bytes - planned) <= std::max(planned / 50, kVectors)) return;
    fail(printed("the weights take %.3f GB of host memory, but were planned with %.3f GB", gb(loaded_bytes),
                 gb(planned)),
         "; `thermocline plan` is wrong about this model: please report it with the output of `thermocline inspect`");
}

}  // namespace thermocline::scheduler
