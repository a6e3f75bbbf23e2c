// Typed reading of the fields of a request body (serving-api.md section 2): null is absent, 1.0 is an integer, a string
// is no number; what does not fit is a RequestError 400 that names the field. Pure, any thread.
#pragma once

#include "src/base/json.h"

#include <cstdint>
#include <limits>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace thermocline::server {

class Fields {
public:
    /// `prefix` stands in front of every name in messages: "stream_options.".
    explicit Fields(const Json& object, std::string prefix = "");

    /// A field that is there and not null.
    const Json* find(const std::string& key) const;
    bool has(const std::string& key) const { return find(key) != nullptr; }

    std::optional<double> number(const std::string& key, double least, double most) const;
    std::optional<int64_t> integer(const std::string& key, int64_t least,
                                   int64_t most = std::numeric_limits<int64_t>::max()) const;
    bool boolean(const std::string& key, bool absent) const;
    std::optional<std::string> string(const std::string& key) const;
    /// Array of integers, at most `limit` of them.
    std::vector<int64_t> integers(const std::string& key, size_t limit) const;

    /// Throws the RequestError 400 "KEY is VALUE, expected EXPECTED".
    [[noreturn]] void refuse(const std::string& key, const std::string& expected) const;

private:
    const Json& object_;
    std::string prefix_;
};

/// JSON that a client wrote: UTF-8 of sane depth and breadth. RequestError 400 otherwise; `what` begins its message.
Json parse_client_json(std::string_view text, const std::string& what);

/// A JSON number as integer if it is one, 1.0 included.
std::optional<int64_t> as_integer(const Json& value);

}  // namespace thermocline::server
