// One generating request from its checked body to the last byte of its answer: the prompt, the sequences that run for
// it, and how their deltas become an answer, streamed or whole. Made by a route, carried through by Server::run, used
// by one HTTP thread at a time; destroying it cancels what still runs.
#pragma once

#include "src/engine/engine.h"
#include "src/engine/expert_admin.h"
#include "src/engine/expert_use.h"
#include "src/server/generation.h"
#include "src/server/openai.h"
#include "src/server/reply.h"
#include "src/server/stream.h"
#include "src/text/tokenizer.h"
#include "src/text/written_turns.h"

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace thermocline::server {

/// What is served. The engine and the tokenizer outlive the server.
struct Backend {
    engine::Engine* engine;
    const text::Tokenizer* tokenizer;
    ServedModel model;
    std::shared_ptr<text::WrittenTurns> turns = nullptr;  // of the assistant, for later prompts; null: none are kept
    std::function<engine::ExpertUse()> experts = {};      // any thread; empty: the model has none
    engine::ExpertAdmin* admin = nullptr;                 // null: nothing can be changed
    std::shared_ptr<Grammars> grammars = nullptr;         // of this tokenizer; the server's
    double read_gb_per_second = 0;                        // of the memory, measured; 0: not known
};

class Job {
public:
    virtual ~Job() = default;
    virtual const Call& call() const = 0;
    virtual std::unique_ptr<EventStream> new_stream() = 0;
    /// Of an answer that is not streamed: takes the next delta.
    virtual void add(Delta delta) = 0;
    /// The whole answer, after the last delta.
    virtual Json reply() = 0;

    Generation& generation() { return *generation_; }

protected:
    std::unique_ptr<Generation> generation_;
};

/// The prompt of a chat as token ids.
struct ChatPrompt {
    std::vector<int32_t> ids;
    bool starts_in_reasoning = false;
    std::optional<uint64_t> context;  // text::Prompt::context
};
/// Turns that the model wrote, and that came to no harm on their way to the client and back, are its own tokens.
ChatPrompt chat_prompt(const ChatCall& call, const Backend& served);

/// A conversation, answered in the shape of /v1/chat/completions; other chat routes derive from it.
class ChatJob : public Job {
public:
    /// Submits the first sequence; throws what Generation throws.
    ChatJob(ChatCall call, const Backend& served, const char* id_prefix);
    const Call& call() const override { return call_; }
    std::unique_ptr<EventStream> new_stream() override;
    void add(Delta delta) override;
    Json reply() override;

protected:
    const ChatCall call_;
    ReplyHead head_;
    ChatPrompt prompt_;
    Tally tally_;

private:
    std::vector<ReasoningView> views_;
    std::vector<ChoiceText> choices_;
};

/// /v1/completions.
class CompletionJob : public Job {
public:
    CompletionJob(CompletionCall call, const Backend& served);
    const Call& call() const override { return call_; }
    std::unique_ptr<EventStream> new_stream() override;
    void add(Delta delta) override;
    Json reply() override;

private:
    const CompletionCall call_;
    ReplyHead head_;
    std::vector<std::vector<int32_t>> prompts_;
    std::vector<std::string> echoes_;
    Tally tally_{0, 1};
    std::vector<ChoiceText> choices_;
};

}  // namespace thermocline::server
