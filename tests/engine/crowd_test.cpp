// The demo model with many requests at once: answers and log-probabilities to the last bit as those of a request alone,
// however passes are shared, memory is taken away and prefixes are found.
#include "src/engine/assemble.h"
#include "tests/engine/recorder.h"

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <gtest/gtest.h>
#include <random>

namespace thermocline::engine {
namespace {

using testing::Recorder;

EngineOptions demo() {
    EngineOptions options;
    options.model = std::string(THERMOCLINE_SOURCE_DIR) + "/models/demo";
    options.threads = 1;
    options.max_model_len = 1200;
    options.prefill_chunk = 64;
    options.prefix_bytes = 0;
    return options;
}

/// Some greedy, some drawn with a seed; prompts of 1 to 160 tokens, many of which begin alike.
std::vector<Request> crowd(int count) {
    std::mt19937 random(11);
    const auto token = [&] { return static_cast<int32_t>(10 + random() % 4000); };
    std::vector<std::vector<int32_t>> beginnings(3);
    for (auto& beginning : beginnings)
        for (int i = 0; i < 90; ++i) beginning.push_back(token());
    std::vector<Request> out;
    for (int i = 0; i < count; ++i) {
        Request request;
        if (i % 2 == 0) request.prompt = beginnings[random() % 3];
        for (uint32_t length = 1 + random() % 70; length > 0; --length) request.prompt.push_back(token());
        request.max_tokens = 1 + static_cast<int64_t>(random() % 16);
        request.sampling.temperature = i % 3 == 0 ? 0.0f : 0.9f;
        request.sampling.repetition_penalty = 1.1f;
        request.sampling.seed = random();
        request.ignore_eos = true;
        request.logprobs = 1;
        out.push_back(std::move(request));
    }
    return out;
}

using Answer = std::vector<std::pair<int32_t, float>>;

Answer answer(Recorder& recorder) {
    EXPECT_EQ(recorder.wait().reason, FinishReason::kLength) << recorder.result.error;
    Answer out;
    for (const Token& token : recorder.tokens) out.emplace_back(token.id, token.logprob);
    return out;
}

std::shared_ptr<Recorder> submit(Engine& engine, const Request& request) {
    auto recorder = std::make_shared<Recorder>();
    EXPECT_NE(engine.submit(request, recorder), nullptr);
    return recorder;
}

class CrowdTest : public ::testing::Test {
protected:
    static void SetUpTestSuite() {
        const Assembly assembly = assemble(demo());
        for (const Request& request : crowd(kCount)) alone().push_back(answer(*submit(*assembly.engine, request)));
    }
    static std::vector<Answer>& alone() {
        static std::vector<Answer> answers;
        return answers;
    }
    static void expect_as_alone(Engine& engine, uint32_t seed) {
        std::mt19937 random(seed);
        std::vector<std::shared_ptr<Recorder>> recorders;
        for (const Request& request : crowd(kCount)) {
            recorders.push_back(submit(engine, request));
            if (random() % 3 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(random() % 15));
        }
        for (size_t i = 0; i < recorders.size(); ++i) EXPECT_EQ(answer(*recorders[i]), alone()[i]) << "request " << i;
        EXPECT_EQ(engine.load().running + engine.load().waiting, 0);
        EXPECT_EQ(engine.counters().kv_used_bytes, 0);
    }

