#include "src/engine/assemble.h"

#include "cpu/kernels.h"
#include "scheduler/executor.h"
#include "scheduler/topology.h"
#include "src/base/checksum.h"
#include "src/base/error.h"
#include "src/base/file.h"
#include "src/base/json.h"
#include "src/base/log.h"
#include "src/base/pages.h"
#include "src/engine/pack.h"
#include "src/engine/vocabulary.h"
#include "src/quant/strips.h"

#include <algorithm>
#include <utility>

namespace thermocline::engine {
namespace {

constexpr int64_t kMostPrefixBytesAuto = int64_t{8} << 30;

class ExecutorForward : public Forward {
public:
    /// `admin` may be null.
    ExecutorForward(std::unique_ptr<scheduler::Executor> executor, scheduler::RoutingWatch& routing, ExpertAdmin* admin)
        : executor_(std::move(executor)), routing_(routing), admin_(admin) {
        executor_->record_routing(routing_.record());
    }
    int64_t vocab() const override { return executor_->plan().vocab; }
    scheduler::ExecutorLimits limits() const override { return executor_->limits(); }
    std::unique_ptr<memory::SequenceCache> new_sequence() override { return executor_->new_sequence(); }
    int64_t sequence_bytes(int64_t tokens) const override { return executor_->sequence_bytes(tokens); }
    void forward(std::span<const scheduler::Part> parts) override {
        if (admin_ != nullptr)
            if (const auto orders = admin_->take(); orders && executor_->movable_slots() > 0) executor_->order(*orders);
        executor_->forward(parts);
        routing_.passed(parts, executor_->residency());
        if (passes_++ % kPlaceEvery == 0) routing_.place(executor_->resident());
    }
    const float* logits(int64_t output) const override { return executor_->logits(output); }
    std::optional<ops::TopLogits> top_logits(int64_t output) const override { return executor_->top_logits(output); }
    int64_t last_bytes() const override { return executor_->last_bytes(); }

private:
    static constexpr int64_t kPlaceEvery = 64;  // passes

