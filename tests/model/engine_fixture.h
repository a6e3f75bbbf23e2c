// What the end-to-end tests share: a loaded model with executors for its plans on one worker, and feeding tokens
// through them in chunks. Single-threaded.
#pragma once

#include "cpu/kernels.h"
#include "cpu/workers.h"
#include "memory/sequence_cache.h"
#include "scheduler/cpu_executor.h"
#include "src/model/registry.h"

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

namespace thermocline {

using Logits = std::vector<std::vector<float>>;  // [tokens][vocab]

/// Feeds tokens in chunks; the logits after every one of them.
Logits feed(scheduler::Executor& executor, memory::SequenceCache& sequence, std::span<const int32_t> tokens,
            int64_t chunk);

/// Executors of a model. `mtp` only if the model has an MTP layer.
class Engine {
public:
    /// `nodes`: of every worker (cpu::Workers); empty: all on one.
    explicit Engine(const model::Model& model, const char* isa = "auto", int workers = 1,
                    std::span<const int> nodes = {});

    Logits feed(memory::SequenceCache& sequence, std::span<const int32_t> tokens, int64_t chunk) {
        return thermocline::feed(trunk, sequence, tokens, chunk);
    }
    /// One token by one; the logits after the last.
    std::vector<float> decode(memory::SequenceCache& sequence, std::span<const int32_t> tokens);

    std::unique_ptr<memory::SequenceCache> new_sequence() { return trunk.new_sequence(); }

    cpu::Workers workers;
    scheduler::CpuExecutor trunk;
    std::optional<scheduler::CpuExecutor> mtp;
};

/// The golden tiny model, loaded once per cache format.
const model::Model& tiny_model(model::KvCacheDtype kv_cache);
/// Its engine on the best ISA tier, likewise.
Engine& tiny_engine(model::KvCacheDtype kv_cache);

/// Names of the ISA tiers that run here.
std::vector<std::string> available_tiers();

/// Largest |a - b|; NaN if any is.
double largest_difference(const Logits& a, const Logits& b);
/// Largest |a - b|.
double difference(std::span<const float> a, std::span<const double> b);
int64_t argmax(std::span<const float> values);

}  // namespace thermocline
