#include "src/server/job.h"

#include "src/base/checksum.h"
#include "src/engine/reasoning_budget.h"
#include "src/server/errors.h"
#include "src/server/recorded_output.h"
#include "src/server/small_routes.h"
#include "src/text/prompt_deepseek_v4.h"
#include "src/text/tool_grammar.h"

#include <ctime>
#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

namespace thermocline::server {
namespace {

text::ParserOptions parser_options(const ChatCall& call, const ServedModel& model, const ChatPrompt& prompt) {
    text::ParserOptions options;
    options.revision = model.revision;
    options.starts_in_reasoning = prompt.starts_in_reasoning;
    options.tools = call.chat.options.tools;
    options.parse_tool_calls = call.chat.options.tool_choice.kind != text::ToolChoice::Kind::kNone;
    options.parallel_tool_calls = call.chat.options.parallel_tool_calls;
    options.stop = call.stop;
    options.include_stop = call.include_stop;
    return options;
}

/// Turns begin behind an added token and end before one: their borders are where the tokenizer cuts, too.
std::vector<int32_t> prompt_ids(const text::Prompt& prompt, const text::Tokenizer& tokenizer) {
    const std::string_view text = prompt.text;
    std::vector<int32_t> ids;
    const auto append = [&ids](const std::vector<int32_t>& more) { ids.insert(ids.end(), more.begin(), more.end()); };
    size_t at = 0;
    for (const text::Prompt::Written& written : prompt.written) {
        append(tokenizer.encode(text.substr(at, written.begin - at)));
        append(written.turn->ids);
        at = written.begin + written.turn->text.size();
    }
    append(tokenizer.encode(text.substr(at)));
    return ids;
}

/// Takes the answer apart, and remembers it if later prompts may show it.
std::function<std::unique_ptr<engine::Output>()> output_maker(const ChatCall& call, const Backend& served,
                                                              const ChatPrompt& prompt) {
    const text::ParserOptions parser = parser_options(call, served.model, prompt);
    std::optional<TurnRecord> record;
    if (served.turns && call.request.reuse_prefix && prompt.context)
        record = {served.turns, *prompt.context, parser.revision, prompt.starts_in_reasoning};
    return [parser, record, skip = call.skip_special_tokens, least = call.request.min_tokens,
            tokenizer = served.tokenizer] {
        std::unique_ptr<engine::Output> output = std::make_unique<engine::ChatOutput>(*tokenizer, parser, skip, least);
        if (record) output = std::make_unique<RecordedOutput>(std::move(output), *tokenizer, *record);
        return output;
    };
}

/// The model is asked for what stands between two texts (prompt-encoding.md 10.3).
std::vector<int32_t> gap_prompt(const std::vector<int32_t>& before, const std::vector<int32_t>& after,
                                const text::Tokenizer& tokenizer) {
    std::vector<int32_t> ids;
    if (tokenizer.bos_id()) ids.push_back(*tokenizer.bos_id());
    const auto append_mark = [&](const char* mark) {
        const auto id = tokenizer.token_id(mark);
        if (!id)
            throw RequestError(501, std::string("the vocabulary has no token ") + mark + ": this model fills no gaps",
                               "suffix");
        ids.push_back(*id);
    };
    append_mark("<｜fim▁begin｜>");
    ids.insert(ids.end(), before.begin(), before.end());
    append_mark("<｜fim▁hole｜>");
    ids.insert(ids.end(), after.begin(), after.end());
    append_mark("<｜fim▁end｜>");
    return ids;
}

void check_prompt_logprobs(const Call& call, int64_t prompt_tokens) {
    const int64_t count = prompt_tokens * (call.prompt_logprobs + 1);
    if (count > kMaxPromptLogprobs)
        throw RequestError(400,
                           "prompt_logprobs is " + std::to_string(call.prompt_logprobs) + ", which for " +
                               std::to_string(prompt_tokens) + " prompt tokens makes " + std::to_string(count) +
                               " entries, expected at most " + std::to_string(kMaxPromptLogprobs),
                           "prompt_logprobs");
}

/// The constraint of a choice whose reasoning may not grow longer than the request says.
std::shared_ptr<engine::TokenConstraint> within_budget(const ChatCall& call, const Backend& served,
                                                       std::shared_ptr<engine::TokenConstraint> inner) {
    const auto end = served.tokenizer->token_id("</think>");
    if (!end)
        throw RequestError(501, "the vocabulary has no token </think>: a thinking budget needs it",
                           "thinking_token_budget");
    std::vector<int32_t> others;  // a tool call ends the reasoning too
    if (const auto mark = served.tokenizer->token_id(text::kMarkupToken)) others.push_back(*mark);
    return std::make_shared<engine::ReasoningBudget>(*call.thinking_budget, *end, std::move(others),
                                                     served.engine->vocab(), std::move(inner));
}

/// The ids of one prompt of a completion.
std::vector<int32_t> completion_prompt(const PromptInput& input, const CompletionCall& call, const Backend& served) {
    const text::Tokenizer& tokenizer = *served.tokenizer;
    const std::string* text = std::get_if<std::string>(&input);
    std::vector<int32_t> ids = text != nullptr ? tokenizer.encode(*text) : std::get<std::vector<int32_t>>(input);
    if (call.suffix) return gap_prompt(ids, tokenizer.encode(*call.suffix), tokenizer);
    const bool wants_bos = text != nullptr && call.add_special_tokens && tokenizer.add_bos() && tokenizer.bos_id();
    if (wants_bos && ids.front() != *tokenizer.bos_id()) ids.insert(ids.begin(), *tokenizer.bos_id());
    return truncated(std::move(ids), call, served.model.max_model_len);
}

}  // namespace

ChatPrompt chat_prompt(const ChatCall& call, const Backend& served) {
    const std::string& salt = call.request.cache_salt;
    text::WrittenHistory history;
    if (call.request.reuse_prefix)
        history = {served.turns.get(), checksum_of(std::as_bytes(std::span(salt.data(), salt.size())))};
    const text::Prompt prompt = text::render_deepseek_v4(call.chat.messages, call.chat.options, history);
    return {truncated(prompt_ids(prompt, *served.tokenizer), call, served.model.max_model_len),
            prompt.starts_in_reasoning, prompt.context};
}

ChatJob::ChatJob(ChatCall call, const Backend& served, const char* id_prefix)
    : call_(std::move(call)),
      head_{text::make_call_id(id_prefix), std::time(nullptr), &served.model, served.tokenizer},
      prompt_(chat_prompt(call_, served)),
      tally_(static_cast<int64_t>(prompt_.ids.size()), call_.choices) {
    const ConstraintSource constraint =
        served.grammars->for_chat(call_.answer_rule, call_.chat.options, prompt_.starts_in_reasoning);
    check_prompt_logprobs(call_, static_cast<int64_t>(prompt_.ids.size()));
    std::vector<ChoicePlan> plans;
    for (int32_t i = 0; i < call_.choices; ++i) {
        ChoicePlan plan{call_.request, output_maker(call_, served, prompt_)};
        plan.request.prompt = prompt_.ids;
        if (constraint) plan.request.constraint = constraint();
        if (call_.thinking_budget && prompt_.starts_in_reasoning)
            plan.request.constraint = within_budget(call_, served, std::move(plan.request.constraint));
        if (i > 0) plan.request.prompt_logprobs = -1;  // the first one tells
        plan.request.sampling.seed += static_cast<uint64_t>(i);
        plans.push_back(std::move(plan));
        views_.emplace_back(call_, prompt_.starts_in_reasoning);
    }
    choices_.resize(plans.size());
    for (ChoiceText& choice : choices_) choice.content = call_.echo;
    generation_ = std::make_unique<Generation>(*served.engine, std::move(plans), true);
}

std::unique_ptr<EventStream> ChatJob::new_stream() {
    return std::make_unique<ChatStream>(head_, call_, tally_, prompt_.starts_in_reasoning, prompt_.ids);
}

void ChatJob::add(Delta delta) {
    const auto index = static_cast<size_t>(delta.choice);
    tally_.add(delta);
    views_[index].apply(delta);
    choices_[index].add(delta, !call_.include_reasoning);
}

Json ChatJob::reply() { return chat_reply(head_, call_, choices_, tally_, prompt_.ids); }

CompletionJob::CompletionJob(CompletionCall call, const Backend& served)
    : call_(std::move(call)), head_{text::make_call_id("cmpl-"), std::time(nullptr), &served.model, served.tokenizer} {
    const ConstraintSource constraint = served.grammars->for_completion(call_.answer_rule);
    std::vector<ChoicePlan> plans;
    int64_t prompt_tokens = 0;
    for (const PromptInput& input : call_.prompts) {
        std::vector<int32_t> ids = completion_prompt(input, call_, served);
        prompt_tokens += static_cast<int64_t>(ids.size());
        for (int32_t i = 0; i < call_.choices; ++i) {
            ChoicePlan plan{call_.request, [this, tokenizer = served.tokenizer] {
                                return std::make_unique<engine::PlainOutput>(*tokenizer, call_.stop, call_.include_stop,
                                                                             call_.skip_special_tokens,
                                                                             call_.request.min_tokens);
                            }};
            plan.request.prompt = ids;
            if (i > 0 && !call_.echo) plan.request.prompt_logprobs = -1;  // the first one tells
            if (constraint) plan.request.constraint = constraint();
            plan.request.sampling.seed += static_cast<uint64_t>(i);
            plans.push_back(std::move(plan));
        }
        const std::string* text = std::get_if<std::string>(&input);
        if (call_.echo) echoes_.push_back(text != nullptr ? *text : served.tokenizer->decode(ids));
        prompts_.push_back(std::move(ids));
    }
    check_prompt_logprobs(call_, prompt_tokens);
    tally_ = Tally(prompt_tokens, call_.choices);
    choices_.resize(plans.size());
    generation_ = std::make_unique<Generation>(*served.engine, std::move(plans), true);
}

std::unique_ptr<EventStream> CompletionJob::new_stream() {
    return std::make_unique<CompletionStream>(head_, call_, tally_, echoes_, prompts_);
}

void CompletionJob::add(Delta delta) {
    tally_.add(delta);
    choices_[static_cast<size_t>(delta.choice)].add(delta, false);
}

Json CompletionJob::reply() { return completion_reply(head_, call_, choices_, echoes_, prompts_, tally_); }

}  // namespace thermocline::server
