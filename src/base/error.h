// The one exception: a wrong file, configuration or request. Its text is one line that names the file, tensor or
// field, what was found and what was expected. Caught in main and in the HTTP handler only.
#pragma once

#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace thermocline {

class Error : public std::runtime_error {
public:
    explicit Error(const std::string& message) : std::runtime_error(message) {}
};

/// Throws Error with the arguments streamed into one line, e.g. fail("config.json: head_dim is ", x, ", expected > 0").
template <typename... Args>
[[noreturn]] void fail(Args&&... args) {
    std::ostringstream text;
    (text << ... << std::forward<Args>(args));
    throw Error(text.str());
}

/// Runs `body`; an Error that leaves it gets `while doing WHAT: ` in front.
template <typename Body>
decltype(auto) with_context(const std::string& what, Body&& body) {
    try {
        return std::forward<Body>(body)();
    } catch (const Error& error) {
        throw Error(what + ": " + error.what());
    }
}

/// A name from a file or a client, made safe for one log line: control bytes escaped, cut after `limit` bytes.
std::string printable(std::string_view text, size_t limit = 120);

}  // namespace thermocline
