#include "src/server/generation.h"

#include "src/server/errors.h"

#include <thread>
#include <utility>

namespace thermocline::server {
namespace {

/// Steps of the engine that a client may be behind before its request is given up.
constexpr size_t kQueueSteps = 1 << 16;

/// Runs on the engine thread.
class ChoiceListener : public engine::Listener {
public:
    ChoiceListener(int32_t choice, std::shared_ptr<DeltaQueue> queue, std::unique_ptr<engine::Output> output,
                   bool wants_progress)
        : choice_(choice), queue_(std::move(queue)), output_(std::move(output)), wants_progress_(wants_progress) {}

    void on_prefill(int64_t processed, int64_t total) override {
        if (!wants_progress_) return;
        const auto now = engine::Clock::now();
        if (cached_ < 0) {
            cached_ = processed;
            started_ = now;
        }
        Delta delta = new_delta();
        delta.prefilled = processed;
        delta.prompt_size = total;
        delta.prefill_start = cached_;
        delta.prefill_ms = std::chrono::duration<double, std::milli>(now - started_).count();
        send(std::move(delta));
    }

    void on_prompt(std::span<const engine::Token> tokens) override {
        Delta delta = new_delta();
        delta.prompt_tokens.assign(tokens.begin(), tokens.end());
        send(std::move(delta));
    }

    bool on_token(const engine::Token& token) override {
        Delta delta = new_delta();
        delta.tokens.push_back(token);
        const int64_t reasoning = output_->reasoning_tokens();
        if (!token.ends) delta.events = output_->push(token.id);
        delta.in_reasoning = output_->reasoning_tokens() > reasoning;
        const bool stopped = output_->stopped_by().has_value();
        if (!token.is_last && !stopped) return send(std::move(delta));
        last_ = std::move(delta);
        return !stopped;
    }

    void on_finish(const engine::Result& result) override {
        Delta delta = last_ ? std::move(*last_) : new_delta();
        const bool by_length = result.reason == engine::FinishReason::kLength;
        for (text::OutputEvent& event : output_->finish(by_length ? text::Ending::kLength : text::Ending::kStop))
            delta.events.push_back(std::move(event));
        Ending ending;
        ending.result = result;
        if (!delta.events.empty() && delta.events.back().kind == text::OutputEvent::Kind::kFinish) {
            ending.reason = delta.events.back().reason;
            delta.events.pop_back();
        }
        ending.stop_string = output_->stopped_by();
        ending.reasoning_tokens = output_->reasoning_tokens();
        delta.ending = std::move(ending);
        send(std::move(delta));
    }

private:
    Delta new_delta() const {
        Delta delta;
        delta.choice = choice_;
        return delta;
    }

    /// False when the client is too far behind: nothing more is sent then.
    bool send(Delta delta) {
        if (queue_->push(std::move(delta))) return true;
        queue_->close();
        return false;
    }

    int32_t choice_;
    std::shared_ptr<DeltaQueue> queue_;
    std::unique_ptr<engine::Output> output_;
    bool wants_progress_;
    std::optional<Delta> last_;  // with the last token: the ending joins it
    int64_t cached_ = -1;        // tokens of the prompt that the caches had
    engine::Clock::time_point started_;
};

void throw_if_failed(const engine::Result& result) {
    if (result.reason == engine::FinishReason::kError && result.by_request) throw RequestError(400, result.error);
    if (result.reason == engine::FinishReason::kError) throw RequestError(500, "the engine failed: " + result.error);
    if (result.reason == engine::FinishReason::kRefused || result.reason == engine::FinishReason::kCancelled)
        throw RequestError(503, "the server is shutting down");
}

}  // namespace

Generation::Generation(engine::Engine& engine, std::vector<ChoicePlan> choices, bool wants_progress)
    : engine_(engine),
      choices_(std::move(choices)),
      wants_progress_(wants_progress),
      queue_(std::make_shared<DeltaQueue>(kQueueSteps)) {
    for (const ChoicePlan& choice : choices_) {
        try {
            engine_.check(choice.request);
        } catch (const engine::ContextOverflow& error) {
            throw ContextSizeError(error.prompt_tokens(), error.max_model_len());
        } catch (const Error& error) {
            throw bad_request(error);
        }
    }
    for (size_t i = 0; i < choices_.size(); ++i) {
        const bool is_same = i > 0 && choices_[i].request.prompt == choices_[i - 1].request.prompt;
        same_prompt_.push_back(is_same ? same_prompt_.back() : i);
    }
    begun_.resize(choices_.size());
    if (!submit_next()) {
        if (engine_.broken()) throw RequestError(503, kBroken);
        throw RequestError(429, "too many requests are waiting, try again later");
    }
    submit_ready();
}

Generation::~Generation() {
    for (const auto& ticket : tickets_) ticket->cancel();
    queue_->close();
}

/// Submits the next choice; false when the engine takes none now.
bool Generation::submit_next() {
    const size_t next = tickets_.size();
    const ChoicePlan& choice = choices_[next];
    auto ticket = engine_.submit(
        choice.request,
        std::make_shared<ChoiceListener>(static_cast<int32_t>(next), queue_, choice.make_output(), wants_progress_));
    if (ticket) tickets_.push_back(std::move(ticket));
    return tickets_.size() > next;
}

/// Submits the choices that can run with those that do.
void Generation::submit_ready() {
    while (tickets_.size() < choices_.size()) {
        const size_t next = tickets_.size(), first = same_prompt_[next];
        const auto running = static_cast<int64_t>(next - ended_);
        if (running >= engine_.max_sequences() || (first != next && !begun_[first]) || !submit_next()) return;
    }
}

std::optional<Delta> Generation::next(std::chrono::milliseconds timeout) {
    submit_ready();
    if (!done() && tickets_.size() == ended_) {
        // The queue filled up between two choices of this request: it is served already, so it waits.
        if (engine_.draining()) throw RequestError(503, "the server is shutting down");
        if (engine_.broken()) throw RequestError(503, kBroken);
        std::this_thread::sleep_for(timeout);
        return std::nullopt;
    }
    std::optional<Delta> delta = queue_->pop(timeout);
    if (!delta && queue_->finished()) throw RequestError(500, "the client reads too slowly");
    if (delta && (!delta->tokens.empty() || delta->ending)) begun_[static_cast<size_t>(delta->choice)] = true;
    if (delta && delta->ending) {
        ++ended_;
        throw_if_failed(delta->ending->result);
    }
    return delta;
}

}  // namespace thermocline::server
