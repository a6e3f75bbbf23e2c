// From what the engine produced to the JSON of an answer (serving-api.md sections 3.3, 3.5, 4, 5). Pure; objects belong
// to one request and one thread.
#pragma once

#include "src/base/json.h"
#include "src/server/generation.h"
#include "src/server/http.h"
#include "src/server/openai.h"
#include "src/text/tokenizer.h"

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace thermocline::server {

HttpReply json_reply(const Json& body, int status = 200);

/// What all parts of an answer say alike.
struct ReplyHead {
    std::string id;
    int64_t created = 0;  // Unix seconds
    const ServedModel* model = nullptr;
    const text::Tokenizer* tokenizer = nullptr;
};

/// Counts for `usage` and `timings` over all choices.
class Tally {
public:
    /// `prompt_tokens`: of all prompts, each once. `choices`: per prompt.
    Tally(int64_t prompt_tokens, int32_t choices) : prompt_tokens_(prompt_tokens), choices_(choices) {}

    void add(const Delta& delta);
    int64_t prompt_tokens() const { return prompt_tokens_; }
    /// Of the prompt, from the caches; known when its first choice has ended.
    int64_t cached_tokens() const { return sum_.cached_tokens; }
    int64_t output_tokens() const { return output_tokens_; }
    int64_t reasoning_tokens() const { return reasoning_tokens_; }
    Json usage(bool is_chat) const;
    Json timings() const;
    /// Tokens, seconds, rates in one line for the log.
    std::string summary() const;

private:
    int64_t prompt_tokens_;
    int32_t choices_;
    int64_t output_tokens_ = 0, reasoning_tokens_ = 0;
    engine::Statistics sum_;  // of ended choices
};

/// Applies include_reasoning and reasoning_format to the deltas of one choice.
class ReasoningView {
public:
    ReasoningView(const ChatCall& call, bool starts_in_reasoning)
        : split_(call.split_reasoning), include_(call.include_reasoning), open_(starts_in_reasoning) {}
    void apply(Delta& delta);

private:
    bool split_, include_, open_;
};

/// Puts reasoning into a message or delta, under the name that the server was started with.
void put_reasoning(Json& message, const std::string& reasoning, const ServedModel& model);

/// "stop", "length", "tool_calls".
std::string finish_reason_json(const Ending& ending);
/// The stop string or stop token that ended it, or null.
Json stop_reason_json(const Ending& ending);

/// The text of one token: U+FFFD for bytes that are no character, or "token_id:N".
std::string token_text(const text::Tokenizer& tokenizer, int32_t id, bool as_id);

/// Entries of chat logprobs for `tokens`, without those that only end the text.
Json chat_logprob_entries(const std::vector<engine::Token>& tokens, const text::Tokenizer& tokenizer, bool as_ids);

/// The `logprobs` arrays of a completion; positions run on from one call to the next.
class CompletionLogprobs {
public:
    CompletionLogprobs(const text::Tokenizer& tokenizer, const CompletionCall& call)
        : tokenizer_(tokenizer),
          as_ids_(call.tokens_as_ids),
          skip_special_(call.skip_special_tokens),
          top_(call.request.logprobs) {}
    /// The object for the next tokens; `is_prompt`: of an echoed prompt, whose special tokens are text.
    void append(Json& arrays, const std::vector<engine::Token>& tokens, bool is_prompt);
    static Json empty();

private:
    const text::Tokenizer& tokenizer_;
    bool as_ids_, skip_special_;
    int32_t top_;         // candidates of a prompt token
    int64_t offset_ = 0;  // code points so far
};

/// One choice, put together from its deltas.
struct ChoiceText {
    std::string reasoning, content;
    std::vector<text::ToolCall> tool_calls;
    std::vector<engine::Token> tokens, prompt_tokens;
    std::vector<engine::Token> shown_tokens;  // without hidden reasoning
    std::optional<Ending> ending;
    void add(const Delta& delta, bool hides_reasoning);
};

Json chat_reply(const ReplyHead& head, const ChatCall& call, const std::vector<ChoiceText>& choices, const Tally& tally,
                const std::vector<int32_t>& prompt);

/// `echoes`: the text to put in front, by prompt; empty without echo.
Json completion_reply(const ReplyHead& head, const CompletionCall& call, const std::vector<ChoiceText>& choices,
                      const std::vector<std::string>& echoes, const std::vector<std::vector<int32_t>>& prompts,
                      const Tally& tally);

/// GET /v1/models.
Json model_list(const ServedModel& model);
/// GET /v1/models/{id}: null if there is no such model.
Json model_entry(const ServedModel& model, const std::string& id);

}  // namespace thermocline::server
