// A constraint on the output: the sampler draws from its mask alone, the sequence ends with it.
#include "src/engine/constraint.h"

#include "src/engine/engine.h"
#include "tests/engine/fake_model.h"

#include <future>
#include <gtest/gtest.h>

namespace thermocline::engine {
namespace {

using namespace thermocline::testing;

/// Allows one given text, byte by byte.
class Dictation : public TokenConstraint {
public:
    explicit Dictation(std::string text) : text_(std::move(text)) {}
    std::span<const uint64_t> mask() override {
        words_.assign((kVocab + 63) / 64, 0);
        const auto id = static_cast<size_t>(byte_id(text_[taken_]));
        words_[id / 64] |= uint64_t{1} << id % 64;
        return words_;
    }
    void accept(int32_t id) override {
        EXPECT_EQ(id, byte_id(text_[taken_]));
        ++taken_;
    }
    bool ended() const override { return taken_ == text_.size(); }

private:
    std::string text_;
    size_t taken_ = 0;
    std::vector<uint64_t> words_;
};

class Recorder : public Listener {
public:
    bool on_token(const Token& token) override {
        text += static_cast<char>(token.id - kFirstByte);
        return true;
    }
    void on_finish(const Result& result) override { finished.set_value(result.reason); }
    std::string text;
    std::promise<FinishReason> finished;
};

TEST(Constraint, DecidesWhatIsDrawnAndEndsTheSequence) {
    Engine engine(std::make_unique<FakeForward>(std::make_shared<FakeForward::Script>()), EngineLimits{1, {kEos}},
                  cpu::select_kernels("auto"));
    for (const bool hostile : {false, true}) {
        Request request;
        request.prompt = byte_ids("a");
        request.constraint = std::make_shared<Dictation>("{\"k\": 1}");
        request.ignore_eos = hostile;
        request.min_tokens = hostile ? 30 : 0;
        const auto recorder = std::make_shared<Recorder>();
        ASSERT_NE(engine.submit(request, recorder), nullptr);
        EXPECT_EQ(recorder->finished.get_future().get(), FinishReason::kStop);
        EXPECT_EQ(recorder->text, "{\"k\": 1}");
    }
}

TEST(Constraint, IdsBeyondTheMaskCannotComeOut) {
    const std::vector<float> logits(200, 1.0f);
    Sampler sampler(200, cpu::select_kernels("auto"));
    const TokenHistory history(200);
    const std::vector<uint64_t> allowed = {0, uint64_t{1} << 3 | uint64_t{1} << 60};
    for (uint64_t step = 0; step < 50; ++step) {
        const int32_t id = sampler.sample(logits, {}, history, {allowed, {}}, step);
        EXPECT_TRUE(id == 67 || id == 124) << id;
    }
    const std::vector<int32_t> not_that = {67};
    EXPECT_EQ(sampler.sample(logits, {}, history, {allowed, not_that}, 0), 124);
}

}  // namespace
}  // namespace thermocline::engine
