#include "scheduler/gpus.h"

#include "cuda/cuda.h"
#include "cuda/emulation/device.h"
#include "cuda/hung.h"
#include "cuda/watched.h"
#include "scheduler/bandwidth.h"
#include "scheduler/cpu_executor.h"
#include "scheduler/gpu_executor.h"
#include "scheduler/gpu_layout.h"
#include "scheduler/gpu_report.h"
#include "scheduler/gpu_weights.h"
#include "scheduler/placement_file.h"
#include "scheduler/printed.h"
#include "scheduler/routing_profile.h"
#include "scheduler/split_executor.h"
#include "src/base/check.h"
#include "src/base/error.h"
#include "src/base/log.h"
#include "src/base/pages.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <string_view>
#include <utility>

namespace thermocline::scheduler {

namespace {

std::vector<std::unique_ptr<cuda::Device>> open(const GpuWishes& wishes) {
    const GpuChoice choice = gpu_choice(wishes.gpus);
    cuda::emulation::Config emulated = wishes.emulated;
    std::vector<std::unique_ptr<cuda::Device>> devices;
    for (emulated.index = 0; emulated.index < choice.cards; ++emulated.index)
        devices.push_back(choice.emulated ? cuda::watched(cuda::emulation::open(emulated), emulated.end_patience)
                                          : cuda::watched(cuda::open_device(emulated.index), cuda::kEndPatience));
    return devices;
}

std::vector<std::unique_ptr<cuda::Device>> list_of(std::unique_ptr<cuda::Device> device) {
    std::vector<std::unique_ptr<cuda::Device>> devices;
    if (device) devices.push_back(std::move(device));
    return devices;
}

constexpr int kMostCards = 64;

bool is_emulated(const cuda::Device& device) { return device.info().name == "emulated"; }

/// Functions of the host may be called one at a time for all streams of a card: the wait of one for what another brings
/// would keep that other one waiting.
bool waits_in_streams(const cuda::Device& device) { return device.flag_wait() != cuda::FlagWait::kHostFunction; }

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

GpuChoice gpu_choice(const std::string& text) {
    GpuChoice choice;
    if (text == "none" || text == "0") return choice;
    std::string_view count = text;
    if (count.rfind("emulated", 0) == 0) {
        choice.emulated = true;
        count.remove_prefix(std::string_view("emulated").size());
        if (count.empty()) count = ":1";
        if (count.front() != ':')
            count = "";
        else
            count.remove_prefix(1);
    }
    const auto [rest, error] = std::from_chars(count.data(), count.data() + count.size(), choice.cards);
    if (count.empty() || error != std::errc() || rest != count.data() + count.size() || choice.cards < 1 ||
        choice.cards > kMostCards)
        fail("--gpus is ", printable(text), ", expected none, 1 to ", kMostCards, ", emulated or emulated:N");
    return choice;
}

Gpus::Gpus(GpuWishes wishes) : Gpus(wishes, open(wishes)) {
    for (const Card& card : cards_) {
        const cuda::DeviceInfo& info = card.device->info();
        log::info("GPU {}: {}, SM{}{}, {:.1f} GB; streams wait for the CPU by {}", info.index, info.name,
                  info.compute_major, info.compute_minor, static_cast<double>(info.memory_bytes) * 1e-9,
                  cuda::name_of(card.device->flag_wait()));
    }
}

Gpus::Gpus(GpuWishes wishes, std::unique_ptr<cuda::Device> device)
    : Gpus(std::move(wishes), list_of(std::move(device))) {}

Gpus::Gpus(GpuWishes wishes, std::vector<std::unique_ptr<cuda::Device>> devices) : wishes_(std::move(wishes)) {
    for (auto& device : devices) cards_.push_back({.device = std::move(device)});
    const std::string& offload = wishes_.offload_experts;
    if (offload != "auto" && offload != "cpu" && offload != "stream" && offload != "none")
        fail("--offload-experts is ", printable(offload), ", expected auto, cpu, stream or none");
    if (wishes_.deterministic && offload == "stream")
        fail(
            "--offload-experts stream sends experts through a card, but --deterministic leaves them where they are; "
            "use cpu, none or auto");
    (void)residency_policy(wishes_.residency);
    if (wishes_.prefetch != "auto" && wishes_.prefetch != "off")
        fail("--prefetch is ", printable(wishes_.prefetch), ", expected auto or off");
    if (wishes_.library != "auto" && wishes_.library != "off")
        fail("--gpu-library is ", printable(wishes_.library), ", expected auto or off");
    if (!any() && offload == "stream")
        fail("--offload-experts stream sends experts through a card, but --gpus is none; use --gpus 1");
    if (!any() && offload == "none")
        fail("--offload-experts none keeps all experts on a card, but --gpus is none; use --gpus 1");
    for (const auto& [flag, value] : {std::pair{"--placement", &wishes_.placement}, {"--profile", &wishes_.profile}})
        if (!any() && !value->empty()) fail(flag, " places experts on a card, but --gpus is none; use --gpus 1");
    if (!any() && wishes_.memory_bytes > 0) fail("--gpu-memory is of a card, but --gpus is none; use --gpus 1");
    if (!any() && wishes_.residency != GpuWishes{}.residency)
        fail("--residency ", wishes_.residency, " moves experts on a card, but --gpus is none; use --gpus 1");
    for (const auto& [flag, count] :
         {std::pair{"--gpu-memory", wishes_.card_memory.size()}, {"--layer-split", wishes_.layer_split.size()}})
        if (count != 0 && count != cards_.size())
            fail(flag, " has ", count, " values, expected one for each of ", cards_.size(), " cards (--gpus)");
}

Gpus::~Gpus() = default;

double Gpus::memory_read_gb_per_s() const {
    CHECK(any());
    double slowest = std::numeric_limits<double>::infinity();
    for (const Card& card : cards_)
        slowest =
            std::min(slowest, is_emulated(*card.device) ? 0.0 : cuda::measure_memory_read(card.device->info().index));
    return slowest;
}

std::string Gpus::name() const {
    std::string text;
    for (const Card& card : cards_) text += (text.empty() ? "" : " + ") + card.device->info().name;
    return any() ? text : "none";
}

int64_t Gpus::budget_of(size_t card) const {
    const int64_t asked = wishes_.card_memory.empty() ? wishes_.memory_bytes : wishes_.card_memory[card];
    cuda::Device& device = *cards_[card].device;
    if (asked > device.info().memory_bytes)
        fail(printed("--gpu-memory is %.2f GB, but GPU %d has %.2f GB", static_cast<double>(asked) * 1e-9,
                     device.info().index, static_cast<double>(device.info().memory_bytes) * 1e-9));
    return asked > 0 ? asked
                     : std::min(device.info().memory_bytes, device.free_bytes() + reserve_of(device).runtime_bytes);
}

SplitQuestion Gpus::split_question(const ops::Plan& plan, const ExecutorLimits& limits, int64_t sequences,
                                   bool packed) const {
    SplitQuestion question{plan,
                           {},
                           {.context = limits.max_tokens,
                            .sequences = sequences,
                            .prefill_chunk = limits.max_rows,
                            .least_prefill_chunk = std::min(limits.max_rows, GpuMemoryWishes{}.least_prefill_chunk),
                            .outputs = limits.max_outputs,
                            .packed = packed}};
    if (wishes_.offload_experts == "cpu") question.wishes.most_expert_slots = 0;
    if (wishes_.offload_experts == "none") question.wishes.least_expert_slots = expert_count(plan);
    for (size_t i = 0; i < cards_.size(); ++i)
        question.cards.push_back({budget_of(i), reserve_of(*cards_[i].device),
                                  wishes_.rates.size() >= cards_.size() ? wishes_.rates[i] : assumed_rates()});
    return question;
}

PlacedExperts Gpus::asked_experts(const ops::Plan& plan, const std::string& model) const {
    const std::vector<RoutedLayer> layers = routed_layers(plan);
    PlacedExperts asked;
    if (!wishes_.placement.empty()) asked = read_placement(wishes_.placement, model, layers);
    if (!wishes_.profile.empty()) {
        const RoutingProfile profile = read_routing_profile(wishes_.profile);
        check_model(wishes_.profile, profile.model, profile.layers, model, layers);
        asked.shares = shares_of(layers, profile.chosen());
    }
    return asked;
}

/// One card has all layers. Several: those of --layer-split, or of --placement, or the best.
void Gpus::divide_layers(const SplitQuestion& question, const PlacedExperts& asked) {
    const bool splits = cards_.size() > 1;
    const size_t layers = splits ? layers_to_split(question.plan) : ops::layer_starts(question.plan).size() - 1;
    std::vector<LayerRange> ranges = {{0, layers}};
    if (!wishes_.layer_split.empty())
        ranges = ranges_of(wishes_.layer_split, layers, cards_.size());
    else if (splits && asked.layers_of_cards.size() == cards_.size())
        ranges = ranges_of(asked.layers_of_cards, layers, cards_.size());
    else if (splits)
        ranges = split_over_cards(question);
    const std::vector<CardPart> parts = parts_of(question, ranges);
    for (size_t i = 0; i < cards_.size(); ++i) {
        Card& card = cards_[i];
        card.layers = splits ? parts[i].layers : LayerRange{0, question.plan.experts.size()};
        card.memory = parts[i].memory;
        const int index = card.device->info().index;
        const std::string of = cards_.size() == 1 ? std::string()
                                                  : " of " + std::to_string(card.layers.count()) + " layers from " +
                                                        std::to_string(card.layers.first) + " on";
        log::info("GPU {}: memory{}\n{}", index, of, gpu_memory_text(card.memory));
        if (!card.memory.refusal.empty()) fail("GPU ", index, of, ": ", card.memory.refusal);
    }
}

/// A budget of a single card with which all experts would lie somewhere; 0: it has not so much.
int64_t Gpus::sufficient_card(const SplitQuestion& question, int64_t host_room) const {
    const Card& card = cards_.front();
    GpuMemoryWishes wishes = question.wishes;
    wishes.budget_bytes = question.cards.front().budget_bytes;
    wishes.prefill_chunk = card.memory.prefill_chunk;
    wishes.least_expert_slots = expert_count(question.plan) - host_room;
    const int64_t least = least_gpu_budget(question.plan, nullptr, wishes, reserve_of(*card.device));
    return least <= card.device->info().memory_bytes ? least : 0;
}

/// The experts among the memories, once it is known how many slots the cards have.
void Gpus::divide_experts_among(const SplitQuestion& question, const ExecutorLimits& limits, const HostUse& host) {
    const bool asked = wishes_.host_bytes > 0;
    if (wishes_.host_bytes > total_memory())
        fail("--host-memory is ", wishes_.host_bytes / 1'000'000, " MB, but this machine has ",
             total_memory() / 1'000'000);
    host_plan_ =
        plan_host_memory(question.plan, host.draft,
                         {.budget_bytes = asked ? wishes_.host_bytes : available_memory() + free_huge_page_memory(),
                          .is_asked = asked,
                          .on_card = any(),
                          .context = limits.max_tokens,
                          .sequences = asked ? question.wishes.sequences : 1,
                          .rows = limits.max_rows,
                          .kv_bytes = host.kv_bytes,
                          .prefix_bytes = host.prefix_bytes});
    if (const std::string refusal = host_plan_.refusal(); !refusal.empty()) fail(refusal);
    const std::string& offload = wishes_.offload_experts;
    const int64_t room = host_plan_.room();
    std::vector<ExpertRoom> rooms;
    for (const Card& card : cards_)
        rooms.push_back({.experts = card.memory.experts,
                         .slots = card.memory.expert_slots,
                         .may_stream = waits_in_streams(*card.device) &&
                                       (offload == "stream" || (offload == "auto" && !wishes_.deterministic))});
    const std::vector<ExpertTiers> tiers = divide_experts(rooms, room);
    for (size_t i = 0; i < cards_.size(); ++i) cards_[i].tiers = tiers[i];
    tiers_ = any() ? sum_of(tiers) : divide_experts({.experts = host_plan_.experts, .host = room});
    TierRemedy remedy{.expert_bytes = host_plan_.expert_bytes,
                      .host_budget = host_plan_.budget_for(tiers_.experts - tiers_.slots),
                      .readable = host.mapped || stays_mapped(question.plan)};
    if (remedy.host_budget > total_memory()) remedy.host_budget = 0;
    if (tiers_.file > 0 && cards_.size() == 1 && offload != "cpu") remedy.card_budget = sufficient_card(question, room);
    const std::string refusal = tier_refusal(tiers_, wishes_.file_experts, remedy);
    if (!refusal.empty()) fail(refusal);
    if (tiers_.core > 0 || tiers_.file > 0)
        log::info("host memory of {:.2f} GB has no room for all routed experts\n{}",
                  static_cast<double>(host_plan_.budget_bytes) * 1e-9, tiers_text(tiers_, host_plan_.expert_bytes));
}

void Gpus::check_stream(size_t card) const {
    const ExpertTiers& tiers = cards_[card].tiers;
    if (wishes_.offload_experts != "stream" || tiers.ring > 0 || tiers.slots == tiers.experts) return;
    if (const std::string& why = cards_[card].memory.no_experts; !why.empty())
        fail("--offload-experts stream: experts cannot lie on the card: ", why, "; use cpu or auto");
    if (const cuda::Device& device = *cards_[card].device; !waits_in_streams(device))
        fail("GPU ", device.info().index,
             ": --offload-experts stream: streams wait only by functions of the host, which "
             "hold one another up: update the driver, or use cpu or auto");
    fail("--offload-experts stream: the card has room for ", tiers.slots, " experts",
         tiers.core > 0 ? ", of which " + std::to_string(tiers.core) + " are in no other memory" : "",
         ", expected at least ", kLeastStreamed, tiers.core > 0 ? " others" : "", "; raise --gpu-memory",
         tiers.core > 0 ? " or --host-memory" : "", ", or use ", tiers.core > 0 ? "auto" : "cpu");
}

/// Those of --placement, then the likeliest of --profile, and in what room is left any others.
void Gpus::choose_first(const PlacedExperts& asked, size_t index) {
    Card& card = cards_[index];
    const int64_t slots = card.tiers.resident();
    if (!asked.shares.empty())
        card.shares.assign(asked.shares.begin() + static_cast<std::ptrdiff_t>(card.layers.first),
                           asked.shares.begin() + static_cast<std::ptrdiff_t>(card.layers.last));
    std::vector<ExpertName> placed = experts_within(asked.resident, card.layers);
    if (wishes_.placement.empty()) placed = likeliest_experts(card.shares, slots);
    if (std::ssize(placed) > slots)
        fail(printable(wishes_.placement), " places ", placed.size(), " experts, but ",
             cards_.size() == 1 ? "the card" : "card " + std::to_string(index), " has room for ", slots,
             ": solve it anew for this budget (`thermocline place`), or raise --gpu-memory");
    card.resident = spread_experts(card.expert_counts, slots, likeliest_first(std::move(placed), card.shares));
}

void Gpus::take_memory(size_t index) {
    Card& card = cards_[index];
    const int64_t bytes = card.memory.executor_bytes(), free = card.device->free_bytes();
    if (bytes > free)
        fail("GPU ", card.device->info().index, ": ", bytes >> 20, " MiB are needed, but others have left only ",
             free >> 20, " free; end them, or lower --gpu-memory");
    card.reserved = cuda::DeviceMemory(*card.device, bytes);
}

/// What the card can do, while it has room to measure.
void Gpus::check_speed(Card& card) const {
    Fallbacks found{.flag_wait = card.device->flag_wait(), .experts_cross = card.tiers.slots < card.tiers.experts};
    const int index = card.device->info().index;
    if (!is_emulated(*card.device)) {
        found.scalar_cpu = std::string(cpu::select_kernels("auto").name) == "scalar";
        try {
            const cuda::LinkSpeed link = cuda::measure_link(index);
            found.to_device = link.to_device;
            found.to_host = link.to_host;
            card.memory_read = cuda::measure_memory_read(index);
            log::info("GPU {}: the link moves {:.1f} GB/s to the card, {:.1f} GB/s back", index, link.to_device,
                      link.to_host);
        } catch (const Error& error) {
            log::warn("link and memory of the card were not measured: {}", error.what());
        }
    }
    const std::string slow = slow_fallback(found);
    if (slow.empty()) return;
    if (!wishes_.slow_fallback) fail("GPU ", index, ": ", slow, ". --allow-slow-fallback starts all the same");
    log::warn("GPU {}: {}", index, slow);
}

void Gpus::reserve(const ops::Plan& plan, const std::string& model, ExecutorLimits& limits, int64_t sequences,
                   bool packed, const HostUse& host) {
    mapped_ = host.mapped;
    SplitQuestion question = split_question(plan, limits, sequences, packed);
    if (!any()) {
        // Without a budget packing says itself what does not fit.
        if (wishes_.host_bytes > 0 || host.mapped) divide_experts_among(question, limits, host);
        return;
    }
    const PlacedExperts asked = asked_experts(plan, model);
    question.shares = asked.shares;
    divide_layers(question, asked);
    divide_experts_among(question, limits, host);
    for (size_t i = 0; i < cards_.size(); ++i) {
        const auto counts = expert_counts(plan);
        Card& card = cards_[i];
        card.expert_counts.assign(counts.begin() + static_cast<std::ptrdiff_t>(card.layers.first),
                                  counts.begin() + static_cast<std::ptrdiff_t>(card.layers.last));
        check_stream(i);
        check_speed(cards_[i]);
        choose_first(asked, i);
    }
    limits.batch_invariant = wishes_.deterministic;
    limits.max_parts = sequences;
    limits.max_rows = std::max(cards_.front().memory.prefill_chunk, sequences);
    limits.max_outputs = std::min(limits.max_outputs, limits.max_rows);
    sequences_ = sequences;
    for (size_t i = 0; i < cards_.size(); ++i) take_memory(i);
}

std::vector<int64_t> Gpus::layers_of_cards() const {
    std::vector<int64_t> counts;
    for (const Card& card : cards_) counts.push_back(static_cast<int64_t>(card.layers.count()));
    return counts;
}

std::vector<const quant::Matrix*> Gpus::card_only(const ops::Plan& plan) const {
    std::vector<const quant::Matrix*> matrices;
    if (!any()) return matrices;
    for (const ops::MatrixId id : GpuWeights::matrices_of(plan))
        matrices.push_back(&plan.matrices[static_cast<size_t>(id)].matrix);
    for (const Card& card : cards_)
        for (int64_t i = 0; i < card.tiers.core; ++i) {
            const ExpertName name = in_whole(card.resident[static_cast<size_t>(i)], card.layers);
            const ops::ExpertSet& set = plan.experts[static_cast<size_t>(name.set)];
            for (const auto* list : {&set.w1, &set.w3, &set.w2})
                matrices.push_back(&(*list)[static_cast<size_t>(name.expert)]);
        }
    return matrices;
}

/// Experts move only if their memory can be pinned: else every transfer would keep the engine waiting.
void Gpus::pin(std::span<std::byte> weights) {
    if (wishes_.deterministic || std::ranges::all_of(cards_, [](const Card& card) { return card.none_moves(); }))
        return;
    try {
        if (weights.empty()) fail("the weights lie in mapped files, which cannot be pinned");
        pin_.emplace(*cards_.front().device, weights.data(), std::ssize(weights));  // for all of them
    } catch (const Error& error) {
        if (wishes_.offload_experts == "stream") throw;
        if (wishes_.residency != "static")
            log::warn("the experts on the card stay the same (--residency static): {}", error.what());
    }
}

ResidencyRules Gpus::rules_for(const Card& card) const {
    using Policy = ResidencyRules::Policy;
    if (wishes_.deterministic) return {.policy = Policy::kStatic, .fixed = true, .core = card.tiers.core};
    using Streaming = ResidencyRules::Streaming;
    const bool streams = wishes_.offload_experts == "stream", may_move = pin_.has_value();
    ResidencyRules rules{.policy = residency_policy(wishes_.residency),
                         .tries = wishes_.offload_experts == "auto",
                         .balances = wishes_.offload_experts != "none",
                         .core = card.tiers.core,
                         .ring = card.tiers.ring,
                         .streaming = streams ? Streaming::kAll : Streaming::kShared};
    if (!waits_in_streams(*card.device)) rules.streaming = Streaming::kNone;
    if (card.none_moves() || may_move) return rules;
    rules.streaming = Streaming::kNone;
    rules.policy = Policy::kStatic;
    return rules;
}

PrefetchRules Gpus::prefetch_rules(const ExpertTiers& tiers) const {
    return {.worker_bytes = any() ? wishes_.worker_cache_bytes : 0,
            .reads_file = tiers.file > 0,
            .foretells = wishes_.prefetch == "auto"};
}

double Gpus::host_memory_read(cpu::Workers& workers) const {
    const bool any_measured = std::ranges::any_of(
        cards_, [](const Card& card) { return !is_emulated(*card.device) && card.tiers.slots < card.tiers.experts; });
    return any_measured ? try_read_bandwidth(workers) : 0.0;
}

std::unique_ptr<GpuExecutor> Gpus::executor_of(Card& card, const ops::Plan& part, cpu::Workers& workers,
                                               const cpu::KernelTable& kernels, const ExecutorLimits& limits,
                                               memory::PackedWeights* packed, double host_read) {
    CHECK(card_bytes(part, limits, sequences_, card.tiers.slots).all() <= card.reserved.bytes());
    auto executor =
        std::make_unique<GpuExecutor>(part, *card.device, workers, kernels, limits, sequences_, card.resident,
                                      rules_for(card), std::move(card.reserved), packed, prefetch_rules(card.tiers));
    if (!card.shares.empty() && executor->movable_slots() > 0) executor->order({.shares = card.shares});
    if (is_emulated(*card.device))
        // Far slower: the longest wait seen is 0.4 s with up to 32 rows and 1.1 s with 64, sanitizers take 20 times
        // that.
        executor->set_patience(std::chrono::minutes(1), std::chrono::minutes(5));
    if (wishes_.library == "auto" && !wishes_.deterministic)
        for (const std::string& line : executor->use_library())
            log::info("GPU {}: products of prompts: {}", card.device->info().index, line);
    log::info("GPU {}: {}", card.device->info().index,
              report_text(executor->operators(!is_emulated(*card.device)), card.memory_read, host_read));
    return executor;
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
    if (!any()) return std::make_unique<CpuExecutor>(plan, workers, kernels, limits, prefetch_rules(tiers_));
    pin(weights);
    const double host_read = host_memory_read(workers);
    std::unique_ptr<Executor> executor;
    if (cards_.size() == 1) {
        executor = executor_of(cards_.front(), plan, workers, kernels, limits, packed, host_read);
    } else {
        auto split = std::make_unique<SplitExecutor>(plan, limits);
        for (Card& card : cards_)
            split->add(card.layers, [&](const ops::Plan& part) {
                return executor_of(card, part, workers, kernels, limits, packed, host_read);
            });
        executor = std::move(split);
    }
    if (mapped_)
        for (const quant::Matrix* matrix : card_only(plan)) release_pages(matrix->data, matrix->bytes());
    return executor;
}

}  // namespace thermocline::scheduler
