#include "scheduler/gpu_memory.h"

#include "cuda/device.h"
#include "cuda/weights.h"
#include "memory/sequence_cache.h"
#include "scheduler/gpu_experts.h"
#include "scheduler/gpu_layout.h"
#include "scheduler/gpu_weights.h"
#include "scheduler/printed.h"
#include "scheduler/recorded_passes.h"
#include "src/base/error.h"
#include "src/quant/strips.h"

#include <algorithm>
#include <numeric>
#include <set>

namespace thermocline::scheduler {

namespace {

constexpr int64_t kMaxTokens = int64_t{1} << 31, kMaxSequences = 1 << 16, kMaxRows = 1 << 24;
constexpr int64_t kMaxBudget = int64_t{1} << 50;

std::string mb(int64_t bytes) { return printed("%.3f MB", static_cast<double>(bytes) * 1e-6); }
std::string gb(int64_t bytes) {
    return bytes < 100'000'000 ? mb(bytes) : printed("%.2f GB", static_cast<double>(bytes) * 1e-9);
}

/// Of the matrices that `draft` and the trunk share, such as the head.
int64_t shared_bytes(const ops::Plan& trunk, const ops::Plan& draft) {
    std::set<const std::byte*> seen;
    int64_t total = 0;
    for (const ops::Plan* plan : {&trunk, &draft})
        for (const ops::Step& step : plan->steps) {
            const auto* linear = std::get_if<ops::Linear>(&step);
            if (linear == nullptr) continue;
            const quant::Matrix& matrix = plan->matrices[static_cast<size_t>(linear->weight)].matrix;
            if (!seen.insert(matrix.data).second && plan == &draft) total += cuda::placed_bytes(matrix);
        }
    return total;
}

struct Claim {
    const ops::Plan& trunk;
    const ops::Plan* draft;
    const GpuMemoryWishes& wishes;
    const GpuMemoryReserve& reserve;

    int64_t workspace(const ops::Plan& plan, int64_t rows, bool with_experts = false) const {
        const ExecutorLimits limits{.max_rows = rows,
                                    .max_outputs = std::min(rows, wishes.outputs),
                                    .max_tokens = wishes.context,
                                    .max_parts = wishes.sequences};
        return WorkspaceLayout(nullptr, plan, limits, with_experts).bytes;
    }
    int64_t rows() const { return std::max(wishes.prefill_chunk, wishes.sequences); }
    int64_t pairs_workspace() const { return workspace(trunk, rows(), true) - workspace(trunk, rows()); }
    /// What experts on the card take besides their slots.
    int64_t experts_workspace(int64_t slots) const {
        if (slots == 0) return 0;
        return pairs_workspace() + GpuExperts::bytes_of(trunk, slots) - slots * GpuExperts::slot_bytes(trunk);
    }
    /// Passes of the draft head come after those of the trunk and use its workspace again, but for the residual
    /// streams that they begin with.
    int64_t draft_bytes(int64_t rows) const {
        const int64_t streams = cuda::aligned(rows * trunk.slots[static_cast<size_t>(trunk.streams)].cols * 4);
        return draft_dense_bytes(trunk, *draft) + streams +
               std::max<int64_t>(0, workspace(*draft, rows) - workspace(trunk, rows)) +
               wishes.sequences * sequence_kv(*draft, wishes.context).bytes();
    }

    void add_kv(std::vector<GpuMemoryLine>& lines) const {
        const SequenceKv kv = sequence_kv(trunk, wishes.context);
        const auto add = [&](const char* name, const KvUse& use) {
            if (use.bytes == 0) return;
            lines.push_back({name, wishes.sequences * use.bytes,
                             printed("%lld sequences x %s in %lld pages", static_cast<long long>(wishes.sequences),
                                     mb(use.bytes).c_str(), static_cast<long long>(use.pages))});
        };
        add("KV: windows", kv.windows);
        add("KV: compressor states", kv.states);
        add("KV: compressed entries", kv.entries);
        add("KV: index keys", kv.keys);
    }

