#include "tests/model/engine_fixture.h"

#include "src/base/check.h"
#include "tests/model/tiny_model.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

namespace thermocline {
namespace {

constexpr scheduler::ExecutorLimits kLimits = {.max_rows = 320, .max_outputs = 320, .max_tokens = 1024};

std::vector<int> processors(int count) {
    std::vector<int> cpus(static_cast<size_t>(count));
    std::iota(cpus.begin(), cpus.end(), 0);
    return cpus;
}

}  // namespace

Engine::Engine(const model::Model& model, const char* isa, int worker_count, std::span<const int> nodes)
    : workers(processors(worker_count), nodes), trunk(model.trunk, workers, cpu::select_kernels(isa), kLimits) {
    if (model.mtp) mtp.emplace(*model.mtp, workers, cpu::select_kernels(isa), kLimits);
}

Logits feed(scheduler::Executor& executor, memory::SequenceCache& sequence, std::span<const int32_t> tokens,
            int64_t chunk) {
    Logits logits;
    CHECK(sequence.reserve(sequence.position() + std::ssize(tokens)));
    for (size_t first = 0; first < tokens.size(); first += static_cast<size_t>(chunk)) {
        const auto part = tokens.subspan(first, std::min(static_cast<size_t>(chunk), tokens.size() - first));
        const auto rows = static_cast<int32_t>(part.size());
        const scheduler::Part parts[] = {{&sequence, part, rows}};
        executor.forward(parts);
        for (int32_t i = 0; i < rows; ++i)
            logits.emplace_back(executor.logits(i), executor.logits(i) + executor.plan().vocab);
    }
    return logits;
}

std::vector<float> Engine::decode(memory::SequenceCache& sequence, std::span<const int32_t> tokens) {
    return feed(sequence, tokens, 1).back();
}

const model::Model& tiny_model(model::KvCacheDtype kv_cache) {
    static std::map<model::KvCacheDtype, std::unique_ptr<model::Model>> models;
    auto& model = models[kv_cache];
    if (!model) model = model::load_model(tiny::model_path(), {.kv_cache = kv_cache});
    return *model;
}

Engine& tiny_engine(model::KvCacheDtype kv_cache) {
    static std::map<model::KvCacheDtype, std::unique_ptr<Engine>> engines;
    auto& engine = engines[kv_cache];
    if (!engine) engine = std::make_unique<Engine>(tiny_model(kv_cache));
    return *engine;
}

double largest_difference(const Logits& a, const Logits& b) {
    CHECK(a.size() == b.size());
    double largest = 0;
    for (size_t i = 0; i < a.size(); ++i)
        for (size_t j = 0; j < a[i].size(); ++j) {
            const double apart = std::abs(double{a[i][j]} - b[i][j]);
            largest = apart <= largest ? largest : apart;  // NaN stays
        }
    return largest;
}

std::vector<std::string> available_tiers() {
    std::vector<std::string> tiers;
    for (const char* name : {"scalar", "avx2", "avx512", "avx512_bf16", "amx"})
        if (cpu::find_kernels(name) != nullptr) tiers.emplace_back(name);
    return tiers;
}

double difference(std::span<const float> a, std::span<const double> b) {
    CHECK(a.size() == b.size());
    double largest = 0;
    for (size_t i = 0; i < a.size(); ++i) {
        const double d = std::abs(static_cast<double>(a[i]) - b[i]);
        if (!(d <= largest)) largest = d;  // a NaN stays
    }
    return largest;
}

int64_t argmax(std::span<const float> values) {
    return std::max_element(values.begin(), values.end()) - values.begin();
}

}  // namespace thermocline
