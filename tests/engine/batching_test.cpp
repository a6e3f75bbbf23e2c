// Many requests at once on the fake model: nobody's answer depends on the others, and nobody's fault is another's.
#include "src/base/error.h"
#include "src/engine/engine.h"
#include "tests/engine/fake_model.h"
#include "tests/engine/recorder.h"

#include <gtest/gtest.h>
#include <random>

namespace thermocline::engine {
namespace {

using namespace thermocline::testing;

/// A store of pages that runs out.
class FewPages : public memory::PageStore {
public:
    explicit FewPages(int64_t pages) : left_(pages) {}
    std::byte* take(int64_t bytes) override {
        if (left_ == 0) return nullptr;
        --left_;
        return memory::host_pages().take(bytes);
    }
    void give_back(std::byte* page, int64_t bytes) noexcept override {
        ++left_;
        memory::host_pages().give_back(page, bytes);
    }
    void read(const std::byte* page, void* to, int64_t bytes) override { memory::host_pages().read(page, to, bytes); }
    void write(std::byte* page, const void* from, int64_t bytes) override {
        memory::host_pages().write(page, from, bytes);
    }
    int64_t left() const { return left_; }

private:
    std::atomic<int64_t> left_;
};

class BatchingTest : public ::testing::Test {
protected:
    BatchingTest() { script->limits = {.max_rows = 12, .max_outputs = 8, .max_tokens = 64, .max_parts = 8}; }

    std::unique_ptr<Engine> make(int64_t sequences, int64_t kv_bytes = 0) {
        EngineLimits limits;
        limits.eos_ids = {kEos};
        limits.max_sequences = sequences;
        limits.kv_bytes = kv_bytes;
        return std::make_unique<Engine>(std::make_unique<FakeForward>(script), std::move(limits),
                                        cpu::select_kernels("auto"));
    }
    static Request request(const std::string& prompt, int64_t max_tokens, uint64_t seed = 0) {
        Request out;
        out.prompt = byte_ids(prompt);
        out.max_tokens = max_tokens;
        out.ignore_eos = true;
        out.sampling.temperature = seed == 0 ? 0.0f : 3.0f;
        out.sampling.frequency_penalty = seed == 0 ? 0.0f : 0.5f;  // what was drawn matters
        out.sampling.seed = seed;
        out.sampling.logit_bias = {{byte_id('!'), -100.0f}};  // after it the model fails
        return out;
    }
    static std::shared_ptr<Recorder> submit(Engine& engine, Request what) {
        auto recorder = std::make_shared<Recorder>();
        EXPECT_NE(engine.submit(std::move(what), recorder), nullptr);
        return recorder;
    }
    static std::vector<int32_t> ids(Recorder& recorder) {
        recorder.wait();
        std::vector<int32_t> out;
        for (const Token& token : recorder.tokens) out.push_back(token.id);
        return out;
    }
    /// Prompts and seeds of all kinds.
    static std::vector<Request> crowd(int count, uint32_t most_output = 24) {
        std::mt19937 random(7);
        std::vector<Request> out;
        for (int i = 0; i < count; ++i) {
            const std::string prompt(1 + random() % 40, static_cast<char>('a' + random() % 26));
            out.push_back(
                request(prompt, 1 + static_cast<int64_t>(random() % most_output), i % 3 == 0 ? 0 : random() % 1000));
            out.back().priority = static_cast<int32_t>(random() % 2);
        }
        return out;
    }
    /// What each answers when it is alone.
    std::vector<std::vector<int32_t>> alone(const std::vector<Request>& requests) {
        auto engine = make(1);
        std::vector<std::vector<int32_t>> out;
        for (const Request& one : requests) out.push_back(ids(*submit(*engine, one)));
        return out;
    }
    void expect_as_alone(Engine& engine, const std::vector<Request>& requests) {
        const auto expected = alone(requests);
        script->most_parts = 0;
        std::vector<std::shared_ptr<Recorder>> recorders;
        std::mt19937 random(3);
        for (const Request& one : requests) {
            recorders.push_back(submit(engine, one));
            if (random() % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(random() % 3000));
        }
        for (size_t i = 0; i < requests.size(); ++i) {
            EXPECT_EQ(ids(*recorders[i]), expected[i]) << i;
            EXPECT_EQ(recorders[i]->result.reason, FinishReason::kLength);
            EXPECT_EQ(recorders[i]->result.statistics.output_tokens, std::ssize(expected[i]));
            EXPECT_EQ(recorders[i]->result.statistics.decode_steps, std::ssize(expected[i]) - 1);
            EXPECT_TRUE(std::is_sorted(recorders[i]->progress.begin(), recorders[i]->progress.end()));
            EXPECT_EQ(recorders[i]->progress.back(), recorders[i]->result.statistics.prompt_tokens);
        }
    }

