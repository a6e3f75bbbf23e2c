// A loaded model with the workers and the executor that run it: what score and perplexity need, no tokenizer, no
// engine thread.
#pragma once

#include "cpu/worker_watch.h"
#include "memory/packed_weights.h"
#include "scheduler/executor.h"
#include "scheduler/gpus.h"
#include "src/app/settings.h"
#include "src/model/registry.h"

#include <memory>
#include <span>
#include <vector>

namespace thermocline::app {

struct Session {
    std::unique_ptr<model::Model> model;
    std::unique_ptr<memory::PackedWeights> packed;  // null: weights in place
    std::unique_ptr<cpu::Workers> workers;
    std::unique_ptr<cpu::WorkerWatch> watch;
    std::unique_ptr<scheduler::Gpus> gpus;
    std::unique_ptr<scheduler::Executor> executor;
    int64_t max_tokens = 0;
};

/// Loads the model of the flags; forward passes take up to `rows` tokens, all of which may ask for logits.
Session open_session(const ModelFlags& flags, int64_t rows);

/// Log-probabilities of a distribution given by logits.
class LogSoftmax {
public:
    LogSoftmax(const float* logits, int64_t vocab);  // [vocab], must outlive this
    double logprob(int64_t id) const { return logits_[id] - log_sum_; }
    /// The `count` most likely ids, best first, ties to the lowest id.
    std::vector<int32_t> top(int64_t count) const;

private:
    const float* logits_;
    int64_t vocab_;
    double log_sum_;
};

}  // namespace thermocline::app