    /// In the order in which they are granted.
    std::vector<GpuMemoryLine> lines() const {
        std::vector<GpuMemoryLine> lines;
        lines.push_back({"CUDA context, code, graphs", reserve.runtime_bytes,
                         printed("graphs of %zu kinds of passes at most", kMostGraphs), false});
        if (reserve.library_bytes > 0) lines.push_back({"library workspaces", reserve.library_bytes, "", false});
        lines.push_back({"safety", wishes.budget_bytes * reserve.safety_per_mille / 1000,
                         printed("%.1f %%", static_cast<double>(reserve.safety_per_mille) * 0.1), false});
        lines.push_back({"dense weights", GpuWeights::bytes_of(trunk), "the embedding stays in host memory"});
        const int64_t decode = workspace(trunk, wishes.sequences);
        lines.push_back({"workspace: decode", decode, printed("%lld rows", static_cast<long long>(wishes.sequences))});
        lines.push_back(
            {"workspace: prefill", workspace(trunk, rows()) - decode,
             printed("chunks of %lld tokens, beyond decode", static_cast<long long>(wishes.prefill_chunk))});
        add_kv(lines);
        if (draft != nullptr)
            lines.push_back(
                {"draft head", draft_bytes(rows()), "dense part, streams, KV; its experts stay in host memory"});
        return lines;
    }
};

int64_t sum_of(const std::vector<GpuMemoryLine>& lines) {
    return std::accumulate(lines.begin(), lines.end(), int64_t{0},
                           [](int64_t sum, const GpuMemoryLine& line) { return sum + line.bytes; });
}

/// What must fit: all lines and the least number of experts.
int64_t needed(const Claim& claim) {
    const int64_t slots = claim.wishes.least_expert_slots;
    return sum_of(claim.lines()) + claim.experts_workspace(slots) + slots * GpuExperts::slot_bytes(claim.trunk);
}

/// The largest value in [1, most] of a wish with which everything fits; 0: none.
int64_t largest_fitting(const Claim& claim, int64_t GpuMemoryWishes::*wish, int64_t most) {
    int64_t fits = 0;
    while (fits < most) {
        const int64_t middle = fits + (most - fits + 1) / 2;
        GpuMemoryWishes wishes = claim.wishes;
        wishes.*wish = middle;
        if (needed({claim.trunk, claim.draft, wishes, claim.reserve}) <= wishes.budget_bytes)
            fits = middle;
        else
            most = middle - 1;
    }
    return fits;
}

/// The least budget, safety included.
int64_t least_budget(const Claim& claim) {
    const int64_t without_safety = needed(claim) - claim.wishes.budget_bytes * claim.reserve.safety_per_mille / 1000;
    return without_safety * 1000 / (1000 - claim.reserve.safety_per_mille) + 1;
}

/// The first line that does not fit, by how much, and what to change.
std::string refusal_of(const Claim& claim) {
    const GpuMemoryWishes& wishes = claim.wishes;
    std::vector<GpuMemoryLine> lines = claim.lines();
    if (wishes.least_expert_slots > 0)
        lines.push_back({printed("%lld expert slots", static_cast<long long>(wishes.least_expert_slots)),
                         claim.experts_workspace(wishes.least_expert_slots) +
                             wishes.least_expert_slots * GpuExperts::slot_bytes(claim.trunk),
                         ""});
    int64_t granted = 0;
    auto line = lines.begin();
    while (granted + line->bytes <= wishes.budget_bytes) granted += (line++)->bytes;
    std::string text = "--gpu-memory of " + gb(wishes.budget_bytes) + ": " + line->name + " of " + gb(line->bytes) +
                       " is " + gb(granted + line->bytes - wishes.budget_bytes) + " more than is left";
    std::string remedy =
        printed("--gpu-memory %lldMiB at least", static_cast<long long>((least_budget(claim) + (1 << 20) - 1) >> 20));
    const int64_t context = largest_fitting(claim, &GpuMemoryWishes::context, wishes.context);
    const int64_t sequences = largest_fitting(claim, &GpuMemoryWishes::sequences, wishes.sequences);
    if (sequences > 0) remedy = printed("--max-num-seqs %lld at most, or ", static_cast<long long>(sequences)) + remedy;
    if (context > 0) remedy = printed("--max-model-len %lld at most, or ", static_cast<long long>(context)) + remedy;
    return text + "; use " + remedy;
}

/// The plan as it will be when its matrices have been packed; what they point to stays.
ops::Plan as_packed(const ops::Plan& plan) {
    ops::Plan packed = plan;
    const auto pack = [](quant::Matrix& matrix) {
        if (matrix.layout != quant::Layout::kRows) return;
        const std::byte* data = matrix.data;
        matrix = quant::packed_form(matrix);
        matrix.data = data;
    };
    for (ops::NamedMatrix& named : packed.matrices) pack(named.matrix);
    for (ops::ExpertSet& set : packed.experts)
        for (auto* matrices : {&set.w1, &set.w2, &set.w3}) std::ranges::for_each(*matrices, pack);
    return packed;
}

void check_range(const char* what, int64_t value, int64_t low, int64_t high) {
    if (value < low || value > high) fail(what, " is ", value, ", expected ", low, " to ", high);
}

}  // namespace

int64_t GpuMemoryPlan::fixed_bytes() const { return sum_of(lines); }

int64_t GpuMemoryPlan::executor_bytes() const {
    int64_t bytes = expert_slots * slot_bytes;
    for (const GpuMemoryLine& line : lines)
        if (line.of_executor) bytes += line.bytes;
    return bytes;
}

int64_t expert_count(const ops::Plan& plan) {
    int64_t count = 0;
    for (const ops::ExpertSet& set : plan.experts) count += static_cast<int64_t>(set.w1.size());
    return count;
}

int64_t ring_slots(int64_t slots, int64_t experts) {
    // An eighth of them, but three on their way and one in use, or a sixteenth of many: as many as come while the card
    // is busy with other things of a layer, so that the link need not wait (bench/results).
    const int64_t most = std::clamp<int64_t>(slots / 16, 24, cuda::kMostRing);
    return slots < experts && slots >= kLeastStreamed ? std::clamp<int64_t>(slots / 8, 4, most) : 0;
}

int64_t expert_slot_bytes(const ops::Plan& plan) { return GpuExperts::slot_bytes(as_packed(plan)); }

SequenceKv sequence_kv(const ops::Plan& plan, int64_t tokens) {
    SequenceKv kv;
    std::vector<KvUse*> use_of(plan.caches.size(), &kv.entries);
    for (const ops::Step& step : plan.steps) {
        if (const auto* store = std::get_if<ops::StoreWindow>(&step))
            use_of[static_cast<size_t>(store->window_cache)] = &kv.windows;
        if (const auto* compress = std::get_if<ops::Compress>(&step))
            use_of[static_cast<size_t>(compress->state)] = &kv.states;
        if (const auto* select = std::get_if<ops::SelectEntries>(&step))
            use_of[static_cast<size_t>(select->keys)] = &kv.keys;
    }
    const std::vector<memory::PageCount> counts = memory::page_counts(plan.caches, tokens);
    for (size_t i = 0; i < counts.size(); ++i) {
        use_of[i]->pages += counts[i].pages;
        use_of[i]->bytes += counts[i].pages * cuda::aligned(counts[i].page_bytes);
    }
    return kv;
}

GpuMemoryPlan plan_gpu_memory(const ops::Plan& trunk_as_it_lies, const ops::Plan* draft_as_it_lies,
                              const GpuMemoryWishes& wishes, const GpuMemoryReserve& reserve) {
    const auto packed = [&](const ops::Plan& plan) { return wishes.packed ? as_packed(plan) : plan; };
    const ops::Plan trunk = packed(trunk_as_it_lies);
    const ops::Plan draft_plan = draft_as_it_lies != nullptr ? packed(*draft_as_it_lies) : ops::Plan();
    const ops::Plan* draft = draft_as_it_lies != nullptr ? &draft_plan : nullptr;
    check_range("--gpu-memory", wishes.budget_bytes, 1, kMaxBudget);
    check_range("--max-model-len", wishes.context, 1, kMaxTokens);
    check_range("--max-num-seqs", wishes.sequences, 1, kMaxSequences);
    check_range("the prefill chunk", wishes.prefill_chunk, 1, kMaxRows);
    check_range("the number of outputs", wishes.outputs, 1, kMaxRows);
    check_range("the least number of expert slots", wishes.least_expert_slots, 0, expert_count(trunk));

    GpuMemoryPlan plan;
    GpuMemoryWishes granted = wishes;
    const auto claim = [&] { return Claim{trunk, draft, granted, reserve}; };
    const auto fits = [&] { return needed(claim()) <= granted.budget_bytes; };
    if (draft != nullptr && !fits()) {
        plan.given_up.push_back("the draft head, " +
                                gb(claim().draft_bytes(std::max(granted.prefill_chunk, granted.sequences))));
        draft = nullptr;
    }
    while (granted.prefill_chunk > wishes.least_prefill_chunk && !fits())
        granted.prefill_chunk = std::max(wishes.least_prefill_chunk, granted.prefill_chunk / 2);
    if (granted.prefill_chunk < wishes.prefill_chunk)
        plan.given_up.push_back(printed("prompts in chunks of %lld tokens instead of %lld",
                                        static_cast<long long>(granted.prefill_chunk),
                                        static_cast<long long>(wishes.prefill_chunk)));

    plan.budget_bytes = granted.budget_bytes;
    plan.lines = claim().lines();
    plan.slot_bytes = GpuExperts::slot_bytes(trunk);
    plan.experts = expert_count(trunk);
    plan.prefill_chunk = granted.prefill_chunk;
    plan.draft_heads = draft != nullptr;
    if (!fits()) plan.refusal = refusal_of(claim());
    plan.no_experts = GpuExperts::why_not(trunk);
    if (!plan.no_experts.empty() && wishes.least_expert_slots > 0)
        plan.refusal = "experts cannot lie on the card: " + plan.no_experts + "; use --offload-experts cpu";
    const int64_t most = plan.no_experts.empty() ? std::min(plan.experts, wishes.most_expert_slots) : 0;
    const auto left = [&] { return std::max<int64_t>(0, granted.budget_bytes - plan.fixed_bytes()); };
    if (plan.slot_bytes > 0 && most > 0)
        plan.expert_slots = std::min(most, GpuExperts::slots_in(trunk, left() - claim().pairs_workspace()));
    if (plan.expert_slots > 0)
        plan.lines.push_back({"workspace: experts", claim().experts_workspace(plan.expert_slots),
                              "vectors and sums of rows and experts, tables"});
    plan.unused_bytes = left() - plan.expert_slots * plan.slot_bytes;
    return plan;
}

int64_t draft_dense_bytes(const ops::Plan& trunk, const ops::Plan& draft) {
    return GpuWeights::bytes_of(draft) - shared_bytes(trunk, draft);
}

int64_t least_gpu_budget(const ops::Plan& trunk, const ops::Plan* draft, const GpuMemoryWishes& wishes,
                         const GpuMemoryReserve& reserve) {
    const ops::Plan packed = wishes.packed ? as_packed(trunk) : trunk, packed_draft = draft == nullptr ? ops::Plan()
                                                                                      : wishes.packed
                                                                                          ? as_packed(*draft)
                                                                                          : *draft;
    return least_budget({packed, draft == nullptr ? nullptr : &packed_draft, wishes, reserve});
}

std::string gpu_memory_text(const GpuMemoryPlan& plan) {
    std::vector<GpuMemoryLine> rows = plan.lines;
    if (plan.slot_bytes > 0) {
        const double share = 100.0 * static_cast<double>(plan.expert_slots) / static_cast<double>(plan.experts);
        rows.push_back({"expert slots", plan.expert_slots * plan.slot_bytes,
                        plan.no_experts.empty()
                            ? printed("%lld x %s: %.1f %% of %lld experts", static_cast<long long>(plan.expert_slots),
                                      mb(plan.slot_bytes).c_str(), share, static_cast<long long>(plan.experts))
                            : "none: " + plan.no_experts});
    }
    rows.push_back({"unused", plan.unused_bytes, ""});
    rows.push_back({"budget", plan.budget_bytes, ""});
    size_t width = 0;
    for (const GpuMemoryLine& row : rows) width = std::max(width, row.name.size());
    std::string text;
    for (const GpuMemoryLine& row : rows)
        text += printed("%-*s %8.3f GB%s%s\n", static_cast<int>(width), row.name.c_str(),
                        static_cast<double>(row.bytes) * 1e-9, row.detail.empty() ? "" : "  ", row.detail.c_str());
    for (const std::string& clause : plan.given_up) text += "given up: " + clause + "\n";
    if (!plan.refusal.empty()) text += "does not fit: " + plan.refusal + "\n";
    return text;
}

}  // namespace thermocline::scheduler
