#include "src/text/schema_document.h"

#include "src/base/error.h"

#include <algorithm>
#include <optional>
#include <set>

namespace thermocline::text {

namespace {

constexpr int64_t kMostWork = 1000000;
constexpr int kMostDepth = 64;
constexpr size_t kMostNames = 2048;

const std::set<std::string> kAnnotations = {
    "title",       "description",   "default",    "examples",   "example",          "$schema",
    "$id",         "$comment",      "deprecated", "readOnly",   "writeOnly",        "$defs",
    "definitions", "discriminator", "$anchor",    "id",         "contentMediaType", "contentEncoding",
    "strict",      "externalDocs",  "xml",        "$vocabulary"};

const std::set<std::string> kKeywords = {"type",
                                         "enum",
                                         "const",
                                         "anyOf",
                                         "oneOf",
                                         "allOf",
                                         "$ref",
                                         "properties",
                                         "required",
                                         "additionalProperties",
                                         "propertyNames",
                                         "items",
                                         "prefixItems",
                                         "additionalItems",
                                         "minItems",
                                         "maxItems",
                                         "minLength",
                                         "maxLength",
                                         "pattern",
                                         "format",
                                         "minimum",
                                         "maximum",
                                         "exclusiveMinimum",
                                         "exclusiveMaximum"};

const std::set<std::string> kTypes = {"object", "array", "string", "number", "integer", "boolean", "null"};

/// Values of unsupported keywords that say nothing.
bool is_idle(const std::string& key, const Json& value) {
    if (key == "uniqueItems" || key == "nullable") return value == false;
    if (key == "minProperties" || key == "minContains") return value == 0;
    if (key == "multipleOf") return false;
    if (key == "patternProperties" || key == "dependentRequired" || key == "dependentSchemas" || key == "dependencies")
        return value.is_object() && value.empty();
    return key.starts_with("x-");
}

int64_t values_in(const Json& value) {
    int64_t sum = 1;
    if (value.is_structured())
        for (const Json& item : value) sum += values_in(item);
    return sum;
}

/// Some schema at or below has an $id (a property of that name would be an object).
bool has_id(const Json& value) {
    if (!value.is_structured()) return false;
    if (value.is_object() && value.contains("$id") && value["$id"].is_string()) return true;
    return std::any_of(value.begin(), value.end(), has_id);
}

std::string unescaped(const std::string& part) {
    std::string out;
    for (size_t i = 0; i < part.size(); ++i) {
        const bool is_escape = part[i] == '~' && i + 1 < part.size() && (part[i + 1] == '0' || part[i + 1] == '1');
        const bool is_hex = part[i] == '%' && i + 2 < part.size() && isxdigit(part[i + 1]) && isxdigit(part[i + 2]);
        if (is_escape) {
            out += part[++i] == '0' ? '~' : '/';
        } else if (is_hex) {
            out += static_cast<char>(std::stoi(part.substr(i + 1, 2), nullptr, 16));
            i += 2;
        } else {
            out += part[i];
        }
    }
    return out;
}

std::vector<std::string> type_list(const Json& type) {
    if (type.is_string()) return {type.get<std::string>()};
    std::vector<std::string> out;
    for (const Json& item : type) out.push_back(item.get<std::string>());
    return out;
}

/// JSON's equality: 1 and 1.0 are one value; members may stand in any order.
bool same_value(const Json& a, const Json& b) { return SortedJson::parse(a.dump()) == SortedJson::parse(b.dump()); }

/// The values of enum or const; nothing if there is neither.
std::optional<std::vector<Json>> listed(const Json& schema) {
    if (!schema.is_object()) return std::nullopt;
    if (schema.contains("const")) return std::vector<Json>{schema["const"]};
    if (schema.contains("enum")) return schema["enum"].get<std::vector<Json>>();
    return std::nullopt;
}

bool requires_name(const Json& schema, const std::string& name) {
    if (!schema.contains("required")) return false;
    const Json& names = schema["required"];
    return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

SchemaDocument::SchemaDocument(const Json& root, std::string name) : root_(root), name_(std::move(name)) {
    // References below an $id start from there.
    if (root_.is_object())
        for (const auto& [key, value] : root_.items())
            if (has_id(value)) refuse("$id", "inside the schema is not supported");
}

void SchemaDocument::refuse(const std::string& keyword, const std::string& complaint) const {
    fail(name_, ": keyword ", printable(keyword, 40), " ", complaint);
}

void SchemaDocument::count_work(const Json& read) {
    work_ += values_in(read);
    if (work_ > kMostWork) fail(name_, ": too large, over ", kMostWork, " values once references are followed");
}

const Json& SchemaDocument::target(const std::string& reference) const {
    const std::string shown = printable(reference, 60);
    if (!reference.starts_with('#')) refuse("$ref", "is \"" + shown + "\", expected one into the schema itself: #/...");
    const Json* at = &root_;
    if (reference.size() > 1 && reference[1] != '/') refuse("$ref", "is \"" + shown + "\", expected # or #/...");
    for (size_t begin = 2; begin <= reference.size() && reference.size() > 1;) {
        const size_t end = std::min(reference.find('/', begin), reference.size());
        const std::string part = unescaped(reference.substr(begin, end - begin));
        const bool is_number =
            !part.empty() && part.size() < 7 && part.find_first_not_of("0123456789") == std::string::npos;
        if (at->is_object() && at->contains(part))
            at = &(*at)[part];
        else if (at->is_array() && is_number && std::stoul(part) < at->size())
            at = &(*at)[std::stoul(part)];
        else
            refuse("$ref", "is \"" + shown + "\", which the schema does not have");
        begin = end + 1;
    }
    return *at;
}

namespace {

bool is_count(const Json& value) {
    return value.is_number() && value >= 0 && value <= 1e9 && value == value.get<int64_t>();
}

bool is_schema(const Json& value) { return value.is_object() || value.is_boolean(); }

bool are_schemas(const Json& list) { return !list.empty() && std::all_of(list.begin(), list.end(), is_schema); }

/// What the value of a keyword must be; empty if it is that.
const char* wrong_form(const std::string& key, const Json& value) {
    const auto is_type = [](const Json& item) { return item.is_string() && kTypes.contains(item.get<std::string>()); };
    if (key == "type") {
        const bool is_list = value.is_array() && !value.empty() && std::all_of(value.begin(), value.end(), is_type);
        return is_list || is_type(value) ? "" : "a type or a list of types";
    }
    if (key == "enum") return value.is_array() && !value.empty() ? "" : "a list of values";
    if (key == "anyOf" || key == "oneOf" || key == "allOf")
        return value.is_array() && are_schemas(value) ? "" : "a list of schemas";
    if (key == "$ref" || key == "pattern" || key == "format") return value.is_string() ? "" : "a string";
    if (key == "properties")
        return value.is_object() && (value.empty() || are_schemas(value)) ? "" : "an object of schemas";
    if (key == "required") {
        const auto is_name = [](const Json& item) { return item.is_string(); };
        const bool fits = value.is_array() && value.size() <= kMostNames;
        return fits && std::all_of(value.begin(), value.end(), is_name) ? "" : "a list of at most 2048 names";
    }
    if (key == "prefixItems") return value.is_array() && are_schemas(value) ? "" : "a list of schemas";
    if (key == "items") return is_schema(value) || (value.is_array() && are_schemas(value)) ? "" : "a schema";
    if (key == "additionalProperties" || key == "propertyNames" || key == "additionalItems")
        return is_schema(value) ? "" : "a schema";
    if (key == "minItems" || key == "maxItems" || key == "minLength" || key == "maxLength")
        return is_count(value) ? "" : "a whole number from 0 to 1000000000";
    if (key.ends_with("inimum") || key.ends_with("aximum")) return value.is_number() ? "" : "a number";
    return "";
}

}  // namespace

Json SchemaDocument::meaningful(const Json& schema) {
    count_work(schema);
    if (schema.is_boolean()) return schema == true ? Json::object() : Json(false);
    if (!schema.is_object()) fail(name_, ": ", printable(dump_json(schema), 60), " is no schema, expected an object");
    Json out = Json::object();
    for (const auto& [key, value] : schema.items()) {
        if (kAnnotations.contains(key)) continue;
        if (!kKeywords.contains(key)) {
            if (is_idle(key, value)) continue;
            refuse(key, "is not supported for constrained output");
        }
        if (const char* expected = wrong_form(key, value); *expected != '\0')
            refuse(key, "is " + printable(dump_json(value), 60) + ", expected " + expected);
        out[key] = value;
    }
    return out;
}

std::vector<std::string> SchemaDocument::types(const Json& schema) const {
    if (schema.contains("type")) return type_list(schema["type"]);
    static const std::vector<std::pair<const char*, std::vector<const char*>>> kSpeakers = {
        {"object", {"properties", "required", "additionalProperties", "propertyNames"}},
        {"array", {"items", "prefixItems", "additionalItems", "minItems", "maxItems"}},
        {"string", {"minLength", "maxLength", "pattern", "format"}},
        {"number", {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"}}};
    std::vector<std::string> out;
    for (const auto& [type, keywords] : kSpeakers)
        if (std::any_of(keywords.begin(), keywords.end(), [&](const char* key) { return schema.contains(key); }))
            out.emplace_back(type);
    return out;
}

std::vector<Json> SchemaDocument::alternatives(const Json& given) {
    if (++depth_ > kMostDepth) fail(name_, ": keywords $ref, allOf, anyOf and oneOf reach deeper than ", kMostDepth);
    const Json schema = plain(given);
    std::vector<Json> out;
    const char* keyword = schema.is_object() && schema.contains("anyOf") ? "anyOf" : "oneOf";
    if (!schema.is_object() || !schema.contains(keyword)) {
        if (schema != false) out.push_back(schema);
        --depth_;
        return out;
    }
    Json rest = schema;
    rest.erase(keyword);
    std::vector<Json> branches;
    for (const Json& branch : schema[keyword]) {
        std::vector<Json> parts = alternatives(merged(rest, branch));
        if (std::string(keyword) == "oneOf" && parts.size() > 1) refuse("oneOf", "holds another choice; use anyOf");
        branches.insert(branches.end(), parts.begin(), parts.end());
    }
    if (std::string(keyword) == "oneOf") check_exclusive(branches);
    --depth_;
    return branches;
}

/// Without $ref and allOf.
Json SchemaDocument::plain(const Json& given) {
    if (++depth_ > kMostDepth) fail(name_, ": keywords $ref and allOf reach deeper than ", kMostDepth);
    Json schema = meaningful(given);
    if (schema.is_object() && schema.contains("$ref")) {
        const Json referred = target(schema["$ref"].get<std::string>());
        schema.erase("$ref");
        schema = merged(referred, schema);
    } else if (schema.is_object() && schema.contains("allOf")) {
        const Json parts = schema["allOf"];
        schema.erase("allOf");
        for (const Json& part : parts) schema = merged(schema, part);
    }
    --depth_;
    return schema;
}

/// What satisfies both.
Json SchemaDocument::merged(const Json& left, const Json& right) {
    Json a = plain(left), b = plain(right);
    if (a == false || b == false) return false;
    const auto says = [](const Json& schema, const char* key) { return schema.contains(key); };
    const bool lists = says(a, "prefixItems") || says(b, "prefixItems");  // "items" speaks of what lies behind its own
    const bool both = (says(a, "items") || says(a, "prefixItems")) && (says(b, "items") || says(b, "prefixItems"));
    if (lists && both) refuse("prefixItems", "in one of several schemas that must hold together is not supported");
    Json out = merged_objects(a, b);
    for (const auto& [key, value] : b.items()) merge_keyword(out, key, value);
    return out;
}

/// `a` with the properties of both; each additionalProperties speaks about what its own schema does not name.
Json SchemaDocument::merged_objects(Json a, Json b) {
    if (!b.contains("properties") && !b.contains("additionalProperties")) return a;
    static const Json kAny = Json::object();
    const auto of_name = [](const Json& schema, const std::string& name) -> Json {
        if (schema.contains("properties") && schema["properties"].contains(name)) return schema["properties"][name];
        return schema.contains("additionalProperties") ? schema["additionalProperties"] : kAny;
    };
    Json properties = Json::object();
    for (const Json* side : {&a, &b}) {
        if (!side->contains("properties")) continue;
        for (const auto& [name, unused] : (*side)["properties"].items()) {
            const Json x = of_name(a, name), y = of_name(b, name);
            const bool one = x == kAny || x == true;
            const bool other = y == kAny || y == true;
            properties[name] = one ? y : other || x == y ? x : Json{{"allOf", {x, y}}};
        }
    }
    if (!properties.empty()) a["properties"] = std::move(properties);
    return a;
}

void SchemaDocument::merge_keyword(Json& into, const std::string& key, const Json& value) {
    if (key == "properties") return;  // done
    if (!into.contains(key)) {
        into[key] = value;
        return;
    }
    Json& held = into[key];
    if (held == value) return;
    const bool is_least = key == "minimum" || key == "exclusiveMinimum" || key == "minItems" || key == "minLength";
    const bool is_most = key == "maximum" || key == "exclusiveMaximum" || key == "maxItems" || key == "maxLength";
    if (is_least || is_most) {
        if (is_least ? value > held : value < held) held = value;
    } else if (key == "type") {
        Json both = Json::array();
        for (const std::string& a : type_list(held))
            for (const std::string& b : type_list(value)) {
                if (a == b) both.push_back(a);
                if ((a == "number" && b == "integer") || (a == "integer" && b == "number")) both.push_back("integer");
            }
        if (both.empty())
            into = {{"enum", Json::array()}};  // nothing satisfies it
        else
            held = std::move(both);
    } else if (key == "required") {
        for (const Json& name : value)
            if (std::find(held.begin(), held.end(), name) == held.end()) held.push_back(name);
    } else if (key == "enum" || key == "const") {
        Json both = Json::array();
        const std::vector<Json> mine = key == "const" ? std::vector<Json>{held} : held.get<std::vector<Json>>();
        const std::vector<Json> others = key == "const" ? std::vector<Json>{value} : value.get<std::vector<Json>>();
        for (const Json& x : mine)
            if (share_value(std::vector<Json>(1, x), others)) both.push_back(x);
        into.erase(key);
        into["enum"] = std::move(both);
    } else if (key == "items" || key == "additionalProperties") {
        held = Json{{"allOf", {held, value}}};
    } else {
        refuse(key, "stands in several schemas that must hold together, which is not supported");
    }
}

void SchemaDocument::check_exclusive(const std::vector<Json>& branches) {
    for (size_t i = 0; i < branches.size(); ++i)
        for (size_t k = i + 1; k < branches.size(); ++k) {
            count_work(branches[k]);
            if (!are_apart(branches[i], branches[k]))
                refuse("oneOf", "has branches that may hold together (" + std::to_string(i) + " and " +
                                    std::to_string(k) +
                                    "); use anyOf, or give them different types, constants or "
                                    "required properties");
        }
}

/// What the grammar of either writes does not satisfy the other.
bool SchemaDocument::are_apart(const Json& a, const Json& b) {
    const auto mine = listed(a), others = listed(b);
    if (mine && others) return !share_value(*mine, *others);
    if (!a.contains("type") || !b.contains("type")) return false;
    for (const std::string& x : type_list(a["type"]))
        for (const std::string& y : type_list(b["type"])) {
            const bool numbers = (x == "integer" || x == "number") && (y == "integer" || y == "number");
            const bool objects = x == "object" && y == "object";
            if (objects ? !(never_written_as(a, b) && never_written_as(b, a)) : x == y || numbers) return false;
        }
    return true;
}

bool SchemaDocument::share_value(const std::vector<Json>& some, const std::vector<Json>& others) {
    for (const Json& x : some)
        for (const Json& y : others) {
            count_work(x);
            count_work(y);
            if (same_value(x, y)) return true;
        }
    return false;
}

/// An object that the grammar of `a` writes is never valid as `b`.
bool SchemaDocument::never_written_as(const Json& a, const Json& b) {
    if (!b.contains("required")) return false;
    const bool has_extra = a.contains("additionalProperties") ? a["additionalProperties"] != false
                                                              : !a.contains("properties") && !a.contains("required");
    for (const Json& item : b["required"]) {
        const auto name = item.get<std::string>();
        const bool named = a.contains("properties") && a["properties"].contains(name);
        if (!named && !has_extra && !requires_name(a, name)) return true;
        if (!named || !requires_name(a, name) || !b.contains("properties") || !b["properties"].contains(name)) continue;
        const auto mine = listed(a["properties"][name]), others = listed(b["properties"][name]);
        if (!mine || !others) continue;
        if (!share_value(*mine, *others)) return true;
    }
    return false;
}

}  // namespace thermocline::text