    std::shared_ptr<FakeForward::Script> script = std::make_shared<FakeForward::Script>();
};

TEST_F(BatchingTest, AnswersAreThoseOfARequestAlone) {
    for (const int64_t sequences : {1, 2, 4, 8}) {
        SCOPED_TRACE(sequences);
        auto engine = make(sequences);
        expect_as_alone(*engine, crowd(60));
        EXPECT_LE(script->most_parts, sequences);
        if (sequences > 1) {
            EXPECT_GT(script->most_parts, 1);
        }
        const Counters counters = engine->counters();
        EXPECT_EQ(counters.running + counters.waiting, 0);
        EXPECT_EQ(counters.kv_used_bytes, 0);
        EXPECT_EQ(counters.preemptions, 0);
    }
}

TEST_F(BatchingTest, AnswersSurvivePreemption) {
    script->bytes_per_token = 10;
    script->limits.max_tokens = 300;
    auto engine = make(8, 3000);
    // Whether memory gets short depends on how fast requests come.
    for (int round = 0; round < 20 && engine->counters().preemptions == 0; ++round)
        expect_as_alone(*engine, crowd(80, 100));
    EXPECT_GT(engine->counters().preemptions, 0);
    EXPECT_EQ(engine->counters().kv_total_bytes, 3000);
    EXPECT_THROW(make(8, 2999), Error) << "the longest sequence needs 3000";
}

/// In one turn: two outgrow the memory, and for the one that has to go a third comes.
TEST_F(BatchingTest, WhoIsPreemptedLeavesItsPlaceToAnother) {
    script->bytes_per_token = 10;
    script->limits.max_tokens = 300;
    auto engine = make(2, 3000);
    Request first = request(std::string(60, 'a'), 180), second = request(std::string(60, 'b'), 180),
            third = request("c", 5);
    second.priority = 5;
    const auto expected = alone({first, second, third});
    script->step_milliseconds = 1;  // the first one runs when the others come
    for (int round = 0; round < 20 && engine->counters().preemptions == 0; ++round) {
        std::vector<std::shared_ptr<Recorder>> recorders;
        for (const Request& one : {first, second, third}) recorders.push_back(submit(*engine, one));
        for (size_t i = 0; i < recorders.size(); ++i) EXPECT_EQ(ids(*recorders[i]), expected[i]) << i;
    }
    EXPECT_GT(engine->counters().preemptions, 0);
}

TEST_F(BatchingTest, AnswersSurviveMemoryThatIsNotThere) {
    FewPages pages(150);
    script->pages = &pages;
    script->bytes_per_token = 65536;
    {
        auto engine = make(8, int64_t{65536} * 100000);
        script->pages = &memory::host_pages();
        const auto expected = alone(crowd(40));
        script->pages = &pages;
        std::vector<std::shared_ptr<Recorder>> recorders;
        for (const Request& one : crowd(40)) recorders.push_back(submit(*engine, one));
        for (size_t i = 0; i < recorders.size(); ++i) EXPECT_EQ(ids(*recorders[i]), expected[i]) << i;
        EXPECT_GT(engine->counters().preemptions, 0);
        EXPECT_LT(engine->counters().kv_total_bytes, 65536 * 300) << "150 pages, and what the others wanted besides";
    }
    EXPECT_EQ(pages.left(), 150) << "all pages came back";
}

TEST_F(BatchingTest, OneThatCannotHaveMemoryAloneFails) {
    FewPages pages(20);
    script->pages = &pages;
    auto engine = make(2);
    auto recorder = submit(*engine, request("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", 4));
    EXPECT_EQ(recorder->wait().reason, FinishReason::kError);
    EXPECT_NE(recorder->result.error.find("out of memory"), std::string::npos);
    EXPECT_EQ(ids(*submit(*engine, request("a", 3))).size(), 3u) << "the engine goes on";
}

TEST_F(BatchingTest, AFaultIsNobodyElses) {
    script->step_milliseconds = 1;
    auto engine = make(4);
    auto good = submit(*engine, request("a", 20)), other = submit(*engine, request("bcd", 20, 5));
    auto bad = submit(*engine, request("abc!", 20)), stops = std::make_shared<Recorder>();
    stops->stop_after = 3;
    engine->submit(request("x", 30), stops);
    EXPECT_EQ(bad->wait().reason, FinishReason::kError);
    EXPECT_EQ(stops->wait().reason, FinishReason::kStop);
    EXPECT_EQ(stops->tokens.size(), 3u);
    const auto expected = alone({request("a", 20), request("bcd", 20, 5)});
    EXPECT_EQ(ids(*good), expected[0]);
    EXPECT_EQ(ids(*other), expected[1]);
}

TEST_F(BatchingTest, ALostCardEndsWhatWasInFlight) {
    script->step_milliseconds = 3;
    auto engine = make(2);
    auto first = submit(*engine, request("a", 50)), second = submit(*engine, request("b", 50));
    auto third = submit(*engine, request("c", 5));
    while (engine->counters().passes < 4) std::this_thread::yield();
    script->failures = 1;
    EXPECT_EQ(first->wait().reason, FinishReason::kError);
    EXPECT_EQ(second->wait().reason, FinishReason::kError);
    EXPECT_NE(first->result.error.find("the card is lost"), std::string::npos);
    EXPECT_EQ(third->wait().reason, FinishReason::kLength) << "it waited, and the engine goes on";
    EXPECT_EQ(third->text, "defgi");
}

TEST_F(BatchingTest, CancellingOneLeavesTheOthers) {
    script->step_milliseconds = 2;
    script->limits.max_tokens = 100000;
    auto engine = make(3);
    auto gone = std::make_shared<Recorder>();
    const auto ticket = engine->submit(request("a", 90000), gone);
    auto stays = submit(*engine, request("b", 60));
    while (engine->counters().passes < 5) std::this_thread::yield();
    EXPECT_EQ(engine->load().running, 2);
    ticket->cancel();
    const int64_t passes = engine->counters().passes;
    EXPECT_EQ(gone->wait().reason, FinishReason::kCancelled);
    EXPECT_LE(engine->counters().passes, passes + 2) << "the pass that was running, and perhaps one more was counted";
    EXPECT_EQ(ids(*stays).size(), 60u);
}

TEST_F(BatchingTest, ScoringSharesPasses) {
    auto engine = make(4);
    Request scores = request("abcdefijkabcdefijkabcdefijk", 3);
    scores.prompt_logprobs = 1;
    scores.logprobs = 1;
    auto one = submit(*engine, scores), two = submit(*engine, request("a", 30)), three = submit(*engine, scores);
    for (const auto& recorder : {one, three}) {
        recorder->wait();
        ASSERT_EQ(recorder->prompt.size(), 27u);
        for (size_t i = 1; i < 27; ++i) EXPECT_EQ(recorder->prompt[i].id, scores.prompt[i]);
        EXPECT_EQ(recorder->prompt[1].logprob, recorder->prompt[1].top[0].logprob) << "b after a was the best";
        EXPECT_LT(recorder->prompt[6].logprob, recorder->prompt[6].top[0].logprob) << "i after f was not";
        EXPECT_EQ(recorder->text, "lno");
    }
    EXPECT_EQ(ids(*two).size(), 30u);
}

TEST_F(BatchingTest, ScoresAreReportedOnceThoughComputedAgain) {
    script->bytes_per_token = 10;
    script->step_milliseconds = 1;  // all are there before the first has ended
    script->limits.max_tokens = 300;
    auto engine = make(8, 3000);
    std::vector<std::shared_ptr<Recorder>> recorders;
    for (int i = 0; i < 12; ++i) {
        Request scores = request(std::string(20, static_cast<char>('a' + i)), 60);
        scores.prompt_logprobs = 0;
        scores.logprobs = 0;
        recorders.push_back(submit(*engine, scores));
    }
    for (const auto& recorder : recorders) {
        recorder->wait();
        EXPECT_EQ(recorder->prompt.size(), 20u);
        EXPECT_EQ(recorder->tokens.size(), 60u);
    }
    EXPECT_GT(engine->counters().preemptions, 0);
}

TEST_F(BatchingTest, TheMoreImportantGoFirst) {
    script->step_milliseconds = 2;
    auto engine = make(1);
    auto first = submit(*engine, request("a", 20));
    while (engine->load().running == 0) std::this_thread::yield();
    Request later = request("b", 20), urgent = request("c", 3);
    urgent.priority = -1;
    auto second = submit(*engine, later), third = submit(*engine, urgent);
    // It came later and began earlier.
    EXPECT_LT(third->wait().statistics.queue_seconds, second->wait().statistics.queue_seconds);
}

TEST_F(BatchingTest, ManyThreadsSubmitAndCancel) {
    auto engine = make(8);
    std::vector<std::thread> threads;
    std::atomic<int> ended = 0;
    for (uint32_t t = 0; t < 4; ++t)
        threads.emplace_back([&, t] {
            std::mt19937 random(t);
            for (int i = 0; i < 50; ++i) {
                auto recorder = std::make_shared<Recorder>();
                const auto ticket = engine->submit(request("abc", 1 + static_cast<int64_t>(random() % 40)), recorder);
                if (!ticket) continue;
                if (random() % 3 == 0) ticket->cancel();
                engine->counters();
                recorder->wait();
                ++ended;
            }
        });
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(ended, 200);
    EXPECT_EQ(engine->load().running + engine->load().waiting, 0);
}

}  // namespace
}  // namespace thermocline::engine
