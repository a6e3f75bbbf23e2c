#include "src/server/stream.h"

#include <utility>

namespace thermocline::server {

using Kind = text::OutputEvent::Kind;

namespace {

const std::string kDone = "data: [DONE]\n\n";

}  // namespace

std::string sse_event(const Json& data) { return "data: " + dump_json(data) + "\n\n"; }

std::string named_sse_event(const Json& data) {
    return "event: " + data.at("type").get<std::string>() + "\n" + sse_event(data);
}

std::string ChunkStream::chunk(Json choices, bool is_last) {
    Json json = {{"id", head_.id}, {"object", object()}, {"created", head_.created}, {"model", head_.model->name}};
    json["choices"] = std::move(choices);
    json["system_fingerprint"] = head_.model->fingerprint;
    if (call_.continuous_usage) json["usage"] = tally_.usage(is_chat());
    if (is_last) json["timings"] = tally_.timings();
    return sse_event(json);
}

std::string ChunkStream::progress(const Delta& delta) {
    if (delta.prefilled < 0 || !call_.return_progress) return "";
    Json json = {{"id", head_.id}, {"object", object()}, {"created", head_.created}, {"model", head_.model->name}};
    json["choices"] = Json::array();
    json["prompt_progress"] = {{"total", delta.prompt_size},
                               {"cache", delta.prefill_start},
                               {"processed", delta.prefilled},
                               {"time_ms", delta.prefill_ms}};
    return sse_event(json);
}

std::string ChunkStream::failure(const RequestError& error, const std::string&) {
    return sse_event(error_json(error)) + kDone;
}

std::string ChunkStream::end() {
    std::string out;
    if (call_.include_usage) {
        Json json = {{"id", head_.id}, {"object", object()}, {"created", head_.created}, {"model", head_.model->name}};
        json["choices"] = Json::array();
        json["usage"] = tally_.usage(is_chat());
        json["timings"] = tally_.timings();
        out += sse_event(json);
    }
    return out + kDone;
}

ChatStream::ChatStream(ReplyHead head, const ChatCall& call, Tally tally, bool starts_in_reasoning,
                       std::vector<int32_t> prompt)
    : ChunkStream(std::move(head), call, tally), chat_(call), prompt_(std::move(prompt)) {
    for (int32_t i = 0; i < call.choices; ++i)
        choices_.push_back({ReasoningView(call, starts_in_reasoning), false, {}, {}});
}

/// A chunk of one choice, with the logprobs and ids that wait for one.
std::string ChatStream::piece(int32_t index, Json delta, const Ending* ending) {
    Choice& choice = choices_[static_cast<size_t>(index)];
    Json json = {{"index", index}, {"delta", std::move(delta)}, {"logprobs", nullptr}};
    if (chat_.request.logprobs >= 0 && !choice.unsent.empty()) {
        json["logprobs"] = {{"content", chat_logprob_entries(choice.unsent, *head_.tokenizer, chat_.tokens_as_ids)},
                            {"refusal", nullptr}};
        choice.unsent.clear();
    }
    json["finish_reason"] = ending == nullptr ? Json(nullptr) : Json(finish_reason_json(*ending));
    if (ending != nullptr) json["stop_reason"] = stop_reason_json(*ending);
    if (chat_.return_token_ids) json["token_ids"] = std::exchange(choice.unsent_ids, {});
    const bool is_last = ending != nullptr && ended_ == choices_.size() && !chat_.include_usage;
    return chunk(Json::array({std::move(json)}), is_last);
}

std::string ChatStream::on(Delta delta) {
    tally_.add(delta);
    std::string out = progress(delta);
    Choice& choice = choices_[static_cast<size_t>(delta.choice)];
    choice.view.apply(delta);
    if ((!delta.tokens.empty() || delta.ending) && !choice.has_role) {
        choice.has_role = true;
        Json json = {{"index", delta.choice},
                     {"delta", {{"role", "assistant"}, {"content", ""}}},
                     {"logprobs", nullptr},
                     {"finish_reason", nullptr}};
        if (chat_.return_token_ids && std::exchange(is_first_, false)) json["prompt_token_ids"] = prompt_;
        out += chunk(Json::array({std::move(json)}));
        if (!chat_.echo.empty()) out += piece(delta.choice, {{"content", chat_.echo}});
    }
    const bool is_hidden = !chat_.include_reasoning && delta.in_reasoning;
    for (engine::Token& token : delta.tokens) {
        choice.unsent_ids.push_back(token.id);
        if (chat_.request.logprobs >= 0 && !is_hidden && !token.ends) choice.unsent.push_back(std::move(token));
    }
    for (const text::OutputEvent& event : delta.events) {
        if (event.text.empty()) continue;  // the ends of calls, and no empty pieces
        Json call = {{"index", event.call_index}}, reasoning = Json::object();
        switch (event.kind) {
            case Kind::kReasoning:
                put_reasoning(reasoning, event.text, *head_.model);
                out += piece(delta.choice, std::move(reasoning));
                break;
            case Kind::kContent:
                out += piece(delta.choice, {{"content", event.text}});
                break;
            case Kind::kCallBegin:
                call["id"] = text::make_call_id();
                call["type"] = "function";
                call["function"] = {{"name", event.text}, {"arguments", ""}};
                out += piece(delta.choice, {{"tool_calls", Json::array({call})}});
                break;
            case Kind::kCallArguments:
                call["function"] = {{"arguments", event.text}};
                out += piece(delta.choice, {{"tool_calls", Json::array({call})}});
                break;
            default:
                break;
        }
    }
    if (delta.ending) {
        ++ended_;
        out += piece(delta.choice, Json::object(), &*delta.ending);
    }
    return out;
}

CompletionStream::CompletionStream(ReplyHead head, const CompletionCall& call, Tally tally,
                                   std::vector<std::string> echoes, std::vector<std::vector<int32_t>> prompts)
    : ChunkStream(std::move(head), call, tally),
      completion_(call),
      echoes_(std::move(echoes)),
      prompts_(std::move(prompts)) {
    const size_t count = prompts_.size() * static_cast<size_t>(call.choices);
    for (size_t i = 0; i < count; ++i)
        choices_.push_back({CompletionLogprobs(*head_.tokenizer, call), false, CompletionLogprobs::empty(), {}});
}

std::string CompletionStream::on(Delta delta) {
    tally_.add(delta);
    std::string out = progress(delta);
    Choice& choice = choices_[static_cast<size_t>(delta.choice)];
    const size_t prompt = static_cast<size_t>(delta.choice / completion_.choices);
    choice.logprobs.append(choice.unsent, delta.prompt_tokens, true);
    choice.logprobs.append(choice.unsent, delta.tokens, false);
    for (const engine::Token& token : delta.tokens) choice.unsent_ids.push_back(token.id);

    std::string text;
    const bool begins = !choice.has_begun && (!delta.tokens.empty() || delta.ending);
    if (begins && completion_.echo) text = echoes_[prompt];
    for (const text::OutputEvent& event : delta.events) text += event.text;
    if (text.empty() && !delta.ending) return out;

    Json json = {{"index", delta.choice}, {"text", text}, {"logprobs", nullptr}};
    if (completion_.request.logprobs >= 0) json["logprobs"] = std::exchange(choice.unsent, CompletionLogprobs::empty());
    json["finish_reason"] = delta.ending ? Json(finish_reason_json(*delta.ending)) : Json(nullptr);
    if (delta.ending) json["stop_reason"] = stop_reason_json(*delta.ending);
    if (completion_.return_token_ids) {
        json["token_ids"] = std::exchange(choice.unsent_ids, {});
        if (!choice.has_begun) json["prompt_token_ids"] = prompts_[prompt];
    }
    choice.has_begun = true;
    if (delta.ending) ++ended_;
    return out +
           chunk(Json::array({std::move(json)}), delta.ending && ended_ == choices_.size() && !call_.include_usage);
}

}  // namespace thermocline::server
