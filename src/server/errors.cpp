#include "src/server/errors.h"

#include <cctype>

namespace thermocline::server {

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