    static constexpr int kCount = 12;
};

TEST_F(CrowdTest, AnswersAreThoseOfARequestAlone) {
    EngineOptions options = demo();
    for (const int64_t sequences : {2, 8}) {
        SCOPED_TRACE(sequences);
        options.max_num_seqs = sequences;
        const Assembly assembly = assemble(options);
        expect_as_alone(*assembly.engine, static_cast<uint32_t>(sequences));
        EXPECT_EQ(assembly.engine->counters().prefix_hits, 0);
    }
}

TEST_F(CrowdTest, PrefixesChangeNoAnswer) {
    EngineOptions options = demo();
    options.max_num_seqs = 4;
    for (const int64_t bytes : {int64_t{3} << 20, int64_t{1} << 30}) {
        SCOPED_TRACE(bytes);
        options.prefix_bytes = bytes;
        const Assembly assembly = assemble(options);
        for (const uint32_t seed : {1, 2}) expect_as_alone(*assembly.engine, seed);
        if (bytes > int64_t{1} << 29) {
            EXPECT_GT(assembly.engine->counters().prefix_hits, 0);
        }
        EXPECT_LE(assembly.engine->counters().prefix_bytes, bytes);
    }
}

/// Two that fit until both need one page more.
TEST_F(CrowdTest, PreemptionChangesNoAnswer) {
    EngineOptions options = demo();
    options.prefill_chunk = 256;
    options.max_num_seqs = 2;
    options.max_model_len = 1008;  // of 1024 tokens that fit on a page of entries
    options.kv_bytes = assemble(options).engine->counters().kv_total_bytes;
    options.max_model_len = 1100;
    std::vector<Request> requests = crowd(2);
    for (Request& request : requests) {
        while (request.prompt.size() < 880) request.prompt.push_back(request.prompt[request.prompt.size() / 2] ^ 1);
        request.prompt.resize(880);
        request.max_tokens = 160;
    }
    std::vector<std::vector<Answer>> answers;
    for (const int64_t sequences : {1, 2, 2}) {
        options.max_num_seqs = sequences;
        const Assembly assembly = assemble(options);
        std::vector<std::shared_ptr<Recorder>> recorders;
        for (const Request& request : requests) recorders.push_back(submit(*assembly.engine, request));
        answers.push_back({answer(*recorders[0]), answer(*recorders[1])});
        EXPECT_EQ(assembly.engine->counters().preemptions, sequences - 1);
        if (answers.size() == 2) options.prefix_bytes = int64_t{1} << 30;  // the third goes on from where it was
    }
    EXPECT_EQ(answers[1], answers[0]);
    EXPECT_EQ(answers[2], answers[0]);
}

TEST_F(CrowdTest, ConversationsGoOn) {
    EngineOptions options = demo();
    options.prefix_bytes = int64_t{1} << 30;
    options.max_num_seqs = 2;
    const Assembly with = assemble(options);
    options.prefix_bytes = 0;
    const Assembly without = assemble(options);
    Request request = crowd(1)[0];
    request.prompt.resize(90);
    request.sampling.temperature = 0.9f;
    request.max_tokens = 20;
    for (int turn = 0; turn < 5; ++turn) {
        const auto known = submit(*with.engine, request), fresh = submit(*without.engine, request);
        EXPECT_EQ(answer(*known), answer(*fresh)) << turn;
        const int64_t cached = known->result.statistics.cached_tokens;
        if (turn > 0) {
            EXPECT_EQ(cached, std::ssize(request.prompt) - 11) << "prompt and answer, but the last token drawn";
        }
        for (const Token& token : known->tokens) request.prompt.push_back(token.id);
        for (int i = 0; i < 10; ++i) request.prompt.push_back(20 + turn + i);
    }
    // An answer that the next turn shows otherwise: back to the end of the prompt.
    const auto last = submit(*with.engine, request);
    last->wait();
    const int64_t prompt = std::ssize(request.prompt);
    request.prompt.push_back(5);
    request.prompt.push_back(6);
    const auto other = submit(*with.engine, request);
    other->wait();
    EXPECT_EQ(other->result.statistics.cached_tokens, prompt - 1);
    request.cache_salt = "somebody else";
    const auto salted = submit(*with.engine, request);
    EXPECT_EQ(answer(*salted), answer(*submit(*without.engine, request)));
    EXPECT_EQ(salted->result.statistics.cached_tokens, 0);
}

/// A folder that goes with the test.
struct Folder {
    Folder() {
        std::string pattern = (std::filesystem::temp_directory_path() / "prefixes-XXXXXX").string();
        path = ::mkdtemp(pattern.data());
    }
    ~Folder() { std::filesystem::remove_all(path); }
    std::string path;
};

TEST_F(CrowdTest, StatesOutliveTheEngine) {
    const Folder folder;
    EngineOptions options = demo();
    options.max_num_seqs = 4;
    std::vector<Request> requests = crowd(4);
    for (Request& request : requests) {
        while (request.prompt.size() < 400) request.prompt.push_back(request.prompt[request.prompt.size() / 2] ^ 1);
        request.max_tokens = 6;
    }
    requests[2].prompt = requests[1].prompt;
    requests[2].cache_salt = "another";
    const auto play = [&](int64_t cached, int64_t salted) {
        const Assembly assembly = assemble(options);
        std::vector<std::shared_ptr<Recorder>> recorders;
        for (const Request& request : requests) recorders.push_back(submit(*assembly.engine, request));
        std::vector<Answer> answers;
        for (size_t i = 0; i < recorders.size(); ++i) {
            answers.push_back(answer(*recorders[i]));
            EXPECT_EQ(recorders[i]->result.statistics.cached_tokens, i == 2 ? salted : cached) << i;
        }
        return answers;
    };
    const std::vector<Answer> expected = play(0, 0);
    options.prefix_disk = folder.path;
    options.prefix_disk_bytes = int64_t{1} << 30;
    options.prefix_bytes = int64_t{1} << 30;
    EXPECT_EQ(play(0, 0), expected);
    const int64_t all_but_one = 399;
    EXPECT_EQ(play(all_but_one, all_but_one), expected) << "another engine, the same files";
    requests[2].cache_salt = "a third";
    EXPECT_EQ(play(all_but_one, 0), expected);
    options.load.layers = 3;  // another model
    const std::vector<Answer> others = play(0, 0);
    EXPECT_NE(others, expected);
    options.load.layers = 0;
    for (const auto& item : std::filesystem::directory_iterator(folder.path)) {
        std::fstream file(item.path(), std::ios::in | std::ios::out | std::ios::binary);
        file.seekp(static_cast<std::streamoff>(item.file_size() / 2));
        const char there = static_cast<char>(file.peek());
        file.seekp(static_cast<std::streamoff>(item.file_size() / 2));
        file.put(static_cast<char>(there ^ 1));
    }
    EXPECT_EQ(play(0, 0), expected) << "every file is damaged";
}

}  // namespace
}  // namespace thermocline::engine
