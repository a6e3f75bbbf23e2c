#include "src/base/json.h"

#include "src/base/error.h"

namespace thermocline {

namespace {

constexpr int kMaxDepth = 200;

/// Depth of the brackets outside strings; cheap and exact enough to refuse "[[[[..." before the parser recurses.
void check_depth(std::string_view text, const std::string& what) {
    int depth = 0;
    bool in_string = false;
    for (size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (in_string) {
            if (c == '\\')
                ++i;
            else if (c == '"')
                in_string = false;
        } else if (c == '"') {
            in_string = true;
        } else if (c == '{' || c == '[') {
            if (++depth > kMaxDepth) fail(what, ": JSON nested deeper than ", kMaxDepth);
        } else if (c == '}' || c == ']') {
            --depth;
        }
    }
}

template <typename AnyJson>
AnyJson parse(std::string_view text, const std::string& what) {
    check_depth(text, what);
    try {
        return AnyJson::parse(text.begin(), text.end());
    } catch (const nlohmann::json::exception& error) {
        fail(what, ": not valid JSON (", printable(error.what()), ")");
    }
}

}  // namespace

Json parse_json(std::string_view text, const std::string& what) { return parse<Json>(text, what); }

SortedJson parse_sorted_json(std::string_view text, const std::string& what) { return parse<SortedJson>(text, what); }

std::string dump_json(const Json& value, int indent) {
    return value.dump(indent, ' ', false, Json::error_handler_t::replace);
}

}  // namespace thermocline
