#include "src/server/responses.h"

#include "src/server/errors.h"

#include <utility>

namespace thermocline::server {
namespace {

using Kind = text::OutputEvent::Kind;

Json text_part(const std::string& text) {
    return {{"type", "output_text"}, {"text", text}, {"annotations", Json::array()}, {"logprobs", Json::array()}};
}

}  // namespace

Json ResponseStream::usage() const {
    return {{"input_tokens", tally_.prompt_tokens()},
            {"input_tokens_details", {{"cached_tokens", tally_.cached_tokens()}}},
            {"output_tokens", tally_.output_tokens()},
            {"output_tokens_details", {{"reasoning_tokens", tally_.reasoning_tokens()}}},
            {"total_tokens", tally_.prompt_tokens() + tally_.output_tokens()}};
}

Json ResponseStream::response() const {
    Json out = {{"id", head_.id}, {"object", "response"}, {"created_at", head_.created}, {"status", status_}};
    out["error"] = error_;
    out["incomplete_details"] = status_ == "incomplete" ? Json{{"reason", "max_output_tokens"}} : Json(nullptr);
    out["model"] = head_.model->name;
    out["output"] = output_;
    for (const auto& [key, value] : request_.echo.items()) out[key] = value;
    out["usage"] = status_ == "in_progress" ? Json(nullptr) : usage();
    return out;
}

std::string ResponseStream::event(const std::string& type, Json members) {
    Json json = {{"type", type}, {"sequence_number", sequence_number_++}};
    for (auto& [key, value] : members.items()) json[key] = std::move(value);
    return named_sse_event(json);
}

std::string ResponseStream::item_event(const std::string& type, Json members) {
    Json json = {{"item_id", output_.back()["id"]}, {"output_index", output_.size() - 1}};
    if (output_.back()["type"] != "function_call") json["content_index"] = 0;
    for (auto& [key, value] : members.items()) json[key] = std::move(value);
    return event(type, std::move(json));
}

std::string ResponseStream::begin() {
    if (std::exchange(has_begun_, true)) return "";
    const std::string created = event("response.created", {{"response", response()}});
    return created + event("response.in_progress", {{"response", response()}});
}

/// Opens an item unless one of that kind is open; every call is an item of its own.
std::string ResponseStream::open(const std::string& type, const std::string& id_prefix, Json members) {
    if (is_open_ && type != "function_call" && output_.back()["type"] == type) return "";
    std::string out = close();
    is_open_ = true;
    text_.clear();
    Json item = {{"type", type}, {"id", text::make_call_id(id_prefix)}};
    for (auto& [key, value] : members.items()) item[key] = std::move(value);
    output_.push_back(std::move(item));
    out += event("response.output_item.added", {{"output_index", output_.size() - 1}, {"item", output_.back()}});
    if (type == "message") out += item_event("response.content_part.added", {{"part", text_part("")}});
    return out;
}

std::string ResponseStream::close() {
    if (!std::exchange(is_open_, false)) return "";
    Json& item = output_.back();
    std::string out;
    if (item["type"] == "reasoning") {
        item["content"] = Json::array({Json{{"type", "reasoning_text"}, {"text", text_}}});
        out = item_event("response.reasoning_text.done", {{"text", text_}});
    } else if (item["type"] == "message") {
        item["content"] = Json::array({text_part(text_)});
        item["status"] = "completed";
        out = item_event("response.output_text.done", {{"text", text_}, {"logprobs", Json::array()}});
        out += item_event("response.content_part.done", {{"part", text_part(text_)}});
    } else {
        item["arguments"] = text_;
        item["status"] = "completed";
        out = item_event("response.function_call_arguments.done", {{"arguments", text_}, {"name", item["name"]}});
    }
    return out + event("response.output_item.done", {{"output_index", output_.size() - 1}, {"item", item}});
}

std::string ResponseStream::add(const text::OutputEvent& event) {
    std::string out;
    switch (event.kind) {
        case Kind::kReasoning:
            out = open("reasoning", "rs_", {{"summary", Json::array()}, {"content", Json::array()}});
            text_ += event.text;
            return out + item_event("response.reasoning_text.delta", {{"delta", event.text}});
        case Kind::kContent:
            out =
                open("message", "msg_", {{"status", "in_progress"}, {"role", "assistant"}, {"content", Json::array()}});
            text_ += event.text;
            return out + item_event("response.output_text.delta", {{"delta", event.text}, {"logprobs", Json::array()}});
        case Kind::kCallBegin: {
            Json call = {{"call_id", text::make_call_id()}, {"name", event.text}};
            if (const auto found = request_.namespaced.find(event.text); found != request_.namespaced.end()) {
                call["name"] = found->second.name;
                call["namespace"] = found->second.space;
            }
            call["arguments"] = "";
            call["status"] = "in_progress";
            return open("function_call", "fc_", std::move(call));
        }
        case Kind::kCallArguments:
            text_ += event.text;
            return item_event("response.function_call_arguments.delta", {{"delta", event.text}});
        case Kind::kCallEnd:
            return close();
        default:
            return "";
    }
}

std::string ResponseStream::on(Delta delta) {
    tally_.add(delta);
    std::string out;
    if (!delta.tokens.empty() || delta.ending) out = begin();
    for (const text::OutputEvent& event : delta.events)
        if (!event.text.empty() || event.kind == Kind::kCallEnd) out += add(event);
    if (!delta.ending) return out;
    out += close();
    status_ = delta.ending->reason == text::FinishReason::kLength ? "incomplete" : "completed";
    return out + event("response." + status_, {{"response", response()}});
}

std::string ResponseStream::failure(const RequestError& error, const std::string&) {
    const Json body = error_json(error)["error"];
    std::string out = event("error", {{"code", body["type"]}, {"message", body["message"]}, {"param", body["param"]}});
    status_ = "failed";
    error_ = {{"code", body["type"]}, {"message", body["message"]}};
    return out + event("response.failed", {{"response", response()}});
}

ResponseJob::ResponseJob(ChatCall call, ResponseRequest request, const Backend& served)
    : ChatJob(std::move(call), served, "resp_"), request_(std::move(request)), whole_(head_, call_, tally_, request_) {}

std::unique_ptr<EventStream> ResponseJob::new_stream() {
    return std::make_unique<ResponseStream>(head_, call_, tally_, request_);
}

}  // namespace thermocline::server
