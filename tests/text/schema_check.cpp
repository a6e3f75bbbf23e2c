#include "tests/text/schema_check.h"

#include <algorithm>
#include <cmath>
#include <regex>
#include <string>

namespace thermocline::testing {

namespace {

bool equal(const Json& a, const Json& b) { return SortedJson::parse(a.dump()) == SortedJson::parse(b.dump()); }

bool has_type(const Json& value, const std::string& type) {
    if (type == "integer") return value.is_number() && std::floor(value.get<double>()) == value.get<double>();
    if (type == "number") return value.is_number();
    if (type == "string") return value.is_string();
    if (type == "boolean") return value.is_boolean();
    if (type == "null") return value.is_null();
    return type == "object" ? value.is_object() : value.is_array();
}

int64_t characters(const std::string& text) {
    return std::count_if(text.begin(), text.end(),
                         [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; });
}

bool check_string(const std::string& text, const Json& schema) {
    if (schema.contains("minLength") && characters(text) < schema["minLength"]) return false;
    if (schema.contains("maxLength") && characters(text) > schema["maxLength"]) return false;
    return !schema.contains("pattern") ||
           std::regex_search(text, std::regex(schema["pattern"].get<std::string>(), std::regex::ECMAScript));
}

bool check_number(double value, const Json& schema) {
    const auto bound = [&](const char* key, auto holds) {
        return !schema.contains(key) || holds(value, schema[key].get<double>());
    };
    return bound("minimum", std::greater_equal<>()) && bound("maximum", std::less_equal<>()) &&
           bound("exclusiveMinimum", std::greater<>()) && bound("exclusiveMaximum", std::less<>());
}

bool check_object(const Json& value, const Json& schema, const Json& root) {
    if (schema.contains("required"))
        for (const Json& name : schema["required"])
            if (!value.contains(name.get<std::string>())) return false;
    for (const auto& [name, member] : value.items()) {
        const bool named = schema.contains("properties") && schema["properties"].contains(name);
        if (named && !satisfies(member, schema["properties"][name], root)) return false;
        const bool is_extra = !named && schema.contains("additionalProperties");
        if (is_extra && !satisfies(member, schema["additionalProperties"], root)) return false;
        if (schema.contains("propertyNames") && !satisfies(name, schema["propertyNames"], root)) return false;
    }
    return true;
}

bool check_array(const Json& value, const Json& schema, const Json& root) {
    if (schema.contains("minItems") && value.size() < schema["minItems"].get<size_t>()) return false;
    if (schema.contains("maxItems") && value.size() > schema["maxItems"].get<size_t>()) return false;
    for (size_t i = 0; i < value.size(); ++i) {
        const size_t prefix = schema.contains("prefixItems") ? schema["prefixItems"].size() : 0;
        if (i < prefix && !satisfies(value[i], schema["prefixItems"][i], root)) return false;
        if (i >= prefix && schema.contains("items") && !satisfies(value[i], schema["items"], root)) return false;
    }
    return true;
}

}  // namespace

bool satisfies(const Json& value, const Json& schema, const Json& root) {
    if (schema.is_boolean()) return schema.get<bool>();
    if (schema.contains("$ref")) {
        const auto reference = schema["$ref"].get<std::string>();
        if (!satisfies(value, root.at(Json::json_pointer(reference.substr(1))), root)) return false;
    }
    if (schema.contains("type")) {
        const Json types = schema["type"].is_array() ? schema["type"] : Json::array({schema["type"]});
        if (std::none_of(types.begin(), types.end(), [&](const Json& type) { return has_type(value, type); }))
            return false;
    }
    const auto matches = [&](const char* key) {
        return std::count_if(schema[key].begin(), schema[key].end(),
                             [&](const Json& branch) { return satisfies(value, branch, root); });
    };
    if (schema.contains("enum") && std::none_of(schema["enum"].begin(), schema["enum"].end(),
                                                [&](const Json& item) { return equal(item, value); }))
        return false;
    if (schema.contains("const") && !equal(schema["const"], value)) return false;
    if (schema.contains("anyOf") && matches("anyOf") == 0) return false;
    if (schema.contains("oneOf") && matches("oneOf") != 1) return false;
    if (schema.contains("allOf") && matches("allOf") != static_cast<int64_t>(schema["allOf"].size())) return false;
    if (value.is_string()) return check_string(value.get<std::string>(), schema);
    if (value.is_number()) return check_number(value.get<double>(), schema);
    if (value.is_object()) return check_object(value, schema, root);
    return !value.is_array() || check_array(value, schema, root);
}

}  // namespace thermocline::testing
