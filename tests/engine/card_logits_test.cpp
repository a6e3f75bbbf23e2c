// The largest logits that the card finds, in the whole chain: the bundled demo model on an emulated card.
#include "src/engine/assemble.h"
#include "tests/engine/collector.h"

#include <chrono>
#include <gtest/gtest.h>

namespace thermocline::engine {
namespace {

TEST(CardLogits, TheLargestOnesDrawTheTokensThatAllOfThemDraw) {
    EngineOptions options;
    options.model = THERMOCLINE_SOURCE_DIR "/models/demo";
    options.threads = 1;
    options.max_model_len = 512;
    options.gpus.gpus = "emulated";
    const Assembly assembly = assemble(options);
    const std::vector<int32_t> prompt = assembly.tokenizer->encode("And it came to pass");
    for (const SamplingParams& sampling :
         {SamplingParams{.temperature = 0}, SamplingParams{.temperature = 0.7f, .top_p = 0.9f, .seed = 5},
          SamplingParams{.top_k = 20, .seed = 6}, SamplingParams{.temperature = 0, .repetition_penalty = 1.2f}}) {
        std::vector<std::vector<int32_t>> drawn;
        for (const int32_t logprobs : {-1, 0}) {  // with log-probabilities all logits are fetched
            Request request;
            request.prompt = prompt;
            request.sampling = sampling;
            request.max_tokens = 12;
            request.logprobs = logprobs;
            auto collector = std::make_shared<Collector>();
            ASSERT_NE(assembly.engine->submit(std::move(request), collector), nullptr);
            ASSERT_TRUE(collector->done.pop(std::chrono::minutes(10)));
            EXPECT_NE(collector->result.reason, FinishReason::kError) << collector->result.error;
            drawn.push_back(collector->ids);
        }
        EXPECT_FALSE(drawn[0].empty());
        EXPECT_EQ(drawn[0], drawn[1]);
    }
}

}  // namespace
}  // namespace thermocline::engine
