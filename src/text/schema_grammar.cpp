#include "src/text/schema_grammar.h"

#include "src/base/error.h"
#include "src/text/python_json.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <utility>

namespace thermocline::text {

namespace {

using Expr = GrammarBuilder::Expr;

constexpr int kMaxDepth = 100;
constexpr size_t kMostPrefix = 256;

/// Regular expressions of the formats; every text that one matches is valid.
const std::pair<const char*, const char*> kFormats[] = {
    {"date",
     "[1-9]\\d{3}-((0[13578]|1[02])-(0[1-9]|[12]\\d|3[01])|(0[469]|11)-(0[1-9]|[12]\\d|30)|02-(0[1-9]|1\\d|2[0-8]))"},
    {"time", "([01]\\d|2[0-3]):[0-5]\\d:[0-5]\\d(\\.\\d{1,6})?(Z|[+-]([01]\\d|2[0-3]):[0-5]\\d)"},
    {"uuid", "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"},
    {"email",
     "[A-Za-z0-9_+-]{1,32}(\\.[A-Za-z0-9_+-]{1,15}){0,2}@([a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?\\.){1,4}[a-z]{2,12}"},
    {"hostname", "([a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?\\.){0,4}[a-z]([a-z0-9-]{0,30}[a-z0-9])?"},
    {"ipv4", "((25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)\\.){3}(25[0-5]|2[0-4]\\d|1\\d\\d|[1-9]?\\d)"},
    {"ipv6", "([0-9a-f]{1,4}:){7}[0-9a-f]{1,4}"},
    {"uri",
     "(https?|ftp)://([a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?\\.){0,4}[a-z]([a-z0-9-]{0,30}[a-z0-9])?(:[1-9]\\d{0,3})?"
     "(/([A-Za-z0-9._~!$&'()*+,;=:@-]|%[0-9A-F]{2})*)*(\\?([A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-F]{2})*)?"
     "(#([A-Za-z0-9._~!$&'()*+,;=:@/?-]|%[0-9A-F]{2})*)?"}};

std::string format_pattern(const std::string& format) {
    for (const auto& [name, pattern] : kFormats)
        if (format == name) return pattern;
    if (format == "date-time") return format_pattern("date") + "T" + format_pattern("time");
    return "";
}

int64_t count(const Json& schema, const char* key, int64_t absent) {
    return schema.contains(key) ? schema[key].get<int64_t>() : absent;
}

bool is_of_type(const Json& value, const std::string& type) {
    if (type == "object") return value.is_object();
    if (type == "array") return value.is_array();
    if (type == "string") return value.is_string();
    if (type == "boolean") return value.is_boolean();
    if (type == "null") return value.is_null();
    if (type == "number") return value.is_number();
    return value.is_number_integer() || (value.is_number() && value.get<double>() == std::floor(value.get<double>()));
}

}  // namespace

SchemaGrammar::SchemaGrammar(GrammarBuilder& builder, JsonGrammar& json, const Json& root, std::string name)
    : builder_(builder),
      json_(json),
      document_(root, std::move(name)),
      spell_json_([&json](const CharSet& set) { return json.spelled(set); }) {}

Expr SchemaGrammar::value(const Json& schema) {
    const bool is_reference = schema.is_object() && schema.contains("$ref");
    if (is_reference) {
        const Json bare = document_.meaningful(schema);
        const auto reference = bare["$ref"].get<std::string>();
        if (bare.size() == 1) return call(reference, document_.target(reference), false);
    }
    if (++depth_ > kMaxDepth) document_.refuse("properties", "is nested deeper than 100 schemas");
    std::vector<Expr> ways;
    for (const Json& alternative : document_.alternatives(schema)) ways.push_back(one(alternative));
    --depth_;
    return builder_.choice(std::move(ways));
}

Expr SchemaGrammar::call(const std::string& name, const Json& schema, bool is_plain) {
    const auto [entry, is_new] = rules_.try_emplace(name, 0);
    if (is_new) {
        entry->second = builder_.new_rule(name);
        undefined_.push_back({entry->second, schema, is_plain});
    }
    return builder_.call(entry->second);
}

void SchemaGrammar::finish() {
    while (!undefined_.empty()) {
        const Undefined next = std::move(undefined_.back());
        undefined_.pop_back();
        if (!next.is_plain) {
            builder_.define(next.rule, value(next.schema));
            continue;
        }
        std::vector<Expr> ways;
        for (const std::string& type : types_of(next.schema)) ways.push_back(of_type(type, next.schema));
        builder_.define(next.rule, builder_.choice(std::move(ways)));
    }
}

/// "type", or what the keywords imply; nothing: any type.
std::vector<std::string> SchemaGrammar::types_of(const Json& schema) const {
    std::vector<std::string> types = document_.types(schema);
    if (std::find(types.begin(), types.end(), "number") != types.end()) std::erase(types, "integer");
    return types;
}

/// The values of enum and const that have one of the types.
std::vector<Json> SchemaGrammar::listed(const Json& schema) const {
    for (const auto& [key, unused] : schema.items())
        if (key != "enum" && key != "const" && key != "type")
            document_.refuse(key, "beside enum or const is not supported");
    std::vector<Json> values;
    if (schema.contains("enum")) values = schema["enum"].get<std::vector<Json>>();
    if (schema.contains("const")) {
        if (!schema.contains("enum")) values = {schema["const"]};
        std::erase_if(values, [&](const Json& value) { return value != schema["const"]; });
    }
    if (schema.contains("type")) {
        const std::vector<std::string> types = document_.types(schema);
        std::erase_if(values, [&](const Json& value) {
            return std::none_of(types.begin(), types.end(), [&](const auto& type) { return is_of_type(value, type); });
        });
    }
    return values;
}

/// A schema without $ref, allOf, anyOf and oneOf.
Expr SchemaGrammar::one(const Json& schema) {
    std::vector<Expr> ways;
    if (has_list(schema)) {
        for (const Json& value : listed(schema)) ways.push_back(builder_.literal(python_json(value)));
        return builder_.choice(std::move(ways));
    }
    const std::vector<std::string> types = types_of(schema);
    if (types.empty()) return json_.value();
    const bool nests = std::any_of(types.begin(), types.end(),
                                   [](const std::string& type) { return type == "object" || type == "array"; });
    if (nests) return call(dump_json(schema), schema, true);
    for (const std::string& type : types) ways.push_back(of_type(type, schema));
    return builder_.choice(std::move(ways));
}

Expr SchemaGrammar::of_type(const std::string& type, const Json& schema) {
    if (type == "object") return object(schema);
    if (type == "array") return array(schema);
    if (type == "null") return builder_.literal("null");
    if (type == "boolean") return builder_.choice({builder_.literal("true"), builder_.literal("false")});
    if (type == "number" || type == "integer") return number(schema, type == "integer");
    const bool is_any = !schema.contains("pattern") && !schema.contains("format") && !schema.contains("maxLength") &&
                        count(schema, "minLength", 0) == 0;
    return is_any ? json_.string() : json_.quoted(characters(schema, spell_json_));
}

SchemaGrammar::Forms SchemaGrammar::forms(const Json& schema, const RawText& raw) {
    Forms out;
    const auto is_any = [](const Json& s) {
        return !s.contains("pattern") && !s.contains("format") && !s.contains("maxLength") &&
               count(s, "minLength", 0) == 0;
    };
    for (const Json& alternative : document_.alternatives(schema)) {
        if (has_list(alternative)) {
            for (const Json& value : listed(alternative)) {
                if (dump_json(value).find(raw.excluded) != std::string::npos)
                    document_.refuse("enum", "or const holds " + raw.excluded + ", which tool calls cannot");
                if (value.is_string())
                    out.raw.push_back(builder_.literal(value.get_ref<const std::string&>()));
                else
                    out.json.push_back(builder_.literal(python_json(value)));
            }
            continue;
        }
        std::vector<std::string> types = types_of(alternative);
        if (types.empty()) types = {"string", "object", "array", "number", "boolean", "null"};
        for (const std::string& type : types) {
            if (type == "string")
                out.raw.push_back(is_any(alternative) ? raw.any : characters(alternative, raw.spell));
            else
                out.json.push_back(of_type(type, alternative));
        }
    }
    return out;
}

Expr SchemaGrammar::number(const Json& schema, bool integer) {
    const auto bound = [&](const char* closed, const char* open, bool lower) -> std::optional<NumberBound> {
        if (!schema.contains(closed) && !schema.contains(open)) return std::nullopt;
        bool is_open = schema.contains(open);
        if (schema.contains(closed) && is_open)
            is_open = lower ? schema[open] >= schema[closed] : schema[open] <= schema[closed];
        NumberBound out;
        out.value = Decimal::parse(schema[is_open ? open : closed].dump());
        out.open = is_open;
        return out;
    };
    return json_.number_between(bound("minimum", "exclusiveMinimum", true), bound("maximum", "exclusiveMaximum", false),
                                integer);
}

Expr SchemaGrammar::characters(const Json& schema, const Speller& spell) {
    const int64_t least = count(schema, "minLength", 0), most = count(schema, "maxLength", GrammarBuilder::kUnlimited);
    const bool has_length = least > 0 || most != GrammarBuilder::kUnlimited;
    const bool has_format = schema.contains("format");
    for (const char* key : {"pattern", "format"})
        if (schema.contains(key) && (has_length || (has_format && schema.contains("pattern"))))
            document_.refuse(key, "together with other rules for the same string is not supported");
    if (schema.contains("pattern"))
        return regex_expression(schema["pattern"].get<std::string>(), RegexMatch::kSearch, builder_, spell);
    if (has_format) {
        const auto name = schema["format"].get<std::string>();
        const std::string pattern = format_pattern(name);
        if (pattern.empty())
            document_.refuse("format",
                             "is \"" + printable(name, 40) +
                                 "\", expected date, time, date-time, uuid, email, uri, ipv4, ipv6 or hostname");
        return regex_expression(pattern, RegexMatch::kWhole, builder_, spell);
    }
    if (most != GrammarBuilder::kUnlimited && most < least) return builder_.never();
    return builder_.repeat(spell(CharSet::all()), least, most);
}

Expr SchemaGrammar::object(const Json& schema) {
    static const Json kNone = Json::object();
    const Json& properties = schema.contains("properties") ? schema["properties"] : kNone;
    std::vector<std::string> required;
    if (schema.contains("required")) required = schema["required"].get<std::vector<std::string>>();
    const bool has_extra = schema.contains("additionalProperties") ? schema["additionalProperties"] != false
                                                                   : properties.empty() && required.empty();
    const Json rest = schema.contains("additionalProperties") ? schema["additionalProperties"] : Json(true);
    const bool has_names = schema.contains("propertyNames") && schema["propertyNames"] != true &&
                           schema["propertyNames"] != kNone && schema["propertyNames"] != Json{{"type", "string"}};
    if (has_names && (!properties.empty() || !required.empty()))
        document_.refuse("propertyNames", "together with properties or required is not supported");

    std::vector<GrammarBuilder::Member> members;
    std::vector<std::string> names;
    const auto add = [&](const std::string& name, const Json& of, bool is_required) {
        names.push_back(name);
        const Expr text = value(of);
        const int32_t rule = builder_.rule(name, text);  // it is written in two places
        const Expr member =
            builder_.sequence({builder_.literal(python_json_string(name)), json_.colon(), builder_.call(rule)});
        members.push_back({member, is_required});
    };
    for (const auto& [name, of] : properties.items()) {
        const bool is_required = std::find(required.begin(), required.end(), name) != required.end();
        if (of != false || is_required) add(name, of, is_required);
        if (of == false && !is_required) names.push_back(name);
    }
    for (const std::string& name : required)
        if (std::find(names.begin(), names.end(), name) == names.end()) add(name, rest, true);
    Expr extra = -1;
    if (has_extra) {
        const Expr name = has_names       ? key(schema["propertyNames"])
                          : names.empty() ? json_.string()
                                          : json_.key_except(names);
        extra = builder_.sequence({name, json_.colon(), builder_.call(builder_.rule("member", value(rest)))});
    }
    return json_.enclosed("{", builder_.members(std::move(members), json_.comma(), extra), "}");
}

/// A member name under propertyNames: what of its schema is a string.
Expr SchemaGrammar::key(const Json& schema) { return value(Json{{"allOf", {schema, {{"type", "string"}}}}}); }

Expr SchemaGrammar::array(const Json& schema) {
    const bool old_list = schema.contains("items") && schema["items"].is_array();
    if (old_list && schema.contains("prefixItems")) document_.refuse("items", "is a list beside prefixItems");
    if (schema.contains("additionalItems") && !old_list) document_.refuse("additionalItems", "without a list of items");
    const char* prefix_key = old_list ? "items" : "prefixItems";
    const char* rest_key = old_list ? "additionalItems" : "items";
    const std::vector<Json> prefix =
        schema.contains(prefix_key) ? schema[prefix_key].get<std::vector<Json>>() : std::vector<Json>();
    if (prefix.size() > kMostPrefix) document_.refuse(prefix_key, "has more than 256 schemas");
    const Json rest = schema.contains(rest_key) ? schema[rest_key] : Json(true);
    const int64_t least = count(schema, "minItems", 0);
    int64_t most = count(schema, "maxItems", GrammarBuilder::kUnlimited);
    const auto listed_items = static_cast<int64_t>(prefix.size());
    if (rest == false && (most == GrammarBuilder::kUnlimited || most > listed_items)) most = listed_items;
    if (most != GrammarBuilder::kUnlimited && most < least) return builder_.never();

    // From the last element to the first, each with what follows it.
    Expr tail = builder_.nothing();
    if (most == GrammarBuilder::kUnlimited || most > listed_items) {
        const Expr element = builder_.call(builder_.rule("element", value(rest)));
        const Expr next = builder_.sequence({json_.comma(), element});
        const int64_t others = most == GrammarBuilder::kUnlimited ? most : most - listed_items;
        const int64_t needed = std::max<int64_t>(0, least - listed_items);
        if (prefix.empty() && others != 0) {
            const int64_t more = others == GrammarBuilder::kUnlimited ? others : others - 1;
            tail = builder_.sequence({element, builder_.repeat(next, std::max<int64_t>(0, needed - 1), more)});
            if (needed == 0) tail = builder_.optional(tail);
        } else {
            tail = builder_.repeat(next, needed, others);
        }
    }
    for (int64_t i = listed_items - 1; i >= 0; --i) {
        if (most != GrammarBuilder::kUnlimited && i >= most) continue;
        const Expr element = value(prefix[static_cast<size_t>(i)]);
        tail = i == 0 ? builder_.sequence({element, tail}) : builder_.sequence({json_.comma(), element, tail});
        if (i >= least) tail = builder_.optional(tail);
    }
    return json_.enclosed("[", tail, "]");
}

Grammar schema_grammar(const Json& schema, const std::string& name) {
    GrammarBuilder builder;
    JsonGrammar json(builder);
    SchemaGrammar compiler(builder, json, schema, name);
    const int32_t root = builder.rule("root", compiler.value(schema));
    compiler.finish();
    return builder.build(root);
}

}  // namespace thermocline::text
