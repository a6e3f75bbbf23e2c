// nlohmann-json enters the program here and nowhere else. `Json` keeps the key order of the text (prompts must
// reproduce it); parse_json never throws anything but Error and refuses absurd nesting.
#pragma once

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

namespace thermocline {

using Json = nlohmann::ordered_json;

/// Parses UTF-8 JSON. `what` (a file name, "request body") starts the message of the Error on bad input.
/// Nesting deeper than 200 is refused before recursion could hurt.
Json parse_json(std::string_view text, const std::string& what);

/// For files whose objects have very many keys (a vocabulary): Json looks keys up linearly, so that reading 100,000 of
/// them takes minutes. The order of the keys is lost. Same checks and errors as parse_json.
using SortedJson = nlohmann::json;
SortedJson parse_sorted_json(std::string_view text, const std::string& what);

/// Compact text; invalid UTF-8 inside strings becomes U+FFFD instead of throwing.
std::string dump_json(const Json& value, int indent = -1);

}  // namespace thermocline
