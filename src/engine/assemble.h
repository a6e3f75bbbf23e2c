// From options to a running engine: kernels, workers, model, executor, tokenizer, chat encoding, engine thread. The one
// place where all lower rooms meet; run and serve start from its result.
#pragma once

#include "cpu/workers.h"
#include "memory/packed_weights.h"
#include "scheduler/gpus.h"
#include "scheduler/routing_watch.h"
#include "scheduler/topology.h"
#include "src/engine/engine.h"
#include "src/engine/expert_admin.h"
#include "src/engine/expert_use.h"
#include "src/engine/request.h"
#include "src/model/registry.h"
#include "src/text/prompt_deepseek_v4.h"
#include "src/text/tokenizer.h"

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

namespace thermocline::engine {

/// An eighth of the memory that is free after loading, at most 8 GiB.
inline constexpr int64_t kPrefixBytesAuto = -1;

struct EngineOptions {
    std::string model;      ///< directory or .gguf file
    std::string tokenizer;  ///< directory with tokenizer.json, for dummy weights; empty: the model's own
    model::LoadOptions load;
    int64_t max_model_len = 0;  ///< 0: the model's own, at most kDefaultMaxModelLen
    int64_t prefill_chunk = 0;  ///< tokens in one forward pass, of all requests together; 0: default_prefill_chunk()
    int64_t max_num_seqs = 1;   ///< requests that run at once
    int64_t kv_bytes = 0;       ///< of the caches of all running requests; 0: what they may need, within half of memory
    std::string prefix_disk;    ///< folder for the prefix cache on disk; empty: none
    int64_t prefix_disk_bytes = 0;            ///< that it may hold
    int64_t prefix_bytes = kPrefixBytesAuto;  ///< of the prefix cache in memory; 0: there is none
    int64_t max_queue = 256;
    int threads = 0;                              ///< 0: one per physical core
    std::chrono::milliseconds worker_patience{};  ///< after which a worker that does not go on is stuck; 0: never
    scheduler::Numa numa = scheduler::Numa::kNodes;
    bool weights_in_place = false;  ///< read the files where they lie instead of packing them
    scheduler::GpuWishes gpus;
    std::string isa = "auto";
    std::string chat_encoding = "auto";  ///< auto, v4, v4-0731, v4.1
    std::string record_routing;          ///< file for a trace of the routing; empty: none
    bool keep_routing = false;           ///< keep the trace in memory too
    std::string admin_folder;            ///< of ExpertAdmin; empty: there is none
};

inline constexpr int64_t kDefaultMaxModelLen = 32768;

/// States of a sequence some tokens ago, for the prefix cache: the last multiple of a block, and the end of the prompt
/// but one token. Costs rows in every ring of a running sequence: some tens of MB for the largest published model.
inline constexpr int32_t kSpareRows = 256;

/// Members are destroyed from the last to the first: the engine thread ends before what it uses.
struct Assembly {
    std::unique_ptr<model::Model> model;
    std::unique_ptr<memory::PackedWeights> packed;  // null: weights in place
    std::unique_ptr<text::Tokenizer> tokenizer;
    text::RevisionChoice encoding;
    SamplingParams sampling;  // defaults of the checkpoint
    std::string name;         // of the model
    uint64_t state_hash = 0;  // of all that its numbers depend on: weights, arithmetic, the program
    std::unique_ptr<cpu::Workers> workers;
    std::unique_ptr<scheduler::Gpus> gpus;
    std::unique_ptr<scheduler::RoutingWatch> routing;
    std::unique_ptr<ExpertAdmin> admin;  // may be null
    std::unique_ptr<Engine> engine;
};

/// Loads and starts everything. Throws Error.
Assembly assemble(const EngineOptions& options);

/// Since the start. Any thread.
ExpertUse expert_use(const Assembly& assembly);

}  // namespace thermocline::engine
