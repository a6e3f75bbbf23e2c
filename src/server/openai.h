// From the JSON of /v1/chat/completions and /v1/completions to what has to be generated: every field checked, nothing
// tokenized (serving-api.md sections 3.1 and 4). Pure functions, any thread; a wrong request is a RequestError or an
// Error that names the field.
#pragma once

#include "src/base/json.h"
#include "src/engine/request.h"
#include "src/server/structured.h"
#include "src/text/chat_request.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace thermocline::server {

/// What answers of chats call the reasoning.
enum class ReasoningField : uint8_t { kReasoningContent, kReasoning, kBoth };

/// What the routes must know of the model that is served.
struct ServedModel {
    std::string name;
    std::vector<std::string> aliases;  // other names it answers to; "*": any
    std::string root;                  // for /v1/models: a name, never a path of this machine
    int64_t created = 0;               // Unix seconds
    int64_t max_model_len = 0;
    int64_t trained_context = 0;
    int64_t vocab = 0;
    int64_t hidden = 0;
    int64_t weight_bytes = 0;
    int64_t parameters = 0;
    engine::SamplingParams sampling;  // defaults (generation_config.json)
    text::PromptRevision revision = text::PromptRevision::kV4;
    text::ChatDefaults chat;
    bool anthropic_thinks = false;  // /v1/messages without `thinking` gets reasoning
    ReasoningField reasoning_field = ReasoningField::kReasoningContent;
    bool processed_logprobs = false;  // engine::Request::processed_logprobs
    int32_t max_logprobs = 20;        // candidates that a request may ask for, for each token
    std::string fingerprint;          // system_fingerprint, "b..."
};

constexpr int kMaxChoices = 128;
constexpr int kMaxPrompts = 1024;
constexpr int kMaxStops = 16;
constexpr int kMaxTools = 512;
/// Of prompt_logprobs in one answer: candidates, the token itself among them, over all tokens of its prompts.
constexpr int64_t kMaxPromptLogprobs = int64_t{1} << 18;

/// Fields that both routes share. `request.prompt` is still empty.
struct Call {
    engine::Request request;
    bool random_seed = true;  // no seed was given
    int32_t choices = 1;      // per prompt
    std::vector<std::string> stop;
    bool include_stop = false;
    bool skip_special_tokens = true;
    bool stream = false;
    bool include_usage = false;
    bool continuous_usage = false;
    bool return_progress = false;
    bool return_token_ids = false;
    bool tokens_as_ids = false;              // logprob tokens are "token_id:N"
    std::optional<int64_t> ping_seconds;     // overrides the server's; -1: never
    std::optional<int64_t> truncate_prompt;  // keep the last N; -1: what fits
    std::optional<AnswerRule> answer_rule;   // structured output
    int32_t prompt_logprobs = -1;            // candidates for each token of the prompt, in the answer; -1: none
};

struct ChatCall : Call {
    text::Chat chat;
    bool split_reasoning = true;             // false: reasoning stays in the content, with </think>
    bool include_reasoning = true;           // false: it is generated, not returned
    std::string echo;                        // content in front of the answer's
    std::optional<int64_t> thinking_budget;  // tokens of reasoning
};

using PromptInput = std::variant<std::string, std::vector<int32_t>>;

struct CompletionCall : Call {
    std::vector<PromptInput> prompts;
    bool echo = false;
    bool add_special_tokens = true;
    std::optional<std::string> suffix;  // the output is to fill the gap before it
};

/// Parses a request body: a JSON object in UTF-8 of sane depth. RequestError 400 otherwise.
Json parse_body(std::string_view body);

ChatCall chat_call(const Json& body, const ServedModel& model);
CompletionCall completion_call(const Json& body, const ServedModel& model);

/// RequestError 404 if the body names a model that is not this one.
void check_model_name(const Json& body, const ServedModel& model);

}  // namespace thermocline::server
