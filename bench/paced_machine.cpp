#include "bench/paced_machine.h"

#include "cuda/emulation/device.h"
#include "cuda/kernels/list.h"
#include "scheduler/cost_model.h"
#include "scheduler/gpu_experts.h"
#include "scheduler/machine_file.h"
#include "scheduler/printed.h"
#include "src/base/error.h"
#include "src/model/registry.h"
#include "src/quant/strips.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cmath>
#include <limits>
#include <optional>
#include <random>
#include <set>
#include <thread>

namespace thermocline {

namespace {

using namespace scheduler;

constexpr int64_t kHidden = 256, kIntermediate = 128, kVocab = 4096;
constexpr double kNumbers = 3.0 * kHidden * kIntermediate;  // of an expert

/// What the CPU's products wait for. Short waits are added up: none is as short as a thread can sleep.
struct CpuPace {
    double expert = 0, pair = 0;  // seconds
    double owed = 0;              // likewise
} cpu_pace;

void wait_for_product(const quant::Matrix& w, int64_t, int64_t count, const float*, int64_t, int64_t m, float* y,
                      int64_t y_stride) noexcept {
    for (int64_t i = 0; i < m; ++i) std::fill_n(y + i * y_stride, count, 0.0f);
    const double share = static_cast<double>(count * w.cols) / kNumbers;
    cpu_pace.owed += share * std::max(cpu_pace.expert, static_cast<double>(m) * cpu_pace.pair);
    if (cpu_pace.owed < 1e-4) return;
    const auto began = std::chrono::steady_clock::now();
    std::this_thread::sleep_for(std::chrono::duration<double>(cpu_pace.owed));
    cpu_pace.owed -= std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
}

/// As ListPairs; WhatWouldMakeTheCardTheLongerSideIsLeftToTheCpu of tests/scheduler says what R2 leaves to the CPU.
void list_pairs(const cuda::ListPairs& k) {
    std::vector<int32_t> counts(static_cast<size_t>(k.experts)), here;
    for (int64_t i = 0; i < k.pairs; ++i) ++counts[static_cast<size_t>(k.ids[i])];
    const auto count_of = [&](int32_t e) { return counts[static_cast<size_t>(e)]; };
    std::copy_n(k.slot_of, k.experts, k.out.taken);
    const auto cpu_cost = [&](int32_t e) {
        return std::max(k.balance.cpu_expert, static_cast<float>(count_of(e)) * k.balance.cpu_pair);
    };
    float cpu = k.balance.cpu_rest;
    bool any = false;
    for (int32_t e = k.experts; e-- > 0;) {
        if (count_of(e) == 0) continue;
        if (k.slot_of[e] >= 0)
            here.push_back(e);
        else
            cpu += cpu_cost(e), any = true;
    }
    std::ranges::stable_sort(here, {}, count_of);
    float card = k.balance.card_rest + static_cast<float>(here.size()) * k.balance.card_expert;
    for (const int32_t e : here) {
        if (k.balance.card_expert <= 0.0f) break;
        if (std::max(card - k.balance.card_expert, cpu + cpu_cost(e)) >= std::max(card, any ? cpu : 0.0f)) break;
        k.out.taken[e] = -1;
        card -= k.balance.card_expert;
        cpu += cpu_cost(e);
        any = true;
    }
    std::vector<int32_t> next(static_cast<size_t>(k.experts));
    int32_t listed = 0, pair = 0;
    for (int32_t e = 0; e < k.experts; ++e) {
        next[static_cast<size_t>(e)] = pair;
        if (k.out.taken[e] < 0 || count_of(e) == 0) continue;
        k.out.slots[listed] = k.out.taken[e];
        k.out.begin[listed++] = pair;
        pair += count_of(e);
    }
    k.out.begin[listed] = pair;
    k.out.count[0] = listed;
    k.out.count[1] = static_cast<int32_t>(k.pairs) - pair;
    for (int64_t i = 0; i < k.pairs; ++i)
        if (k.out.taken[k.ids[i]] >= 0) k.out.pairs[next[static_cast<size_t>(k.ids[i])]++] = static_cast<int32_t>(i);
}

void send_job(const cuda::SendJob& k, int64_t rows) {
    for (int64_t i = 0; i < rows * k.top_k; ++i) {
        k.chosen[i] = k.ids[i];
        k.host_ids[i] = k.slot_of == nullptr || k.slot_of[k.ids[i]] < 0 ? k.ids[i] : -1;
        k.host_weights[i] = k.weights[i];
    }
}

void raise(const cuda::RaiseJob& k) {
    const bool nothing = k.pairs_left != nullptr && *k.pairs_left == 0;
    const auto store = [](cuda::Flag* flag, uint64_t value) {
        std::atomic_ref<uint64_t>(flag->value).store(value, std::memory_order_release);
    };
    if (nothing) store(k.done, 1);
    store(k.job, nothing ? cuda::kNothingToDo : cuda::kJob);
}

template <typename... Kernels>
bool is_one_of(int kernel, cuda::KernelList<Kernels...>) {
    return ((kernel == cuda::Kernels::index_of<Kernels>()) || ...);
}

/// For each row `top_k` different experts, the more popular ones more often.
std::vector<int32_t> routes(int64_t experts, int32_t top_k, double skew, std::mt19937& random) {
    std::vector<double> weights(static_cast<size_t>(experts));
    for (size_t i = 0; i < weights.size(); ++i) weights[i] = 1.0 / std::pow(static_cast<double>(i + 1), skew);
    std::shuffle(weights.begin(), weights.end(), random);
    std::discrete_distribution<int32_t> draw(weights.begin(), weights.end());
    std::vector<int32_t> values;
    for (int64_t token = 0; token < kVocab; ++token) {
        std::set<int32_t> chosen;
        while (std::ssize(chosen) < top_k) chosen.insert(draw(random));
        values.insert(values.end(), chosen.begin(), chosen.end());
    }
    return values;
}

}  // namespace

PacedMachine::PacedMachine(const PacedFlags& flags) : flags_(flags) {
    const MachineDescription machine = read_machine(flags.machine);
    if (machine.gpus.empty()) fail(printable(flags.machine), ": has no GPU");
    model::LoadOptions options;
    options.format = model::LoadFormat::kOutline;
    const auto model = model::load_model(flags.model, options);
    const TokenWork work = token_work(model->trunk, 8192);
    const Rates rates = rates_of(machine, &machine.gpus.front(), Outlook::kTarget);
    if (rates.gpu_flops <= 0 || rates.cpu_flops <= 0 || rates.link <= 0)
        fail(printable(flags.machine), ": does not say how fast CPU, GPU and link are");
    const double slower = flags.slower;
    const double routed = work.layers * work.top_k * work.expert_flops;
    seconds_.dense =
        slower * (rates.layer_overhead + (work.dense_bytes + work.shared_bytes) / work.layers / rates.gpu_dense);
    seconds_.dense_row = slower * (work.flops - routed) / work.layers / rates.gpu_flops;
    seconds_.card_expert = slower * work.expert_bytes / rates.gpu_expert;
    seconds_.card_pair = slower * work.expert_flops / rates.gpu_flops;
    seconds_.handoff = slower * rates.handoff;
    seconds_.link = slower * work.expert_bytes / rates.link;
    cpu_expert_ = slower * work.expert_bytes / rates.dram;
    cpu_pair_ = slower * work.expert_flops / rates.cpu_flops;
    cpu_pace = {cpu_expert_, cpu_pair_};
    kernels_ = cpu::select_kernels("auto");
    kernels_.matmul = kernels_.matmul_int8 = wait_for_product;
    kernels_.matmul_bf16 = kernels_.matmul_fixed = kernels_.matmul_parts = nullptr;
    kernels_.put_in_panel = nullptr;
    make_plan(flags, work.experts, work.top_k);
}

/// Layer after layer the router reads what the one before wrote, as if these were its scores, so that steps come in
/// this order. All experts share their weights.
void PacedMachine::make_plan(const PacedFlags& flags, int64_t experts, int32_t top_k) {
    std::mt19937 random(1);
    const auto packed = [](int64_t rows, int64_t cols) {
        quant::Matrix matrix;
        matrix.format = quant::Format::kE2M1Pair;
        matrix.rows = rows;
        matrix.cols = cols;
        matrix.row_bytes = cols / 2;
        matrix.scale_format = quant::Format::kE8M0;
        matrix.scale_cols = 32;
        matrix.scale_stride = cols / 32;
        matrix.scales = reinterpret_cast<const std::byte*>(&kHidden);  // some; they are not looked at
        matrix.data = matrix.scales;
        return quant::packed_form(matrix);
    };
    quant::Matrix w1 = packed(kIntermediate, kHidden), w2 = packed(kHidden, kIntermediate);
    const auto bytes_of = [](const quant::Matrix& w) {
        return static_cast<size_t>(w.rows / quant::kStripRows * w.strip_bytes);
    };
    weights_.resize(std::max(bytes_of(w1), bytes_of(w2)));
    w1.data = w2.data = weights_.data();
    embeddings_.resize(static_cast<size_t>(kVocab * kHidden * 4));
    quant::Matrix table;
    table.rows = kVocab;
    table.cols = kHidden;
    table.data = embeddings_.data();
    table.row_bytes = kHidden * 4;

    plan_.name = "paced";
    plan_.vocab = kVocab;
    plan_.matrices = {{"embed", table}};
    const auto tokens = ops::Rows::kTokens;
    plan_.slots = {{"a", experts, tokens}, {"b", experts, tokens}, {"ids", top_k, tokens}, {"weights", top_k, tokens}};
    if (experts != kHidden) fail("the paced machine is for models with ", kHidden, " experts a layer");
    plan_.steps = {ops::Embed{0, 0, 1}};
    ops::Slot in = 0, out = 1;
    for (int32_t layer = 0; layer < flags.layers; ++layer, std::swap(in, out)) {
        plan_.tables.push_back({"routes", routes(experts, top_k, flags.skew, random), {kVocab, top_k}});
        const auto count = static_cast<size_t>(experts);
        plan_.experts.push_back({"experts." + std::to_string(layer), kHidden, kIntermediate, std::vector(count, w1),
                                 std::vector(count, w2), std::vector(count, w1)});
        plan_.steps.push_back(ops::Route{in, ops::kNone, layer, 2, 3, static_cast<int32_t>(experts), top_k, 1, true});
        plan_.steps.push_back(ops::Experts{in, 2, 3, layer, out, top_k, std::numeric_limits<float>::infinity(),
                                           ops::InputRounding::kExact});
        plan_.steps.push_back(ops::Add{out, in, 1});
    }
    ops::verify(plan_);
}

double PacedMachine::route(const cuda::Grid& grid, const void* members) const {
    const auto& k = *static_cast<const cuda::Route*>(members);
    for (int64_t t = 0; t < grid.x; ++t) {
        std::copy_n(k.table + int64_t{k.tokens[t]} * k.top_k, k.top_k, k.ids + t * k.top_k);
        std::fill_n(k.weights + t * k.top_k, k.top_k, 1.0f / static_cast<float>(k.top_k));
    }
    return std::max(seconds_.dense, static_cast<double>(grid.x) * seconds_.dense_row);
}

std::unique_ptr<cuda::Device> PacedMachine::open() const {
    const auto kernel_time = [this](int kernel, const cuda::Grid& grid, const void* members) -> std::optional<double> {
        using cuda::Kernels;
        if (kernel == Kernels::index_of<cuda::Route>()) return route(grid, members);
        if (kernel == Kernels::index_of<cuda::ListPairs>()) {
            list_pairs(*static_cast<const cuda::ListPairs*>(members));
        } else if (kernel == Kernels::index_of<cuda::SendJob>()) {
            send_job(*static_cast<const cuda::SendJob*>(members), grid.x);
            return seconds_.handoff;
        } else if (kernel == Kernels::index_of<cuda::RaiseJob>()) {
            raise(*static_cast<const cuda::RaiseJob*>(members));
        } else if (is_one_of(kernel, cuda::PackedKernels<cuda::PairKernels>())) {
            const auto& k = *static_cast<const cuda::PairsProduct*>(members);
            double seconds = 0;
            for (int32_t i = 0; i < k.lists.count[0]; ++i)
                seconds += std::max(seconds_.card_expert,
                                    static_cast<double>(k.lists.begin[i + 1] - k.lists.begin[i]) * seconds_.card_pair);
            return seconds * static_cast<double>(k.matrices) / 3.0;
        }
        return 0.0;
    };
    const auto copy_time = [this](const void* from, int64_t bytes) {
        const auto* weights = static_cast<const std::byte*>(from);
        const bool of_expert = weights >= weights_.data() && weights < weights_.data() + weights_.size();
        return of_expert
                   ? seconds_.link * static_cast<double>(bytes) / static_cast<double>(GpuExperts::slot_bytes(plan_))
                   : 0.0;
    };
    return cuda::emulation::open({}, {kernel_time, copy_time});
}

std::string PacedMachine::text() const {
    const auto us = [&](double seconds) { return 1e6 * seconds / flags_.slower; };
    return printed(
        "%s, %s, %lld layers, all times %.0f-fold: a layer's dense steps %.1f us (%.2f us a row), an expert on the "
        "card "
        "%.1f us (%.2f us a row), on the CPU %.1f us (%.2f us a row), over the link %.1f us",
        flags_.machine.c_str(), flags_.model.c_str(), static_cast<long long>(flags_.layers), flags_.slower,
        us(seconds_.dense), us(seconds_.dense_row), us(seconds_.card_expert), us(seconds_.card_pair), us(cpu_expert_),
        us(cpu_pair_), us(seconds_.link));
}

}  // namespace thermocline
