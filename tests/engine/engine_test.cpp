#include "src/engine/engine.h"

#include "src/base/queue.h"
#include "tests/engine/fake_model.h"
#include "tests/engine/recorder.h"

#include <cmath>
#include <future>
#include <gtest/gtest.h>

namespace thermocline::engine {
namespace {

using namespace thermocline::testing;

class EngineTest : public ::testing::Test {
protected:
    std::shared_ptr<FakeForward::Script> script = std::make_shared<FakeForward::Script>();

    std::unique_ptr<Engine> make(int64_t max_queue = 256) {
        return std::make_unique<Engine>(std::make_unique<FakeForward>(script), EngineLimits{max_queue, {kEos}},
                                        cpu::select_kernels("auto"));
    }
    static Request greedy(const std::string& prompt, int64_t max_tokens = -1) {
        Request request;
        request.prompt = byte_ids(prompt);
        request.sampling.temperature = 0;
        request.max_tokens = max_tokens;
        return request;
    }
    static std::shared_ptr<Recorder> run(Engine& engine, const Request& request) {
        auto recorder = std::make_shared<Recorder>();
        EXPECT_NE(engine.submit(request, recorder), nullptr);
        recorder->wait();
        return recorder;
    }
};

TEST_F(EngineTest, GeneratesUntilEndOfSentence) {
    auto engine = make();
    const auto recorder = run(*engine, greedy("uv"));
    EXPECT_EQ(recorder->text, "wxyz");
    EXPECT_EQ(recorder->result.reason, FinishReason::kStop);
    EXPECT_EQ(recorder->result.stop_token, -1);
    ASSERT_EQ(recorder->tokens.size(), 5u);
    EXPECT_TRUE(recorder->tokens.back().ends);
    EXPECT_EQ(recorder->result.statistics.output_tokens, 5);
    EXPECT_EQ(recorder->result.statistics.prompt_tokens, 2);
    EXPECT_EQ(recorder->result.statistics.prefill_bytes, 1000);
    EXPECT_EQ(recorder->result.statistics.decode_bytes, 4000);
    EXPECT_EQ(recorder->finishes, 1);
}

TEST_F(EngineTest, APassWhoseWorkerHangsIsGivenUp) {
    const std::vector<int> places = {0, 1};
    cpu::Workers workers(places);
    std::promise<void> release;
    const std::shared_future<void> released = release.get_future().share();
    script->in_pass = [&] {
        workers.each([&](int worker) {
            if (worker == 1) released.wait();
        });
    };
    auto engine = make();
    engine->watch(workers, std::chrono::milliseconds(200));
    const auto first = std::make_shared<Recorder>(), second = std::make_shared<Recorder>();
    ASSERT_NE(engine->submit(greedy("a"), first), nullptr);
    const bool waits = engine->submit(greedy("b"), second) != nullptr;  // unless the first has failed already
    EXPECT_EQ(first->wait().reason, FinishReason::kError);
    EXPECT_NE(first->result.error.find("worker 1 on CPU 1 "), std::string::npos) << first->result.error;
    if (waits) {
        EXPECT_EQ(second->wait().reason, FinishReason::kError);
    }
    EXPECT_TRUE(engine->broken());
    EXPECT_EQ(engine->load().running, 0);
    EXPECT_EQ(engine->submit(greedy("a"), std::make_shared<Recorder>()), nullptr);
    release.set_value();
    engine.reset();  // what the pass worked on was there to its end
    EXPECT_EQ(first->finishes, 1);
    EXPECT_TRUE(first->tokens.empty());
}

TEST_F(EngineTest, PromptIsComputedInChunks) {
    auto engine = make();
    const auto recorder = run(*engine, greedy("aaaaaaaaaq", 2));
    EXPECT_EQ(recorder->progress, (std::vector<int64_t>{0, 4, 8, 10}));
    EXPECT_EQ(recorder->text, "rs");
    EXPECT_EQ(recorder->result.reason, FinishReason::kLength);
}

TEST_F(EngineTest, ContextEndsTheOutput) {
    auto engine = make();
    Request request = greedy(std::string(60, 'b'));
    EXPECT_EQ(run(*engine, request)->result.statistics.output_tokens, 4);
    request.max_tokens = 1000;
    EXPECT_EQ(run(*engine, request)->result.reason, FinishReason::kLength);
}

TEST_F(EngineTest, RefusesBadRequests) {
    auto engine = make();
    const auto message = [&](const Request& request) {
        try {
            engine->submit(request, std::make_shared<Recorder>());
        } catch (const Error& error) {
            return std::string(error.what());
        }
        return std::string();
    };
    EXPECT_NE(message(greedy("")).find("empty"), std::string::npos);
    Request request = greedy("a");
    request.prompt.push_back(kVocab);
    EXPECT_NE(message(request).find("263 is out of vocabulary"), std::string::npos);
    request.prompt.back() = -1;
    EXPECT_NE(message(request).find("-1 is out of vocabulary"), std::string::npos);
    request = greedy("a");
    request.sampling.temperature = std::nanf("");
    EXPECT_NE(message(request).find("temperature is nan"), std::string::npos);
    EXPECT_THROW(engine->check(greedy(std::string(64, 'a'))), ContextOverflow);
    EXPECT_NO_THROW(engine->check(greedy(std::string(64, 'a'), 0)));
    EXPECT_THROW(engine->check(greedy(std::string(65, 'a'), 0)), ContextOverflow);
    request = greedy("a");
    request.sampling.logit_bias = {{9999, 1.0f}};
    EXPECT_THROW(engine->check(request), Error);
    request = greedy("a");
    request.stop_tokens = {-5};
    EXPECT_THROW(engine->check(request), Error);
}

TEST_F(EngineTest, StopTokensAndListenersStop) {
    auto engine = make();
    Request request = greedy("a");
    request.stop_tokens = {byte_id('d')};
    auto recorder = run(*engine, request);
    EXPECT_EQ(recorder->text, "bc");
    EXPECT_EQ(recorder->result.stop_token, byte_id('d'));
    EXPECT_EQ(recorder->result.reason, FinishReason::kStop);

    recorder = std::make_shared<Recorder>();
    recorder->stop_after = 3;
    engine->submit(greedy("a"), recorder);
    EXPECT_EQ(recorder->wait().reason, FinishReason::kStop);
    EXPECT_EQ(recorder->text, "bcd");
}

TEST_F(EngineTest, MinTokensAndIgnoreEosMaskTheEnd) {
    auto engine = make();
    Request request = greedy("y", 6);
    request.ignore_eos = true;
    EXPECT_EQ(run(*engine, request)->text, "zabcde");
    request = greedy("y", 6);
    request.min_tokens = 3;
    EXPECT_EQ(run(*engine, request)->text, "zabcde") << "EOS would have been the second token";
    request.min_tokens = 1;
    EXPECT_EQ(run(*engine, request)->text, "z");
}

TEST_F(EngineTest, SeedDecidesTheText) {
    auto engine = make();
    Request request = greedy("a", 30);
    request.sampling.temperature = 3;
    request.ignore_eos = true;
    request.sampling.seed = 5;
    const auto ids = [&] {
        std::vector<int32_t> out;
        const auto heard = run(*engine, request);  // outlives the loop over its tokens
        for (const Token& token : heard->tokens) out.push_back(token.id);
        return out;
    };
    const auto first = ids();
    EXPECT_EQ(ids(), first);
    request.sampling.seed = 6;
    EXPECT_NE(ids(), first);
}

TEST_F(EngineTest, PromptIsScored) {
    auto engine = make();
    Request request = greedy("abcdefijk", 1);
    request.logprobs = 2;
    request.prompt_logprobs = request.logprobs;
    for (int repeat = 0; repeat < 2; ++repeat) {
        const auto recorder = run(*engine, request);
        ASSERT_EQ(recorder->prompt.size(), 9u) << "the prefix in the caches is no excuse";
        EXPECT_TRUE(std::isnan(recorder->prompt[0].logprob));
        for (size_t i = 1; i < 9; ++i) {
            EXPECT_EQ(recorder->prompt[i].id, request.prompt[i]);
            EXPECT_EQ(recorder->prompt[i].top.size(), 2u);
        }
        EXPECT_EQ(recorder->prompt[1].logprob, recorder->prompt[1].top[0].logprob) << "b after a was the best";
        EXPECT_LT(recorder->prompt[6].logprob, recorder->prompt[6].top[0].logprob) << "i after f was not";
        EXPECT_EQ(recorder->prompt[1].rank, 1);
        EXPECT_GT(recorder->prompt[6].rank, 2) << "of the others the lower ids are likelier";
        EXPECT_EQ(recorder->tokens[0].top.size(), 2u);
    }
    request.max_tokens = 0;
    const auto recorder = run(*engine, request);
    EXPECT_EQ(recorder->prompt.size(), 9u);
    EXPECT_TRUE(recorder->tokens.empty());
    EXPECT_EQ(recorder->result.reason, FinishReason::kLength);
}

TEST_F(EngineTest, ContinuesFromEarlierConversations) {
    auto engine = make();
    run(*engine, greedy("abcdef", 4));  // the caches held abcdef + 3 of the 4 tokens drawn
    const int64_t before = script->rows;
    auto recorder = run(*engine, greedy("abcdefgijkX", 1));
    EXPECT_EQ(recorder->result.statistics.cached_tokens, 9);
    EXPECT_EQ(script->rows - before, 2);
    EXPECT_EQ(recorder->progress.front(), 9);

    recorder = run(*engine, greedy("abcdeZ", 1));
    EXPECT_EQ(recorder->result.statistics.cached_tokens, 5) << "where the first prompt ended, but one";
    recorder = run(*engine, greedy("abcdeZ", 1));
    EXPECT_EQ(recorder->result.statistics.cached_tokens, 5) << "the last token is always computed";
    recorder = run(*engine, greedy("abcdZ", 1));
    EXPECT_EQ(recorder->result.statistics.cached_tokens, 0) << "no state was kept there";
    recorder = run(*engine, greedy("qqq", 1));
    EXPECT_EQ(recorder->result.statistics.cached_tokens, 0);

    Request alone = greedy("sssr", 1);
    alone.reuse_prefix = false;
    run(*engine, alone);
    EXPECT_EQ(run(*engine, greedy("sssr", 1))->result.statistics.cached_tokens, 0) << "it has left nothing";
    Request request = greedy("qqqr", 1);
    request.reuse_prefix = false;
    EXPECT_EQ(run(*engine, request)->result.statistics.cached_tokens, 0);
    request.reuse_prefix = true;
    request.cache_salt = "another";
    EXPECT_EQ(run(*engine, request)->result.statistics.cached_tokens, 0);
    EXPECT_EQ(run(*engine, request)->result.statistics.cached_tokens, 3);
    const Counters counters = engine->counters();
    EXPECT_EQ(counters.prefix_hits, 9 + 5 + 5 + 3);
    EXPECT_EQ(counters.prompt_tokens, 6 + 11 + 6 + 6 + 5 + 3 + 4 + 4 + 4 + 4 + 4);
    EXPECT_GT(counters.prefix_bytes, 0);
}

TEST_F(EngineTest, CancelStopsWithinAStep) {
    script->step_milliseconds = 5;
    script->limits.max_tokens = 100000;
    auto engine = make();
    Request request = greedy("a");
    request.ignore_eos = true;
    auto recorder = std::make_shared<Recorder>();
    const auto ticket = engine->submit(request, recorder);
    std::this_thread::sleep_for(std::chrono::milliseconds(40));
    EXPECT_EQ(engine->load().running, 1);
    ticket->cancel();
    EXPECT_EQ(recorder->wait().reason, FinishReason::kCancelled);
    EXPECT_EQ(run(*engine, greedy("x", 1))->text, "y") << "the engine goes on";
    ticket->cancel();
}

TEST_F(EngineTest, OthersWaitInOrder) {
    script->step_milliseconds = 2;
    auto engine = make(2);
    std::vector<std::shared_ptr<Recorder>> recorders;
    std::vector<std::shared_ptr<Ticket>> tickets;
    const auto submit = [&](const std::string& prompt) {
        recorders.push_back(std::make_shared<Recorder>());
        tickets.push_back(engine->submit(greedy(prompt, 10), recorders.back()));
    };
    submit("a");
    while (engine->load().running == 0) std::this_thread::yield();
    submit("b");
    submit("c");
    submit("d");
    EXPECT_EQ(tickets[3], nullptr) << "the queue holds two";
    EXPECT_EQ(engine->load().waiting, 2);
    tickets[1]->cancel();
    submit("e");
    EXPECT_NE(tickets[4], nullptr) << "a cancelled request does not count";
    EXPECT_EQ(recorders[0]->wait().reason, FinishReason::kLength);
    EXPECT_EQ(recorders[1]->wait().reason, FinishReason::kCancelled);
    EXPECT_TRUE(recorders[1]->tokens.empty());
    EXPECT_EQ(recorders[2]->wait().reason, FinishReason::kLength);
    EXPECT_EQ(recorders[4]->wait().reason, FinishReason::kLength);
}

TEST_F(EngineTest, BadLogitsFailTheRequestNotTheEngine) {
    auto engine = make();
    const auto recorder = run(*engine, greedy("abc!", 5));
    EXPECT_EQ(recorder->result.reason, FinishReason::kError);
    EXPECT_NE(recorder->result.error.find("nan"), std::string::npos) << recorder->result.error;
    const auto next = run(*engine, greedy("abc", 1));
    EXPECT_EQ(next->text, "d");
    EXPECT_EQ(next->result.statistics.cached_tokens, 0) << "caches of a failed pass are not trusted";
}

TEST_F(EngineTest, DrainLetsTheRunningOneEnd) {
    script->step_milliseconds = 3;
    auto engine = make();
    auto running = std::make_shared<Recorder>(), waiting = std::make_shared<Recorder>();
    engine->submit(greedy("a", 10), running);
    while (engine->load().running == 0) std::this_thread::yield();
    engine->submit(greedy("b", 10), waiting);
    engine->drain();
    EXPECT_EQ(engine->submit(greedy("c"), std::make_shared<Recorder>()), nullptr);
    EXPECT_EQ(running->wait().reason, FinishReason::kLength);
    EXPECT_EQ(waiting->wait().reason, FinishReason::kRefused);
}

TEST_F(EngineTest, DestructionEndsEverything) {
    script->step_milliseconds = 2;
    script->limits.max_tokens = 100000;
    auto running = std::make_shared<Recorder>(), waiting = std::make_shared<Recorder>();
    Request request = greedy("a");
    request.ignore_eos = true;
    {
        auto engine = make();
        engine->submit(request, running);
        while (engine->load().running == 0) std::this_thread::yield();
        engine->submit(request, waiting);
    }
    EXPECT_EQ(running->result.reason, FinishReason::kCancelled);
    EXPECT_EQ(waiting->result.reason, FinishReason::kRefused);
}

TEST(BoundedQueue, NeverMakesTheProducerWait) {
    BoundedQueue<int> queue(2);
    EXPECT_TRUE(queue.push(1));
    EXPECT_TRUE(queue.push(2));
    EXPECT_FALSE(queue.push(3));
    EXPECT_EQ(queue.pop(std::chrono::milliseconds(1)), 1);
    queue.close();
    EXPECT_FALSE(queue.push(4));
    EXPECT_FALSE(queue.finished());
    EXPECT_EQ(queue.pop(std::chrono::milliseconds(1)), 2);
    EXPECT_TRUE(queue.finished());
    EXPECT_EQ(queue.pop(std::chrono::hours(1)), std::nullopt) << "at once when closed";
}

}  // namespace
}  // namespace thermocline::engine
