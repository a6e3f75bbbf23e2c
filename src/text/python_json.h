// JSON text as Python writes it. The chat prompts of DeepSeek-V4 hold json.dumps(x, ensure_ascii=False), and one
// differing space changes tokens, so this spelling is fixed here: separators ", " and ": ", key order as received,
// integers digit for digit, floats like repr(). Pure functions, any thread. Text in, text out: no number passes
// through a type that could lose digits, except floats, which Python too holds as doubles.
// Source: prompt-encoding.md section 4.
#pragma once

#include "src/base/json.h"

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace thermocline::text {

/// One member of an object. For a JSON string `value` is its characters (not quoted, not escaped), else JSON text.
struct JsonMember {
    std::string key;
    std::string value;
    bool is_string = false;
};

/// json.dumps(value, ensure_ascii=False). Integers beyond 64 bits were already doubles in `value`.
std::string python_json(const Json& value);

/// json.dumps(json.loads(text), ensure_ascii=False); nothing if `text` is not JSON, nested deeper
/// than 256 or holds a float beyond the range of doubles.
/// Lone surrogate escapes become U+FFFD; of equal keys the last value stays, at the first one's place.
std::optional<std::string> python_json_text(std::string_view json_text);

/// The members of the object that `json_text` is, values spelled like python_json_text; nothing if it is no object.
std::optional<std::vector<JsonMember>> python_json_members(std::string_view json_text);

/// Appends `characters` as they stand inside a JSON string (without the quotes). Works on any cut of the bytes.
void append_json_escaped(std::string& out, std::string_view characters);

/// `characters` as a JSON string with its quotes.
std::string python_json_string(std::string_view characters);

}  // namespace thermocline::text