    std::unique_ptr<scheduler::Executor> executor_;
    scheduler::RoutingWatch& routing_;
    ExpertAdmin* admin_;
    int64_t passes_ = 0;
};

int64_t context_of(const EngineOptions& options, const model::Model& model) {
    if (options.max_model_len == 0) return std::min(model.max_context, kDefaultMaxModelLen);
    if (options.max_model_len < 1 || options.max_model_len > model.max_context) {
        fail("--max-model-len is ", options.max_model_len, ", expected 1 to ", model.max_context,
             ", the max_position_embeddings of this model");
    }
    return options.max_model_len;
}

scheduler::ExecutorLimits executor_limits(const EngineOptions& options, int64_t context, bool on_card) {
    if (options.prefill_chunk < 0) fail("--max-num-batched-tokens is ", options.prefill_chunk, ", expected at least 0");
    const int64_t chunk = options.prefill_chunk > 0 ? options.prefill_chunk : scheduler::default_prefill_chunk(on_card);
    if (options.max_num_seqs < 1 || options.max_num_seqs > chunk)
        fail("--max-num-seqs is ", options.max_num_seqs, ", expected 1 to ", chunk,
             ", the tokens of one forward pass (--max-num-batched-tokens)");
    return scheduler::serving_limits(context, options.max_num_seqs, chunk);
}

/// Of the caches of all that runs: all they may need, but without being asked no more than half of the free memory.
int64_t kv_budget(const EngineOptions& options, const Forward& model, bool on_card) {
    if (options.kv_bytes > 0 || on_card) return options.kv_bytes;  // a card has set all of it aside
    const int64_t longest = model.sequence_bytes(model.limits().max_tokens);
    if (options.gpus.host_bytes > 0) return options.max_num_seqs * longest;  // they are part of that budget
    return std::max(longest, std::min(options.max_num_seqs * longest, available_memory() / 2));
}

scheduler::HostUse host_use(const EngineOptions& options, const model::Model& model) {
    return {.draft = model.mtp ? &*model.mtp : nullptr,
            .mapped = options.weights_in_place || is_mapped(model),
            .kv_bytes = options.kv_bytes,
            .prefix_bytes = std::max<int64_t>(0, options.prefix_bytes)};
}

/// Which side computes what: the cards' layers, and the experts that lie there.
std::string placement_text(const scheduler::Gpus& gpus, const scheduler::Executor& executor) {
    std::string text;
    for (const int64_t layers : gpus.layers_of_cards()) text += std::to_string(layers) + " ";
    for (const scheduler::ExpertName& name : executor.resident())
        text += std::to_string(name.set) + ":" + std::to_string(name.expert) + " ";
    return text;
}

int64_t prefix_bytes(const EngineOptions& options) {
    if (options.prefix_bytes != kPrefixBytesAuto) return options.prefix_bytes;
    const int64_t asked = options.gpus.host_bytes;
    return std::min(kMostPrefixBytesAuto, asked > 0 ? scheduler::buffer_bytes(asked) : available_memory() / 8);
}

/// Of all that a state of a sequence depends on besides its tokens. Of the weights some bytes of some tensors: enough
/// to tell files of different weights from each other without reading them. The program is part of it: another build
/// may compute other numbers, and what a wrong one has computed must not outlive it.
uint64_t state_hash(const EngineOptions& options, const model::Checkpoint& checkpoint, const std::string& arithmetic,
                    uint64_t caches) {
    constexpr size_t kTensors = 1024;
    constexpr int64_t kBytes = 64;
    uint64_t hash = kChecksumStart;
    const auto add = [&](const void* data, size_t size) {
        hash = checksum_of({static_cast<const std::byte*>(data), size}, hash);
    };
    const std::string words = dump_json(checkpoint.config) + "\n" + arithmetic + "\n" + checkpoint.container;
    add(words.data(), words.size());
    const auto program = MappedFile::open("/proc/self/exe");
    add(program->bytes().data(), program->bytes().size());
    const int64_t numbers[] = {static_cast<int64_t>(options.load.activations), options.load.layers,
                               static_cast<int64_t>(options.load.seed), static_cast<int64_t>(caches)};
    add(numbers, sizeof numbers);
    const auto& tensors = checkpoint.weights.tensors;
    const size_t stride = tensors.size() / kTensors + 1;
    size_t index = 0;
    for (const auto& [name, tensor] : tensors) {
        add(name.data(), name.size());
        add(&tensor.bytes, sizeof tensor.bytes);
        if (index++ % stride != 0 || tensor.sized_only || tensor.data == nullptr) continue;
        const int64_t count = std::min(kBytes, tensor.bytes);
        add(tensor.data + (tensor.bytes - count) / 2, static_cast<size_t>(count));
    }
    return hash;
}

std::unique_ptr<memory::PrefixDisk> prefix_disk(const EngineOptions& options, uint64_t hash) {
    if (options.prefix_disk.empty()) return nullptr;
    auto disk = std::make_unique<memory::PrefixDisk>(options.prefix_disk, options.prefix_disk_bytes, hash);
    log::info("prefix cache on disk: {}, {} files, {} of {} MB", options.prefix_disk, disk->files(),
              disk->bytes() / 1'000'000, options.prefix_disk_bytes / 1'000'000);
    return disk;
}

/// Packed, and as many bytes as `plan` says.
std::unique_ptr<memory::PackedWeights> load_weights(model::Model& model, const std::vector<memory::Slice>& slices,
                                                    const scheduler::Gpus& gpus) {
    const auto planned =
        scheduler::plan_host_memory(model.trunk, model.mtp ? &*model.mtp : nullptr, {.on_card = gpus.any()});
    const std::vector<const quant::Matrix*> card_only = gpus.card_only(model.trunk);
    int64_t kept_for_card = 0;  // where they lie, until the card has them
    for (const quant::Matrix* matrix : card_only)
        if (quant::packed_form(*matrix).layout == quant::Layout::kRows) kept_for_card += matrix->bytes();
    auto packed = pack_weights(model, slices, card_only);
    if (packed)
        scheduler::check_weights(planned, planned.experts - gpus.tiers().core,
                                 packed->bytes() + packed->unpacked_bytes() - kept_for_card);
    return packed;
}

}  // namespace

Assembly assemble(const EngineOptions& options) {
    const cpu::KernelTable& kernels = cpu::select_kernels(options.isa.c_str());
    const auto slices = scheduler::weight_slices(scheduler::detect_machine(), options.numa);
    const scheduler::WorkerPlaces places = scheduler::worker_places(slices, options.threads);

    Assembly out;
    model::LoadOptions load = options.load;
    load.spare_rows = std::max(load.spare_rows, kSpareRows);
    out.model = model::load_model(options.model, load);
    const model::Model& model = *out.model;
    out.tokenizer = std::make_unique<text::Tokenizer>(options.tokenizer.empty() ? load_tokenizer(model.checkpoint)
                                                                                : load_tokenizer(options.tokenizer));
    if (out.tokenizer->vocab_size() > model.vocab) {
        fail("the tokenizer has ", out.tokenizer->vocab_size(), " tokens, but the model's vocabulary has only ",
             model.vocab);
    }
    out.encoding = chat_encoding(model.checkpoint, options.chat_encoding);
    if (out.encoding.is_guess)
        log::warn("chat encoding {} is a guess: {}", text::revision_name(out.encoding.revision), out.encoding.reason);
    out.sampling = default_sampling(model.checkpoint);
    out.name = model_name(model.checkpoint);

    const int64_t context = context_of(options, model);
    out.gpus = std::make_unique<scheduler::Gpus>(options.gpus);
    scheduler::ExecutorLimits limits = executor_limits(options, context, out.gpus->any());
    out.gpus->reserve(model.trunk, out.name, limits, options.max_num_seqs, !options.weights_in_place,
                      host_use(options, model));
    if (!options.weights_in_place) out.packed = load_weights(*out.model, slices, *out.gpus);
    out.workers = std::make_unique<cpu::Workers>(places.cpus, places.slices);
    EngineLimits engine_limits;
    engine_limits.max_queue = options.max_queue;
    engine_limits.eos_ids = eos_ids(model.checkpoint, *out.tokenizer, model.vocab);
    auto executor = out.gpus->new_executor(model.trunk, *out.workers, kernels, limits, out.packed.get());
    out.routing = std::make_unique<scheduler::RoutingWatch>(out.name, scheduler::routed_layers(model.trunk));
    if (!options.record_routing.empty()) out.routing->write_to(options.record_routing);
    if (options.keep_routing) out.routing->keep();
    if (!options.admin_folder.empty())
        out.admin = std::make_unique<ExpertAdmin>(options.admin_folder, out.name, *out.routing, executor->slot_ranges(),
                                                  executor->core());
    std::string arithmetic = std::string(kernels.name) + " " + out.gpus->name();
    if (options.gpus.deterministic) arithmetic += ", deterministic, " + placement_text(*out.gpus, *executor);
    auto forward = std::make_unique<ExecutorForward>(std::move(executor), *out.routing, out.admin.get());
    engine_limits.max_sequences = options.max_num_seqs;
    engine_limits.kv_bytes = kv_budget(options, *forward, out.gpus->any());
    engine_limits.prefix_bytes = prefix_bytes(options);
    log::info("{} requests at once, {} MB for their caches, {} MB for the prefix cache", options.max_num_seqs,
              engine_limits.kv_bytes / 1'000'000, engine_limits.prefix_bytes / 1'000'000);
    out.state_hash = state_hash(options, model.checkpoint, arithmetic, forward->new_sequence()->fingerprint());
    auto disk = prefix_disk(options, out.state_hash);
    out.engine = std::make_unique<Engine>(std::move(forward), std::move(engine_limits), kernels, std::move(disk));
    out.engine->watch(*out.workers, options.worker_patience);
    log::info("{}: {}, {} tokens of context, {} workers, {} kernels, chat encoding {}", out.name, model.architecture,
              context, out.workers->count(), kernels.name, text::revision_name(out.encoding.revision));
    return out;
}

ExpertUse expert_use(const Assembly& assembly) {
    scheduler::RoutingWatch::Counts counts = assembly.routing->counts();
    const scheduler::ResidencyCounters& residency = counts.residency;
    ExpertUse use;
    use.layers_of_cards = assembly.gpus->layers_of_cards();
    use.tokens = counts.rows;
    use.core = residency.core;
    use.chosen = std::move(counts.chosen);
    use.choices = residency.choices;
    use.hits = residency.hits;
    use.moved_experts = residency.changes;
    use.moved_bytes = residency.bytes;
    use.card_reads = residency.card_reads;
    use.cpu_reads = residency.cpu_reads;
    use.expert_bytes = residency.expert_bytes;
    use.streamed_experts = residency.streamed;
    use.adopted_experts = residency.adopted;
    use.layers_played = residency.layers_played;
    use.cpu_seconds = residency.cpu_seconds;
    use.exposed_seconds = residency.exposed_seconds;
    use.link_seconds = residency.link_seconds + residency.fill_seconds;
    use.decode_on_card = residency.decode.on;
    use.prompts_on_card = residency.prompts.on;
    use.decode_gain = residency.decode.gain;
    use.prompt_gain = residency.prompts.gain;
    use.prefetch_on = residency.prefetched.on;
    use.prefetch_gain = residency.prefetched.gain;
    use.foretold = residency.prefetched.foretold;
    use.foretold_right = residency.prefetched.right;
    use.warmed_bytes = residency.prefetched.warmed_bytes;
    use.read_ahead_bytes = residency.asked_bytes;
    use.on_card.resize(use.chosen.size());
    for (const scheduler::ExpertName& name : counts.resident)
        use.on_card[static_cast<size_t>(name.set)].push_back(name.expert);
    return use;
}

}  // namespace thermocline::engine
