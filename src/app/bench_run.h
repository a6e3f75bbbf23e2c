// Speed of one model with one set of workers: runs a test as often as asked and counts what it read and computed.
#pragma once

#include "memory/sequence_cache.h"
#include "scheduler/executor.h"
#include "scheduler/profiler.h"
#include "src/app/routing.h"
#include "src/model/registry.h"
#include "src/ops/cost.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace thermocline::app {

struct BenchTest {
    bool prompt;     // prompts of `tokens` tokens, or as many tokens one by one
    int64_t tokens;  // of every sequence
    int64_t depth;   // tokens in the caches before
    int64_t batch;   // sequences
    std::string name() const { return (prompt ? "pp" : "tg") + std::to_string(tokens); }
};

/// One repetition.
struct BenchSample {
    double seconds = 0.0;
    ops::Cost cost;
};

class BenchRun {
public:
    /// What tests with so many tokens of a sequence and sequences at most ask of an executor.
    static scheduler::ExecutorLimits limits_for(int64_t max_tokens, int64_t max_batch, bool on_card);

    /// Everything must outlive this. `executor`: of limits_for() the tests to come; `host_caches`: its caches lie in
    /// the memory of the host.
    BenchRun(const model::Model& model, const RoutedTokens& routed, scheduler::Executor& executor, bool host_caches,
             uint64_t seed);

    /// Puts `test.depth` tokens into the caches and runs the prompts of the test, or one token of every sequence, so
    /// that what follows runs warm. Throws Error if there is no memory for the caches.
    void prepare(const BenchTest& test);
    /// One repetition of the prepared test.
    BenchSample run(const BenchTest& test);
    /// Where its time goes: another repetition.
    scheduler::StepProfile profile(const BenchTest& test);

private:
    void rewind(const BenchTest& test);
    void prompts(const BenchTest& test, BenchSample& sample);
    void generate(const BenchTest& test, BenchSample& sample);
    void forward(BenchSample& sample);
    /// Adds the next `count` tokens of a sequence, of a prompt or generated ones, to the pass to come.
    void add_part(memory::SequenceCache& sequence, int64_t count, bool output, bool generated = false);

    const model::Model& model_;
    scheduler::Executor& executor_;
    const RoutedTokens& routed_;
    bool host_caches_;
    uint64_t seed_;
    uint64_t drawn_ = 0;  // tokens, as numbers of the seed or places in the lists of `routed_`
    std::vector<std::unique_ptr<memory::SequenceCache>> sequences_;
    std::vector<std::byte> filled_;  // snapshot of a sequence of `depth` tokens
    std::vector<int32_t> tokens_;    // of the pass to come
    std::vector<scheduler::Part> parts_;
};

}  // namespace thermocline::app
