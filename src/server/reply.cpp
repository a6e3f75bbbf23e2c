#include "src/server/reply.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <span>

namespace thermocline::server {
namespace {

using Kind = text::OutputEvent::Kind;

/// JSON has no infinity; a client that takes sums gets a number that is as good as none.
Json logprob_json(float logprob) { return std::isinf(logprob) ? Json(-9999.0) : Json(logprob); }

Json bytes_json(const std::string& bytes) {
    Json list = Json::array();
    for (const char byte : bytes) list.push_back(static_cast<unsigned char>(byte));
    return list;
}

int64_t code_points(std::string_view bytes) {
    return std::count_if(bytes.begin(), bytes.end(),
                         [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

Json token_ids_json(const std::vector<engine::Token>& tokens) {
    Json ids = Json::array();
    for (const engine::Token& token : tokens) ids.push_back(token.id);
    return ids;
}

/// The `count` best candidates; a prompt may have been scored with more, for another field.
std::span<const engine::Candidate> best_of(const engine::Token& token, int32_t count) {
    return std::span(token.top).first(std::min(token.top.size(), static_cast<size_t>(std::max(count, 0))));
}

/// vLLM's prompt_logprobs: of each token of the prompt itself and the best, by id; of the first, nothing.
Json prompt_logprobs_json(const std::vector<engine::Token>& tokens, const Call& call,
                          const text::Tokenizer& tokenizer) {
    const auto entry = [&](int32_t id, float logprob, int64_t rank) -> Json {
        return {{"logprob", logprob_json(logprob)},
                {"rank", rank},
                {"decoded_token", token_text(tokenizer, id, call.tokens_as_ids)}};
    };
    Json list = Json::array();
    for (const engine::Token& token : tokens) {
        if (std::isnan(token.logprob)) {
            list.push_back(nullptr);
            continue;
        }
        Json best = {{std::to_string(token.id), entry(token.id, token.logprob, token.rank)}};
        int64_t rank = 0;
        for (const engine::Candidate& candidate : best_of(token, call.prompt_logprobs)) {
            ++rank;
            if (candidate.id != token.id)
                best[std::to_string(candidate.id)] = entry(candidate.id, candidate.logprob, rank);
        }
        list.push_back(std::move(best));
    }
    return list;
}

/// Top candidates by text. Two ids with the same text: the better one; the token itself is always in.
Json top_by_text(const engine::Token& token, const text::Tokenizer& tokenizer, bool as_ids, int32_t count) {
    Json map = Json::object();
    const auto put = [&](int32_t id, float logprob) {
        const std::string text = token_text(tokenizer, id, as_ids);
        if (!map.contains(text) || map[text].get<double>() < logprob_json(logprob).get<double>())
            map[text] = logprob_json(logprob);
    };
    for (const engine::Candidate& candidate : best_of(token, count)) put(candidate.id, candidate.logprob);
    put(token.id, token.logprob);
    return map;
}

Json reply_json(const ReplyHead& head, const char* object) {
    return {{"id", head.id}, {"object", object}, {"created", head.created}, {"model", head.model->name}};
}

Json chat_choice(const ReplyHead& head, const ChatCall& call, const ChoiceText& choice, size_t index) {
    Json message = {{"role", "assistant"}};
    const bool has_text = !choice.content.empty();
    message["content"] = has_text ? Json(choice.content) : Json(nullptr);
    if (!choice.reasoning.empty()) put_reasoning(message, choice.reasoning, *head.model);
    message["refusal"] = nullptr;
    if (!choice.tool_calls.empty()) {
        message["tool_calls"] = Json::array();
        for (const text::ToolCall& tool_call : choice.tool_calls) {
            message["tool_calls"].push_back(
                {{"id", tool_call.id},
                 {"type", "function"},
                 {"function", {{"name", tool_call.name}, {"arguments", tool_call.arguments}}}});
        }
    }
    Json out = {{"index", index}, {"message", message}, {"logprobs", nullptr}};
    if (call.request.logprobs >= 0) {
        out["logprobs"] = {{"content", chat_logprob_entries(choice.shown_tokens, *head.tokenizer, call.tokens_as_ids)},
                           {"refusal", nullptr}};
    }
    out["finish_reason"] = finish_reason_json(*choice.ending);
    out["stop_reason"] = stop_reason_json(*choice.ending);
    if (call.return_token_ids) out["token_ids"] = token_ids_json(choice.tokens);
    return out;
}

}  // namespace

HttpReply json_reply(const Json& body, int status) {
    HttpReply reply;
    reply.status = status;
    reply.body = dump_json(body);
    return reply;
}

void Tally::add(const Delta& delta) {
    output_tokens_ += static_cast<int64_t>(delta.tokens.size());
    if (!delta.ending) return;
    reasoning_tokens_ += delta.ending->reasoning_tokens;
    const engine::Statistics& part = delta.ending->result.statistics;
    // Of several answers to one prompt only the first says what the cache gave.
    if (delta.choice % choices_ == 0) sum_.cached_tokens += part.cached_tokens;
    sum_.prompt_tokens += part.prompt_tokens;
    sum_.output_tokens += part.output_tokens;
    sum_.decode_steps += part.decode_steps;
    sum_.prefill_bytes += part.prefill_bytes;
    sum_.decode_bytes += part.decode_bytes;
    sum_.prefill_seconds += part.prefill_seconds;
    sum_.decode_seconds += part.decode_seconds;
}

Json Tally::usage(bool is_chat) const {
    Json usage = {{"prompt_tokens", prompt_tokens_},
                  {"completion_tokens", output_tokens_},
                  {"total_tokens", prompt_tokens_ + output_tokens_},
                  {"prompt_tokens_details", {{"cached_tokens", sum_.cached_tokens}}}};
    if (is_chat) usage["completion_tokens_details"] = {{"reasoning_tokens", reasoning_tokens_}};
    usage["prompt_cache_hit_tokens"] = sum_.cached_tokens;
    usage["prompt_cache_miss_tokens"] = prompt_tokens_ - sum_.cached_tokens;
    return usage;
}

Json Tally::timings() const {
    return {{"cache_n", sum_.cached_tokens},
            {"prompt_n", sum_.prompt_tokens - sum_.cached_tokens},
            {"prompt_ms", sum_.prefill_seconds * 1e3},
            {"prompt_per_second", sum_.prefill_tokens_per_second()},
            {"predicted_n", sum_.output_tokens},
            {"predicted_ms", sum_.decode_seconds * 1e3},
            {"predicted_per_second", sum_.decode_tokens_per_second()}};
}

std::string Tally::summary() const {
    char text[200];
    std::snprintf(
        text, sizeof text,
        "%lld prompt tokens, %lld cached, %.2f s, %.1f tok/s; %lld output tokens, %.2f s, %.1f tok/s, %.1f GB/s",
        static_cast<long long>(prompt_tokens_), static_cast<long long>(sum_.cached_tokens), sum_.prefill_seconds,
        sum_.prefill_tokens_per_second(), static_cast<long long>(output_tokens_), sum_.decode_seconds,
        sum_.decode_tokens_per_second(), sum_.decode_gb_per_second());
    return text;
}

void ReasoningView::apply(Delta& delta) {
    if (!include_) {
        std::erase_if(delta.events, [](const text::OutputEvent& event) { return event.kind == Kind::kReasoning; });
        return;
    }
    if (split_) return;
    engine::TextEvents events;
    for (text::OutputEvent& event : delta.events) {
        if (event.kind == Kind::kReasoning) {
            event.kind = Kind::kContent;
        } else if (open_) {
            events.push_back({Kind::kContent, "</think>"});
            open_ = false;
        }
        events.push_back(std::move(event));
    }
    delta.events = std::move(events);
}

void put_reasoning(Json& message, const std::string& reasoning, const ServedModel& model) {
    if (model.reasoning_field != ReasoningField::kReasoning) message["reasoning_content"] = reasoning;
    if (model.reasoning_field != ReasoningField::kReasoningContent) message["reasoning"] = reasoning;
}

std::string finish_reason_json(const Ending& ending) {
    switch (ending.reason) {
        case text::FinishReason::kLength:
            return "length";
        case text::FinishReason::kToolCalls:
            return "tool_calls";
        default:
            return "stop";
    }
}

Json stop_reason_json(const Ending& ending) {
    if (ending.stop_string) return *ending.stop_string;
    if (ending.result.stop_token >= 0) return ending.result.stop_token;
    return nullptr;
}

std::string token_text(const text::Tokenizer& tokenizer, int32_t id, bool as_id) {
    return as_id ? "token_id:" + std::to_string(id) : tokenizer.decode({&id, 1});
}

Json chat_logprob_entries(const std::vector<engine::Token>& tokens, const text::Tokenizer& tokenizer, bool as_ids) {
    const auto entry = [&](int32_t id, float logprob) -> Json {
        return {{"token", token_text(tokenizer, id, as_ids)},
                {"logprob", logprob_json(logprob)},
                {"bytes", bytes_json(tokenizer.token_bytes(id))}};
    };
    Json list = Json::array();
    for (const engine::Token& token : tokens) {
        if (token.ends) continue;
        Json item = entry(token.id, token.logprob);
        item["top_logprobs"] = Json::array();
        for (const engine::Candidate& candidate : token.top)
            item["top_logprobs"].push_back(entry(candidate.id, candidate.logprob));
        list.push_back(std::move(item));
    }
    return list;
}

Json CompletionLogprobs::empty() {
    return {{"tokens", Json::array()},
            {"token_logprobs", Json::array()},
            {"top_logprobs", Json::array()},
            {"text_offset", Json::array()}};
}

void CompletionLogprobs::append(Json& arrays, const std::vector<engine::Token>& tokens, bool is_prompt) {
    for (const engine::Token& token : tokens) {
        const bool is_unknown = std::isnan(token.logprob);  // the first token of a prompt follows nothing
        arrays["tokens"].push_back(token_text(tokenizer_, token.id, as_ids_));
        arrays["token_logprobs"].push_back(is_unknown ? Json(nullptr) : logprob_json(token.logprob));
        arrays["top_logprobs"].push_back(
            is_unknown ? Json(nullptr) : top_by_text(token, tokenizer_, as_ids_, is_prompt ? top_ : INT32_MAX));
        arrays["text_offset"].push_back(offset_);
        const bool is_shown = is_prompt || !(token.ends || (skip_special_ && tokenizer_.is_special(token.id)));
        if (is_shown) offset_ += code_points(tokenizer_.token_bytes(token.id));
    }
}

void ChoiceText::add(const Delta& delta, bool hides_reasoning) {
    for (const text::OutputEvent& event : delta.events) {
        if (event.kind == Kind::kReasoning) reasoning += event.text;
        if (event.kind == Kind::kContent) content += event.text;
        if (event.kind == Kind::kCallBegin) tool_calls.push_back({text::make_call_id(), event.text, ""});
        if (event.kind == Kind::kCallArguments && !tool_calls.empty()) tool_calls.back().arguments += event.text;
    }
    tokens.insert(tokens.end(), delta.tokens.begin(), delta.tokens.end());
    if (!(hides_reasoning && delta.in_reasoning))
        shown_tokens.insert(shown_tokens.end(), delta.tokens.begin(), delta.tokens.end());
    prompt_tokens.insert(prompt_tokens.end(), delta.prompt_tokens.begin(), delta.prompt_tokens.end());
    if (delta.ending) ending = delta.ending;
}

Json chat_reply(const ReplyHead& head, const ChatCall& call, const std::vector<ChoiceText>& choices, const Tally& tally,
                const std::vector<int32_t>& prompt) {
    Json reply = reply_json(head, "chat.completion");
    reply["choices"] = Json::array();
    for (size_t i = 0; i < choices.size(); ++i) reply["choices"].push_back(chat_choice(head, call, choices[i], i));
    reply["usage"] = tally.usage(true);
    reply["timings"] = tally.timings();
    reply["system_fingerprint"] = head.model->fingerprint;
    if (call.return_token_ids) reply["prompt_token_ids"] = prompt;
    if (call.prompt_logprobs >= 0)
        reply["prompt_logprobs"] = prompt_logprobs_json(choices.front().prompt_tokens, call, *head.tokenizer);
    return reply;
}

Json completion_reply(const ReplyHead& head, const CompletionCall& call, const std::vector<ChoiceText>& choices,
                      const std::vector<std::string>& echoes, const std::vector<std::vector<int32_t>>& prompts,
                      const Tally& tally) {
    Json reply = reply_json(head, "text_completion");
    reply["choices"] = Json::array();
    for (size_t i = 0; i < choices.size(); ++i) {
        const ChoiceText& choice = choices[i];
        const size_t prompt = i / static_cast<size_t>(call.choices);
        Json out = {{"index", i}, {"text", (call.echo ? echoes[prompt] : "") + choice.content}, {"logprobs", nullptr}};
        if (call.request.logprobs >= 0) {
            CompletionLogprobs logprobs(*head.tokenizer, call);
            out["logprobs"] = CompletionLogprobs::empty();
            if (call.echo) logprobs.append(out["logprobs"], choice.prompt_tokens, true);
            logprobs.append(out["logprobs"], choice.tokens, false);
        }
        out["finish_reason"] = finish_reason_json(*choice.ending);
        out["stop_reason"] = stop_reason_json(*choice.ending);
        if (call.return_token_ids) {
            out["token_ids"] = token_ids_json(choice.tokens);
            out["prompt_token_ids"] = prompts[prompt];
        }
        if (call.prompt_logprobs >= 0) {
            const ChoiceText& first = choices[prompt * static_cast<size_t>(call.choices)];
            out["prompt_logprobs"] = prompt_logprobs_json(first.prompt_tokens, call, *head.tokenizer);
        }
        reply["choices"].push_back(std::move(out));
    }
    reply["usage"] = tally.usage(false);
    reply["timings"] = tally.timings();
    reply["system_fingerprint"] = head.model->fingerprint;
    return reply;
}

Json model_entry(const ServedModel& model, const std::string& id) {
    const bool is_known = id == model.name || (id != "*" && std::find(model.aliases.begin(), model.aliases.end(), id) !=
                                                                model.aliases.end());
    if (!is_known) return nullptr;
    Json meta = {{"n_vocab", model.vocab},
                 {"n_ctx_train", model.trained_context},
                 {"n_embd", model.hidden},
                 {"n_params", model.parameters},
                 {"size", model.weight_bytes}};
    return {{"id", id},
            {"object", "model"},
            {"created", model.created},
            {"owned_by", "thermocline"},
            {"root", model.root},
            {"parent", nullptr},
            {"max_model_len", model.max_model_len},
            {"permission", Json::array()},
            {"meta", meta}};
}

Json model_list(const ServedModel& model) {
    Json data = Json::array({model_entry(model, model.name)});
    for (const std::string& alias : model.aliases)
        if (alias != "*" && alias != model.name) data.push_back(model_entry(model, alias));
    return {{"object", "list"}, {"data", data}};
}

}  // namespace thermocline::server
