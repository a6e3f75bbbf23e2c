// A model that spells a given text after every prompt, whatever the prompt says: answers with markup that no table
// model would write. One request at a time.
#pragma once

#include "tests/server/server_fixture.h"

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace thermocline::server {

struct Replay {
    std::vector<int32_t> answer;      // set between requests only, or by on_prompt
    std::function<void()> on_prompt;  // a new answer begins
    std::chrono::duration<double> pace{0};
};

class ReplayForward : public engine::Forward {
public:
    explicit ReplayForward(std::shared_ptr<Replay> replay) : replay_(std::move(replay)) {}

    int64_t vocab() const override { return kVocab; }
    scheduler::ExecutorLimits limits() const override {
        return {.max_rows = 64, .max_outputs = 64, .max_tokens = 20000};
    }
    std::unique_ptr<memory::SequenceCache> new_sequence() override {
        return std::make_unique<memory::SequenceCache>(std::vector<ops::CacheSpec>{}, 20000);
    }
    void forward(std::span<const scheduler::Part> parts) override {
        logits_.assign(0, 0.0f);
        for (const scheduler::Part& part : parts) {
            const auto size = static_cast<int64_t>(part.tokens.size());
            // One row that is what was spelled last: the answer goes on. All else is a prompt.
            const bool goes_on = size == 1 && next_ > 0 && part.tokens[0] == replay_->answer[next_ - 1];
            if (!goes_on) next_ = 0;
            if (!goes_on && part.outputs > 0 && replay_->on_prompt) replay_->on_prompt();
            if (part.outputs > 0) std::this_thread::sleep_for(replay_->pace);
            for (int32_t i = 0; i < part.outputs; ++i) {
                logits_.resize(logits_.size() + kVocab, 0.0f);
                const bool ends = next_ == replay_->answer.size();
                logits_[logits_.size() - kVocab + static_cast<size_t>(ends ? kEos : replay_->answer[next_])] = 50.0f;
                next_ = ends ? 0 : next_ + 1;
            }
            part.sequence->advance(size);
        }
    }
    const float* logits(int64_t output) const override { return logits_.data() + output * kVocab; }
    int64_t last_bytes() const override { return 1000; }

private:
    std::shared_ptr<Replay> replay_;
    size_t next_ = 0;
    std::vector<float> logits_;
};

/// The server with that model.
class ReplayServerTest : public ServerTest {
protected:
    ReplayServerTest() {
        stop();
        start({});
        serve();
    }
    std::unique_ptr<engine::Forward> new_model() override { return std::make_unique<ReplayForward>(replay); }
    void answer(const std::string& text) { replay->answer = tokenizer->encode(text); }

    std::shared_ptr<Replay> replay = std::make_shared<Replay>();
};

const std::string kTwoCalls =
    "\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"get_weather\">\n"
    "<｜DSML｜parameter name=\"city\" string=\"true\">Rome</｜DSML｜parameter>\n"
    "<｜DSML｜parameter name=\"days\" string=\"false\">2</｜DSML｜parameter>\n</｜DSML｜invoke>\n"
    "<｜DSML｜invoke name=\"ping\">\n\n</｜DSML｜invoke>\n</｜DSML｜tool_calls>";

}  // namespace thermocline::server
