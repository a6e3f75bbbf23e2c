// The choices of one request on the fake model: run together, and compute what they share once.
#include "src/server/generation.h"

#include "src/server/errors.h"
#include "tests/engine/fake_model.h"

#include <gtest/gtest.h>

namespace thermocline::server {
namespace {

using namespace thermocline::testing;

class GenerationTest : public ::testing::Test {
protected:
    GenerationTest() { script->limits = {.max_rows = 16, .max_outputs = 16, .max_tokens = 100, .max_parts = 8}; }

    std::unique_ptr<engine::Engine> make(int64_t sequences) {
        engine::EngineLimits limits;
        limits.eos_ids = {kEos};
        limits.max_sequences = sequences;
        return std::make_unique<engine::Engine>(std::make_unique<FakeForward>(script), std::move(limits),
                                                cpu::select_kernels("auto"));
    }
    std::vector<ChoicePlan> choices(std::initializer_list<const char*> prompts, int64_t max_tokens = 10) {
        std::vector<ChoicePlan> plans;
        for (const char* prompt : prompts) {
            ChoicePlan plan{{}, [this] {
                                return std::make_unique<engine::PlainOutput>(tokenizer, std::vector<std::string>(),
                                                                             false, true, 0);
                            }};
            plan.request.prompt = byte_ids(prompt);
            plan.request.sampling.temperature = 0;
            plan.request.max_tokens = max_tokens;
            plan.request.ignore_eos = true;
            plans.push_back(std::move(plan));
        }
        return plans;
    }
    static std::vector<std::string> texts(Generation& generation, size_t count) {
        std::vector<std::string> out(count);
        while (!generation.done())
            if (const auto delta = generation.next(std::chrono::milliseconds(100)))
                for (const auto& event : delta->events) out[static_cast<size_t>(delta->choice)] += event.text;
        return out;
    }

    text::Tokenizer tokenizer = fake_tokenizer();
    std::shared_ptr<FakeForward::Script> script = std::make_shared<FakeForward::Script>();
};

TEST_F(GenerationTest, ChoicesOfAPromptComputeItOnce) {
    const auto engine = make(8);
    script->step_milliseconds = 2;
    Generation generation(*engine,
                          choices({"mmmmmmmmmmmmmmmmmmmmmmmmma", "mmmmmmmmmmmmmmmmmmmmmmmmma",
                                   "mmmmmmmmmmmmmmmmmmmmmmmmma", "mmmmmmmmmmmmmmmmmmmmmmmmma"}),
                          false);
    EXPECT_EQ(texts(generation, 4), (std::vector<std::string>(4, "bcdefgijkl")));
    EXPECT_GE(script->most_parts, 3) << "those after the first run together";
    EXPECT_EQ(script->rows, 26 + 3 + 4 * 9) << "of the prompt the others compute the last token";
}

TEST_F(GenerationTest, OtherPromptsRunAtOnce) {
    const auto engine = make(3);
    script->step_milliseconds = 2;
    Generation generation(*engine, choices({"a", "b", "c", "q", "r"}, 5), false);
    EXPECT_EQ(texts(generation, 5), (std::vector<std::string>{"bcdef", "cdefg", "defgi", "rstuv", "stuvw"}));
    EXPECT_EQ(script->most_parts, 3);
}

TEST_F(GenerationTest, LeavingCancelsAllChoices) {
    const auto engine = make(2);
    script->step_milliseconds = 2;
    {
        Generation generation(*engine, choices({"a", "b", "c"}, 90), false);
        while (engine->load().running < 2) std::this_thread::yield();
    }
    for (int i = 0; i < 500 && engine->load().running + engine->load().waiting > 0; ++i)
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
    EXPECT_EQ(engine->load().running + engine->load().waiting, 0);
}

TEST_F(GenerationTest, OneThatFailsEndsTheRequest) {
    const auto engine = make(3);
    Generation generation(*engine, choices({"a", "!", "c"}, 20), false);
    EXPECT_THROW(texts(generation, 3), RequestError);
}

}  // namespace
}  // namespace thermocline::server
