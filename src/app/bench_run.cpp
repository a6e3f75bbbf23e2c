#include "src/app/bench_run.h"

#include "src/base/error.h"
#include "src/base/pages.h"
#include "src/base/random.h"

#include <algorithm>
#include <chrono>

namespace thermocline::app {

namespace {

/// Tokens after which every ring of the caches is full and every list of entries begun: from there on a cache can be
/// filled with copies.
int64_t real_tokens(const ops::Plan& plan) {
    int64_t tokens = 1;
    for (const ops::CacheSpec& cache : plan.caches) tokens = std::max({tokens, cache.ring_rows, int64_t{cache.ratio}});
    return tokens;
}

}  // namespace

scheduler::ExecutorLimits BenchRun::limits_for(int64_t max_tokens, int64_t max_batch, bool on_card) {
    const int64_t rows =
        scheduler::serving_limits(max_tokens, max_batch, scheduler::default_prefill_chunk(on_card)).max_rows;
    return {.max_rows = rows, .max_outputs = max_batch, .max_tokens = max_tokens, .max_parts = rows};
}

BenchRun::BenchRun(const model::Model& model, const RoutedTokens& routed, scheduler::Executor& executor,
                   bool host_caches, uint64_t seed)
    : model_(model),
      executor_(executor),
      routed_(routed),
      host_caches_(host_caches),
      seed_(seed),
      tokens_(static_cast<size_t>(executor_.limits().max_rows)) {}

void BenchRun::add_part(memory::SequenceCache& sequence, int64_t count, bool output, bool generated) {
    size_t used = 0;
    for (const scheduler::Part& part : parts_) used += part.tokens.size();
    const std::span<int32_t> tokens = std::span(tokens_).subspan(used, static_cast<size_t>(count));
    const std::vector<int32_t>& list = generated ? routed_.generated : routed_.prompt;
    for (int32_t& token : tokens) {
        const uint64_t place = drawn_++;
        token = list.empty() ? static_cast<int32_t>(random_uniform(seed_, place) * static_cast<double>(model_.vocab))
                             : list[place % list.size()];
    }
    parts_.push_back({&sequence, tokens, output ? 1 : 0});
}

void BenchRun::forward(BenchSample& sample) {
    executor_.forward(parts_);
    sample.cost += executor_.last_cost();
    parts_.clear();
}

void BenchRun::prepare(const BenchTest& test) {
    const int64_t bytes = executor_.sequence_bytes(test.depth + test.tokens);
    const int64_t available = available_memory();
    if (bytes > available / (host_caches_ ? test.batch + 1 : 1))  // a snapshot besides the sequences
        fail("caches of ", test.batch, " sequences of ", test.depth + test.tokens, " tokens take ", bytes / 1'000'000,
             " MB each, ", available / 1'000'000, " MB of memory are free");
    sequences_.clear();
    for (int64_t i = 0; i < test.batch; ++i) sequences_.push_back(executor_.new_sequence());

    memory::SequenceCache& first = *sequences_.front();
    const int64_t real = std::min(test.depth, real_tokens(model_.trunk));
    if (!first.reserve(real)) fail("no memory for the cache of ", real, " tokens");
    BenchSample unused;
    while (first.position() < real) {
        add_part(first, std::min(executor_.limits().max_rows, real - first.position()), false);
        forward(unused);
    }
    if (!first.repeat_to(test.depth)) fail("no memory for the cache of ", test.depth, " tokens");
    filled_ = first.snapshot();
    rewind(test);
    if (test.prompt) return prompts(test, unused);
    for (const auto& sequence : sequences_) add_part(*sequence, 1, true);
    forward(unused);
}

void BenchRun::rewind(const BenchTest& test) {
    for (const auto& sequence : sequences_) {
        sequence->restore(filled_);
        if (!sequence->reserve(test.depth + test.tokens))
            fail("no memory for the cache of ", test.depth + test.tokens, " tokens");
    }
}

/// As many rows as a pass may have, of one sequence after the other; the last row of each asks for logits.
void BenchRun::prompts(const BenchTest& test, BenchSample& sample) {
    int64_t rows = 0;
    for (const auto& sequence : sequences_) {
        for (int64_t done = 0; done < test.tokens;) {
            const int64_t count = std::min(executor_.limits().max_rows - rows, test.tokens - done);
            done += count;
            rows += count;
            add_part(*sequence, count, done == test.tokens);
            if (rows < executor_.limits().max_rows) continue;
            forward(sample);
            rows = 0;
        }
    }
    if (rows > 0) forward(sample);
}

void BenchRun::generate(const BenchTest& test, BenchSample& sample) {
    for (int64_t i = 0; i < test.tokens; ++i) {
        for (const auto& sequence : sequences_) add_part(*sequence, 1, true, true);
        forward(sample);
    }
}

BenchSample BenchRun::run(const BenchTest& test) {
    rewind(test);
    BenchSample sample;
    const auto start = std::chrono::steady_clock::now();
    test.prompt ? prompts(test, sample) : generate(test, sample);
    sample.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return sample;
}

scheduler::StepProfile BenchRun::profile(const BenchTest& test) {
    scheduler::StepProfile profile(model_.trunk);
    executor_.profile_steps(&profile);
    run(test);
    executor_.profile_steps(nullptr);
    return profile;
}

}  // namespace thermocline::app
