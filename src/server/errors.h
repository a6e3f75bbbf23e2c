// What a request is refused with (serving-api.md section 2): status, type, and the name of the field. Caught in
// server.cpp, where it becomes the JSON body; a plain Error from a lower room becomes a 400.
#pragma once

#include "src/base/error.h"
#include "src/base/json.h"
#include "src/server/http.h"

#include <span>
#include <string>
#include <string_view>
#include <utility>

namespace thermocline::server {

class RequestError : public Error {
public:
    RequestError(int status, const std::string& message, std::string param = "")
        : Error(message), status_(status), param_(std::move(param)) {}

    int status() const { return status_; }
    const std::string& param() const { return param_; }

private:
    int status_;
    std::string param_;
};

/// The prompt does not fit: 400 with both numbers.
class ContextSizeError : public RequestError {
public:
    ContextSizeError(int64_t prompt_tokens, int64_t max_model_len);
    int64_t prompt_tokens() const { return prompt_tokens_; }
    int64_t max_model_len() const { return max_model_len_; }

private:
    int64_t prompt_tokens_, max_model_len_;
};

/// The error type of section 2's table.
std::string error_type(int status);

/// {"error": {...}} for a refused request or a broken stream.
Json error_json(int status, const std::string& message, const std::string& param = "");
Json error_json(const RequestError& error);

/// The families of clients: they differ in the shape of error bodies and in a few statuses.
enum class Dialect { kOpenAi, kAnthropic };

/// The dialect of a route, known or not: everything at and below ".../messages" is Anthropic's.
Dialect dialect_of(std::string_view path);

/// {"type": "error", ...} of section 2, for the Anthropic routes.
Json anthropic_error_json(const RequestError& error, const std::string& request_id);

/// The status, headers and body that a refused request is answered with.
HttpReply error_reply(const RequestError& error, Dialect dialect, const std::string& request_id);

/// A field of a chat body, and what the API that the body was made for calls it.
using FieldName = std::pair<std::string_view, std::string_view>;
/// The refusal with the field that its message begins with, and its param, by the names of the other API.
RequestError renamed(const RequestError& error, std::span<const FieldName> names);

/// What an Error that a lower room threw about the request is to the client: the field is the name that its text begins
/// with, if any.
RequestError bad_request(const Error& error);

/// Runs `body`; what it refuses goes on in the words of the other API.
template <typename Body>
auto in_words_of(std::span<const FieldName> names, Body&& body) {
    try {
        return std::forward<Body>(body)();
    } catch (const ContextSizeError&) {
        throw;
    } catch (const RequestError& error) {
        throw renamed(error, names);
    } catch (const Error& error) {
        throw renamed(bad_request(error), names);
    }
}

}  // namespace thermocline::server
