// A card that is lost while requests are computed: they end with an error that says so, and what is started anew
// serves as before. The whole chain on the bundled demo model and an emulated card.
#include "src/base/log.h"
#include "src/engine/assemble.h"
#include "tests/engine/recorder.h"

#include <gtest/gtest.h>

namespace thermocline::engine {
namespace {

constexpr int32_t kTokens = 100;

/// The routed experts stay with the CPU, so that a token is quick.
EngineOptions with_faults(const cuda::emulation::Faults& faults) {
    EngineOptions options;
    options.model = THERMOCLINE_SOURCE_DIR "/models/demo";
    options.threads = 1;
    options.max_model_len = 256;
    options.max_num_seqs = 2;
    options.gpus = {.gpus = "emulated", .offload_experts = "cpu"};
    options.gpus.emulated.faults = faults;
    return options;
}

std::shared_ptr<testing::Recorder> submit(Assembly& assembly, const std::string& prompt, int32_t tokens) {
    Request request;
    request.prompt = assembly.tokenizer->encode(prompt);
    request.sampling.temperature = 0;
    request.max_tokens = tokens;
    request.ignore_eos = true;
    auto recorder = std::make_shared<testing::Recorder>();
    if (assembly.engine->submit(std::move(request), recorder) == nullptr) return nullptr;
    return recorder;
}

std::vector<int32_t> ids(const testing::Recorder& recorder) {
    std::vector<int32_t> out;
    for (const Token& token : recorder.tokens) out.push_back(token.id);
    return out;
}

TEST(CardFaults, ALostCardEndsWhatWasInFlightAndANewStartServes) {
    log::start("off");
    {
        // Far behind the first launches, far before the last: a token is of some hundred.
        Assembly assembly = assemble(with_faults({.lose_device = 1000}));
        const auto first = submit(assembly, "And it came to pass", kTokens),
                   second = submit(assembly, "In the beginning", kTokens);
        for (const auto& recorder : {first, second}) {
            ASSERT_NE(recorder, nullptr);
            EXPECT_EQ(recorder->wait().reason, FinishReason::kError);
            EXPECT_NE(recorder->result.error.find("GPU 0 (emulated): the device was lost: restart the server"),
                      std::string::npos)
                << recorder->result.error;
            EXPECT_LT(std::ssize(recorder->tokens), kTokens);
        }
        EXPECT_GT(first->tokens.size(), 0u) << "lost before the first token";
        // Whoever comes then hears the same, until nobody is let in any more.
        for (int i = 0; i < 20 && !assembly.engine->broken(); ++i) {
            const auto later = submit(assembly, "And", 4);
            if (later == nullptr) continue;
            EXPECT_EQ(later->wait().reason, FinishReason::kError);
        }
        EXPECT_TRUE(assembly.engine->broken());
    }
    std::vector<std::vector<int32_t>> texts;
    for (const char* gpus : {"emulated", "none"}) {
        EngineOptions options = with_faults({});
        options.load.kv_cache = model::KvCacheDtype::kF32;
        options.load.activations = model::Activations::kBf16;
        options.gpus.gpus = gpus;
        if (options.gpus.gpus == "none") options.gpus.offload_experts = "auto";
        Assembly assembly = assemble(options);
        const auto recorder = submit(assembly, "And it came to pass", 8);
        EXPECT_EQ(recorder->wait().reason, FinishReason::kLength) << recorder->result.error;
        texts.push_back(ids(*recorder));
    }
    EXPECT_EQ(texts[0], texts[1]);
}

}  // namespace
}  // namespace thermocline::engine
