#include "src/engine/assemble.h"

#include "cpu/kernels.h"
#include "scheduler/executor.h"
#include "scheduler/topology.h"
#include "src/base/error.h"
#include "src/base/log.h"
#include "src/engine/pack.h"
#include "src/engine/vocabulary.h"

#include <algorithm>
#include <utility>

namespace thermocline::engine {
namespace {

/// Rows of logits in one pass: what scoring a prompt takes at a time.
constexpr int64_t kMaxOutputs = 32;

/// A conversation goes back by its last answer when the next request shows that answer otherwise (without its
/// reasoning, say). Costs rows in every ring: some tens of MB for the largest published model.
constexpr int32_t kSpareRows = 256;

class ExecutorForward : public Forward {
public:
    explicit ExecutorForward(std::unique_ptr<scheduler::Executor> executor) : executor_(std::move(executor)) {}
    int64_t vocab() const override { return executor_->plan().vocab; }
    scheduler::ExecutorLimits limits() const override { return executor_->limits(); }
    std::unique_ptr<memory::SequenceCache> new_sequence() override { return executor_->new_sequence(); }
    void forward(std::span<const scheduler::Part> parts) override { executor_->forward(parts); }
    const float* logits(int64_t output) const override { return executor_->logits(output); }
    int64_t last_bytes() const override { return executor_->last_bytes(); }

private:
    std::unique_ptr<scheduler::Executor> executor_;
};

int64_t context_of(const EngineOptions& options, const model::Model& model) {
    if (options.max_model_len == 0) return std::min(model.max_context, kDefaultMaxModelLen);
    if (options.max_model_len < 1 || options.max_model_len > model.max_context) {
        fail("--max-model-len is ", options.max_model_len, ", expected 1 to ", model.max_context,
             ", the max_position_embeddings of this model");
    }
    return options.max_model_len;
}

}  // namespace

Assembly assemble(const EngineOptions& options) {
    const cpu::KernelTable& kernels = cpu::select_kernels(options.isa.c_str());
    const auto slices = scheduler::weight_slices(scheduler::detect_machine(), options.numa);
    const scheduler::WorkerPlaces places = scheduler::worker_places(slices, options.threads);
    if (options.prefill_chunk < 1) fail("the prefill chunk is ", options.prefill_chunk, " tokens, expected at least 1");

    Assembly out;
    model::LoadOptions load = options.load;
    load.spare_rows = std::max(load.spare_rows, kSpareRows);
    out.model = model::load_model(options.model, load);
    const model::Model& model = *out.model;
    out.tokenizer = std::make_unique<text::Tokenizer>(load_tokenizer(model.checkpoint));
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
    if (!options.weights_in_place) out.packed = pack_weights(*out.model, slices);
    scheduler::ExecutorLimits limits;
    limits.max_rows = std::min(options.prefill_chunk, context);
    limits.max_outputs = std::min(limits.max_rows, kMaxOutputs);
    limits.max_tokens = context;
    out.workers = std::make_unique<cpu::Workers>(places.cpus, places.slices);
    EngineLimits engine_limits;
    engine_limits.max_queue = options.max_queue;
    engine_limits.eos_ids = eos_ids(model.checkpoint, *out.tokenizer, model.vocab);
    out.gpus = std::make_unique<scheduler::Gpus>(options.gpus);
    auto executor = out.gpus->new_executor(model.trunk, *out.workers, kernels, limits, 1);
    out.engine = std::make_unique<Engine>(std::make_unique<ExecutorForward>(std::move(executor)),
                                          std::move(engine_limits), kernels);
    log::info("{}: {}, {} tokens of context, {} workers, {} kernels, chat encoding {}", out.name, model.architecture,
              context, out.workers->count(), kernels.name, text::revision_name(out.encoding.revision));
    return out;
}

}  // namespace thermocline::engine
