// The whole chain on the bundled demo model: files, kernels, executor, engine, tokenizer.
#include "src/engine/assemble.h"

#include "src/base/error.h"
#include "tests/engine/collector.h"

#include <chrono>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>

namespace thermocline::engine {
namespace {

const std::string kDemo = std::string(THERMOCLINE_SOURCE_DIR) + "/models/demo";

std::shared_ptr<Collector> generate(Engine& engine, std::vector<int32_t> prompt, int64_t count) {
    Request request;
    request.prompt = std::move(prompt);
    request.sampling.temperature = 0;
    request.max_tokens = count;
    request.ignore_eos = true;
    auto collector = std::make_shared<Collector>();
    EXPECT_NE(engine.submit(std::move(request), collector), nullptr);
    EXPECT_TRUE(collector->done.pop(std::chrono::minutes(2)));
    EXPECT_EQ(collector->result.reason, FinishReason::kLength) << collector->result.error;
    return collector;
}

EngineOptions options_for(const std::string& model) {
    EngineOptions options;
    options.model = model;
    options.threads = 1;
    options.max_model_len = 512;
    return options;
}

TEST(Assemble, DemoModelContinuesConversations) {
    const Assembly assembly = assemble(options_for(kDemo));
    EXPECT_EQ(assembly.name, "demo");
    EXPECT_EQ(assembly.engine->max_model_len(), 512);
    std::vector<int32_t> prompt = assembly.tokenizer->encode("Once upon a time there was a little girl who lived in");
    const auto first = generate(*assembly.engine, prompt, 24);
    EXPECT_GT(first->result.statistics.decode_bytes, 0);
    EXPECT_GT(first->result.statistics.prefill_bytes, 0);

    // The same text again in two requests, the second of which finds most of its prompt in the caches.
    std::vector<int32_t> longer = prompt;
    longer.insert(longer.end(), first->ids.begin(), first->ids.begin() + 12);
    const auto second = generate(*assembly.engine, longer, 12);
    EXPECT_GT(second->result.statistics.cached_tokens, 0);
    EXPECT_EQ(second->ids, std::vector<int32_t>(first->ids.begin() + 12, first->ids.end()));
}

TEST(Assemble, ChunkOfThePromptDoesNotMatter) {
    EngineOptions options = options_for(kDemo);
    std::vector<std::vector<int32_t>> results;
    for (const int64_t chunk : {7, 512}) {
        options.prefill_chunk = chunk;
        const Assembly assembly = assemble(options);
        std::string text;
        for (int i = 0; i < 20; ++i) text += "He was a very good man and had a house by the sea. ";
        results.push_back(generate(*assembly.engine, assembly.tokenizer->encode(text), 8)->ids);
    }
    EXPECT_EQ(results[0], results[1]);
}

TEST(Assemble, RefusesWhatItCannotServe) {
    EXPECT_THROW(assemble(options_for("/nonexistent/model")), Error);
    EngineOptions options = options_for(kDemo);
    options.max_model_len = int64_t{1} << 40;
    EXPECT_THROW(assemble(options), Error);
    options = options_for(kDemo);
    options.isa = "abacus";
    EXPECT_THROW(assemble(options), Error);
    options = options_for(kDemo);
    options.chat_encoding = "v5";
    EXPECT_THROW(assemble(options), Error);
}

}  // namespace
}  // namespace thermocline::engine
