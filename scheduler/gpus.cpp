#include "scheduler/gpus.h"

#include "cuda/cuda.h"
#include "cuda/emulation/device.h"
#include "scheduler/cpu_executor.h"
#include "scheduler/gpu_executor.h"
#include "scheduler/gpu_layout.h"
#include "scheduler/gpu_weights.h"
#include "scheduler/placement_file.h"
#include "scheduler/routing_profile.h"
#include "src/base/check.h"
#include "src/base/error.h"
#include "src/base/log.h"
#include "src/base/pages.h"

#include <algorithm>
#include <utility>

namespace thermocline::scheduler {

namespace {

std::unique_ptr<cuda::Device> open(const std::string& choice) {
    if (choice == "none" || choice == "0") return nullptr;
    if (choice == "emulated" || choice == "emulated:1") return cuda::emulation::open({});
    if (choice == "1") return cuda::open_device(0);
    fail("--gpus is ", printable(choice),
         ", expected none, 1, emulated or emulated:1 (models are not split over several cards)");
}

bool is_emulated(const cuda::Device& device) { return device.info().name == "emulated"; }

/// Of a card: what the runtime takes for itself does not count against the free memory that it reports.
GpuMemoryReserve reserve_of(const cuda::Device& device) {
    if (is_emulated(device)) return {.runtime_bytes = 0, .library_bytes = 0};
    return {};
}

/// Formats that are not packed are read where the file is mapped.
bool stays_mapped(const ops::Plan& plan) {
    return std::any_of(plan.experts.begin(), plan.experts.end(), [](const ops::ExpertSet& set) {
        return quant::packed_form(set.w1.front()).layout == quant::Layout::kRows;
    });
}

}  // namespace

Gpus::Gpus(GpuWishes wishes) : Gpus(wishes, open(wishes.gpus)) {
    if (!device_) return;
    const cuda::DeviceInfo& info = device_->info();
    log::info("GPU {}: {}, SM{}{}, {:.1f} GB; streams wait for the CPU by {}", info.index, info.name,
              info.compute_major, info.compute_minor, static_cast<double>(info.memory_bytes) * 1e-9,
              cuda::name_of(device_->flag_wait()));
}

Gpus::Gpus(GpuWishes wishes, std::unique_ptr<cuda::Device> device)
    : wishes_(std::move(wishes)), device_(std::move(device)) {
    const std::string& offload = wishes_.offload_experts;
    if (offload != "auto" && offload != "cpu" && offload != "stream" && offload != "none")
        fail("--offload-experts is ", printable(offload), ", expected auto, cpu, stream or none");
    (void)residency_policy(wishes_.residency);
    if (!device_ && offload == "stream")
        fail("--offload-experts stream sends experts through a card, but --gpus is none; use --gpus 1");
    if (!device_ && offload == "none")
        fail("--offload-experts none keeps all experts on a card, but --gpus is none; use --gpus 1");
    for (const auto& [flag, value] : {std::pair{"--placement", &wishes_.placement}, {"--profile", &wishes_.profile}})
        if (!device_ && !value->empty()) fail(flag, " places experts on a card, but --gpus is none; use --gpus 1");
}

Gpus::~Gpus() = default;

double Gpus::memory_read_gb_per_s() const {
    CHECK(any());
    return is_emulated(*device_) ? 0.0 : cuda::measure_memory_read(device_->info().index);
}

std::string Gpus::name() const { return device_ ? device_->info().name : "none"; }

/// Those of --placement, then the likeliest of --profile, and in what room is left any others.
void Gpus::choose_first(const ops::Plan& plan, const std::string& model) {
    const std::vector<RoutedLayer> layers = routed_layers(plan);
    const int64_t slots = tiers_.resident();
    PlacedExperts file;
    if (!wishes_.placement.empty()) file = read_placement(wishes_.placement, model, layers);
    std::vector<ExpertName>& placed = file.resident;
    if (!wishes_.profile.empty()) {
        const RoutingProfile profile = read_routing_profile(wishes_.profile);
        check_model(wishes_.profile, profile.model, profile.layers, model, layers);
        file.shares = shares_of(layers, profile.chosen());
        if (wishes_.placement.empty()) placed = likeliest_experts(file.shares, slots);
    }
    if (std::ssize(placed) > slots)
        fail(printable(wishes_.placement), " places ", placed.size(), " experts, but the card has room for ", slots,
             ": solve it anew for this budget (`thermocline place`), or raise --gpu-memory");
    resident_ = spread_experts(expert_counts(plan), slots, likeliest_first(std::move(placed), file.shares));
    shares_ = std::move(file.shares);
}

GpuMemoryWishes Gpus::card_wishes(const ops::Plan& plan, const ExecutorLimits& limits, int64_t sequences,
                                  bool packed) const {
    GpuMemoryWishes wishes{.budget_bytes = wishes_.memory_bytes,
                           .context = limits.max_tokens,
                           .sequences = sequences,
                           .prefill_chunk = limits.max_rows,
                           .least_prefill_chunk = std::min(limits.max_rows, GpuMemoryWishes{}.least_prefill_chunk),
                           .outputs = limits.max_outputs,
                           .packed = packed};
    if (wishes.budget_bytes == 0)
        wishes.budget_bytes =
            std::min(device_->info().memory_bytes, device_->free_bytes() + reserve_of(*device_).runtime_bytes);
    if (wishes_.offload_experts == "cpu") wishes.most_expert_slots = 0;
    if (wishes_.offload_experts == "none") wishes.least_expert_slots = expert_count(plan);
    return wishes;
}

/// The experts among the memories, once it is known how many slots the card has.
void Gpus::divide(const ops::Plan& plan, const ExecutorLimits& limits, const GpuMemoryWishes& card, const HostUse& host,
                  int64_t sequences) {
    const bool asked = wishes_.host_bytes > 0;
    if (wishes_.host_bytes > total_memory())
        fail("--host-memory is ", wishes_.host_bytes / 1'000'000, " MB, but this machine has ",
             total_memory() / 1'000'000);
    host_plan_ =
        plan_host_memory(plan, host.draft,
                         {.budget_bytes = asked ? wishes_.host_bytes : available_memory() + free_huge_page_memory(),
                          .is_asked = asked,
                          .on_card = any(),
                          .context = limits.max_tokens,
                          .sequences = asked ? sequences : 1,
                          .rows = limits.max_rows,
                          .kv_bytes = host.kv_bytes,
                          .prefix_bytes = host.prefix_bytes});
    if (const std::string refusal = host_plan_.refusal(); !refusal.empty()) fail(refusal);
    const std::string& offload = wishes_.offload_experts;
    const int64_t slots = memory_plan_.expert_slots, room = host_plan_.room();
    tiers_ = divide_experts({.experts = host_plan_.experts,
                             .slots = slots,
                             .host = room,
                             .may_stream = offload == "stream" || offload == "auto"});
    TierRemedy remedy{.expert_bytes = host_plan_.expert_bytes,
                      .host_budget = host_plan_.budget_for(tiers_.experts - tiers_.slots),
                      .readable = host.mapped || stays_mapped(plan)};
    if (remedy.host_budget > total_memory()) remedy.host_budget = 0;
    if (tiers_.file > 0 && device_ && offload != "cpu") {
        GpuMemoryWishes wishes = card;
        wishes.prefill_chunk = memory_plan_.prefill_chunk;
        wishes.least_expert_slots = tiers_.experts - room;
        const int64_t least = least_gpu_budget(plan, nullptr, wishes, reserve_of(*device_));
        if (least <= device_->info().memory_bytes) remedy.card_budget = least;
    }
    const std::string refusal = tier_refusal(tiers_, wishes_.file_experts, remedy);
    if (!refusal.empty()) fail(refusal);
    if (tiers_.core > 0 || tiers_.file > 0)
        log::info("host memory of {:.2f} GB has no room for all routed experts\n{}",
                  static_cast<double>(host_plan_.budget_bytes) * 1e-9, tiers_text(tiers_, host_plan_.expert_bytes));
}

void Gpus::check_stream() const {
    if (wishes_.offload_experts != "stream" || tiers_.ring > 0 || tiers_.slots == tiers_.experts) return;
    fail("--offload-experts stream: the card has room for ", tiers_.slots, " experts",
         tiers_.core > 0 ? ", of which " + std::to_string(tiers_.core) + " are in no other memory" : "",
         ", expected at least ", kLeastStreamed, tiers_.core > 0 ? " others" : "", "; raise --gpu-memory",
         tiers_.core > 0 ? " or --host-memory" : "", ", or use ", tiers_.core > 0 ? "auto" : "cpu");
}

void Gpus::reserve(const ops::Plan& plan, const std::string& model, ExecutorLimits& limits, int64_t sequences,
                   bool packed, const HostUse& host) {
    mapped_ = host.mapped;
    if (!device_) {
        // Without a budget packing says itself what does not fit.
        if (wishes_.host_bytes > 0 || host.mapped) divide(plan, limits, {}, host, sequences);
        return;
    }
    const cuda::DeviceInfo& info = device_->info();
    const GpuMemoryWishes wishes = card_wishes(plan, limits, sequences, packed);
    memory_plan_ = plan_gpu_memory(plan, nullptr, wishes, reserve_of(*device_));
    log::info("GPU {}: memory\n{}", info.index, gpu_memory_text(memory_plan_));
    if (!memory_plan_.refusal.empty()) fail("GPU ", info.index, ": ", memory_plan_.refusal);
    divide(plan, limits, wishes, host, sequences);
    check_stream();
    choose_first(plan, model);
    limits.max_parts = sequences;
    limits.max_rows = std::max(memory_plan_.prefill_chunk, sequences);
    limits.max_outputs = std::min(limits.max_outputs, limits.max_rows);
    sequences_ = sequences;
    const int64_t bytes = memory_plan_.executor_bytes(), free = device_->free_bytes();
    if (bytes > free)
        fail("GPU ", info.index, ": ", bytes >> 20, " MiB are needed, but others have left only ", free >> 20,
             " free; end them, or lower --gpu-memory");
    reserved_ = cuda::DeviceMemory(*device_, bytes);
}

std::vector<const quant::Matrix*> Gpus::card_only(const ops::Plan& plan) const {
    std::vector<const quant::Matrix*> matrices;
    if (!device_) return matrices;
    for (const ops::MatrixId id : GpuWeights::matrices_of(plan))
        matrices.push_back(&plan.matrices[static_cast<size_t>(id)].matrix);
    for (int64_t i = 0; i < tiers_.core; ++i) {
        const ExpertName name = resident_[static_cast<size_t>(i)];
        const ops::ExpertSet& set = plan.experts[static_cast<size_t>(name.set)];
        for (const auto* list : {&set.w1, &set.w3, &set.w2})
            matrices.push_back(&(*list)[static_cast<size_t>(name.expert)]);
    }
    return matrices;
}

/// Experts move only if their memory can be pinned: else every transfer would keep the engine waiting.
ResidencyRules Gpus::rules_for(std::span<std::byte> weights, bool none_moves) {
    using Policy = ResidencyRules::Policy;
    using Streaming = ResidencyRules::Streaming;
    const bool streams = wishes_.offload_experts == "stream";
    ResidencyRules rules{.policy = residency_policy(wishes_.residency),
                         .tries = wishes_.offload_experts == "auto",
                         .balances = wishes_.offload_experts != "none",
                         .core = tiers_.core,
                         .ring = tiers_.ring,
                         .streaming = streams ? Streaming::kAll : Streaming::kShared};
    if (none_moves) return rules;
    try {
        if (weights.empty()) fail("the weights lie in mapped files, which cannot be pinned");
        pin_.emplace(*device_, weights.data(), std::ssize(weights));
    } catch (const Error& error) {
        if (streams) throw;
        rules.streaming = Streaming::kNone;
        if (rules.policy != Policy::kStatic)
            log::warn("the experts on the card stay the same (--residency static): {}", error.what());
        rules.policy = Policy::kStatic;
    }
    return rules;
}

std::unique_ptr<Executor> Gpus::new_executor(const ops::Plan& plan, cpu::Workers& workers,
                                             const cpu::KernelTable& kernels, ExecutorLimits limits,
                                             memory::PackedWeights* packed) {
    if (wishes_.host_bytes > 0 && packed != nullptr) CHECK(packed->bytes() <= host_plan_.budget_bytes);
    return new_executor(plan, workers, kernels, limits, packed != nullptr ? packed->memory() : std::span<std::byte>(),
                        packed);
}

std::unique_ptr<Executor> Gpus::new_executor(const ops::Plan& plan, cpu::Workers& workers,
                                             const cpu::KernelTable& kernels, ExecutorLimits limits,
                                             std::span<std::byte> weights, memory::PackedWeights* packed) {
    if (!device_) return std::make_unique<CpuExecutor>(plan, workers, kernels, limits);
    CHECK(card_bytes(plan, limits, sequences_, tiers_.slots).all() <= reserved_.bytes());
    const bool none_moves = tiers_.core == tiers_.slots || tiers_.slots == tiers_.experts;
    auto executor = std::make_unique<GpuExecutor>(plan, *device_, workers, kernels, limits, sequences_, resident_,
                                                  rules_for(weights, none_moves), std::move(reserved_), packed);
    if (mapped_)
        for (const quant::Matrix* matrix : card_only(plan)) release_pages(matrix->data, matrix->bytes());
    if (!shares_.empty() && executor->movable_slots() > 0) executor->order({.shares = shares_});
    if (is_emulated(*device_)) executor->set_patience(std::chrono::minutes(2), std::chrono::minutes(10));  // far slower
    return executor;
}

}  // namespace thermocline::scheduler
