#include "src/server/errors.h"

#include <cctype>

namespace thermocline::server {
namespace {

/// What has no status of its own in Anthropic's table.
int anthropic_status(int status) { return status == 503 ? 529 : status; }

std::string anthropic_error_type(int status) {
    switch (status) {
        case 401:
            return "authentication_error";
        case 404:
            return "not_found_error";
        case 413:
            return "request_too_large";
        case 429:
            return "rate_limit_error";
        case 529:
            return "overloaded_error";
        default:
            return status >= 500 ? "api_error" : "invalid_request_error";
    }
}

}  // namespace

ContextSizeError::ContextSizeError(int64_t prompt_tokens, int64_t max_model_len)
    : RequestError(400, "This model's maximum context length is " + std::to_string(max_model_len) +
                            " tokens. However, your request has " + std::to_string(prompt_tokens) +
                            " input tokens. Please reduce the length of the input messages."),
      prompt_tokens_(prompt_tokens),
      max_model_len_(max_model_len) {}

std::string error_type(int status) {
    switch (status) {
        case 401:
            return "authentication_error";
        case 404:
            return "not_found_error";
        case 408:
            return "timeout_error";
        case 429:
            return "rate_limit_error";
        case 500:
            return "server_error";
        case 501:
            return "not_supported_error";
        case 503:
            return "unavailable_error";
        default:
            return "invalid_request_error";
    }
}

Json error_json(int status, const std::string& message, const std::string& param) {
    Json error;
    error["message"] = message;
    error["type"] = error_type(status);
    error["param"] = param.empty() ? Json(nullptr) : Json(param);
    error["code"] = status;
    return Json{{"error", error}};
}

Json error_json(const RequestError& error) {
    Json body = error_json(error.status(), error.what(), error.param());
    if (const auto* context = dynamic_cast<const ContextSizeError*>(&error)) {
        body["error"]["type"] = "exceed_context_size_error";
        body["error"]["code"] = "context_length_exceeded";
        body["error"]["n_prompt_tokens"] = context->prompt_tokens();
        body["error"]["n_ctx"] = context->max_model_len();
    }
    return body;
}

Dialect dialect_of(std::string_view path) {
    return path.ends_with("/messages") || path.find("/messages/") != std::string_view::npos ? Dialect::kAnthropic
                                                                                            : Dialect::kOpenAi;
}

Json anthropic_error_json(const RequestError& error, const std::string& request_id) {
    std::string message = error.what();
    // Claude Code reads both numbers from a text that begins so, and compacts the conversation.
    if (const auto* context = dynamic_cast<const ContextSizeError*>(&error))
        message = "prompt is too long: " + std::to_string(context->prompt_tokens()) + " tokens > " +
                  std::to_string(context->max_model_len()) + " maximum";
    return {{"type", "error"},
            {"error", {{"type", anthropic_error_type(anthropic_status(error.status()))}, {"message", message}}},
            {"request_id", request_id}};
}

HttpReply error_reply(const RequestError& error, Dialect dialect, const std::string& request_id) {
    const bool is_anthropic = dialect == Dialect::kAnthropic;
    HttpReply reply;
    reply.status = is_anthropic ? anthropic_status(error.status()) : error.status();
    reply.body = dump_json(is_anthropic ? anthropic_error_json(error, request_id) : error_json(error));
    if (error.status() == 429) reply.headers = {{"Retry-After", "1"}, {"retry-after-ms", "1000"}};
    if (error.status() == 503) reply.headers = {{"Retry-After", "5"}};
    if (error.status() == 401) reply.headers = {{"WWW-Authenticate", "Bearer"}};
    if (error.status() == 408 || error.status() == 501) reply.headers = {{"x-should-retry", "false"}};
    return reply;
}

RequestError renamed(const RequestError& error, std::span<const FieldName> names) {
    const std::string message = error.what();
    const auto begins_with = [](const std::string& text, std::string_view name) {
        if (!text.starts_with(name)) return false;
        const auto next = static_cast<unsigned char>(text.size() > name.size() ? text[name.size()] : ' ');
        return std::isalnum(next) == 0 && next != '_';
    };
    for (const auto& [ours, theirs] : names) {
        const bool in_message = begins_with(message, ours);
        if (!in_message && !begins_with(error.param(), ours)) continue;
        const std::string_view whole = theirs;
        const std::string param(whole.substr(0, whole.find('.')));
        return {error.status(), in_message ? std::string(theirs) + message.substr(ours.size()) : message, param};
    }
    return error;
}

RequestError bad_request(const Error& error) {
    // Lower rooms write "messages[0].role is ...": a name with a value is a field, an ordinary sentence is not.
    const std::string text = error.what();
    size_t end = 0;
    while (end < text.size() && (std::isalnum(static_cast<unsigned char>(text[end])) || text[end] == '_')) ++end;
    const bool is_field = end > 0 && end < text.size() &&
                          (text[end] == '.' || text[end] == '[' || text.compare(end, 4, " is ") == 0 ||
                           text.compare(end, 7, " names ") == 0);
    return {400, text, is_field ? text.substr(0, end) : ""};
}

}  // namespace thermocline::server
