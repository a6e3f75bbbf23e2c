// Schemas of different kinds for grammar_bench, and random documents of them.
#pragma once

#include "src/base/json.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>

namespace thermocline::bench {

struct SchemaKind {
    const char* name;
    const char* schema;
    bool is_call = false;  // arguments of a tool call in DeepSeek's markup
};

/// Strings with a pattern or a format are drawn from "examples".
inline const SchemaKind kSchemaKinds[] = {
    {"any object", R"({"type": "object"})"},
    {"person", R"({"type": "object", "properties": {"name": {"type": "string", "maxLength": 400}, "age": {"type":
        "integer", "minimum": 0, "maximum": 150}, "tags": {"type": "array", "items": {"type": "string"}}, "kind": {"enum":
        ["a", "bb", "ccc"]}, "child": {"$ref": "#"}}, "required": ["name", "age", "tags"]})"},
    {"enums", R"({"type": "object", "properties": {"country": {"enum": ["Argentina", "Armenia", "Australia", "Austria",
        "Brazil", "Brunei", "Bulgaria", "Canada", "Chad", "Chile", "China", "Colombia", "Denmark", "Djibouti", "Egypt",
        "Estonia", "Ethiopia", "Finland", "France", "Georgia", "Germany", "Ghana", "Greece", "Guatemala", "Guinea",
        "India", "Indonesia", "Iran", "Iraq", "Ireland", "Israel", "Italy", "日本", "Österreich"]}, "sizes": {"type":
        "array", "items": {"enum": ["S", "M", "L", "XL", "XXL", 36, 38, 40, null, true]}, "minItems": 1, "maxItems": 40},
        "mood": {"const": "re-entrant \"quoted\" text"}}, "required": ["country", "sizes", "mood"]})"},
    {"nested arrays", R"({"type": "object", "properties": {"matrix": {"type": "array", "minItems": 1, "maxItems": 8,
        "items": {"type": "array", "items": {"type": "array", "items": {"type": "number", "minimum": -1000, "maximum":
        1000}, "minItems": 2, "maxItems": 6}}}, "pairs": {"type": "array", "items": {"type": "array", "prefixItems":
        [{"type": "string"}, {"type": "integer"}], "items": false, "minItems": 2}}}, "required": ["matrix", "pairs"]})"},
    {"patterns",
     R"({"type": "object", "properties": {"part": {"type": "string", "pattern": "^[A-Z]{2,4}-[0-9]{3,6}(/[a-z]+)?$",
        "examples": ["AB-123", "QRST-998877/left", "XYZ-0042/rear"]}, "phone": {"type": "string", "pattern":
        "^\\+?[0-9]{1,3}( [0-9]{2,4}){2,5}$", "examples": ["+49 30 1234 5678", "1 555 12 34 56 78"]}, "path": {"type":
        "array", "items": {"type": "string", "pattern": "^(/[A-Za-z0-9_.-]{1,64})+$", "examples":
        ["/usr/share/doc/readme.txt", "/home/Ada/projects/engine_2/src/main.cpp", "/a"]}}, "color": {"type": "string",
        "pattern": "^#([0-9a-fA-F]{3}|[0-9a-fA-F]{6})$", "examples": ["#fff", "#A0b1C2"]}},
        "required": ["part", "phone", "path", "color"]})"},
    {"numbers",
     R"({"type": "object", "properties": {"port": {"type": "integer", "minimum": 1, "maximum": 65535}, "share":
        {"type": "number", "minimum": 0, "maximum": 1}, "money": {"type": "number", "exclusiveMinimum": -99.5,
        "exclusiveMaximum": 123456.75}, "many": {"type": "array", "items": {"type": "integer", "minimum":
        -9007199254740991, "maximum": 9007199254740991}, "maxItems": 50}, "free": {"type": "array", "items": {"type":
        "number"}}}, "required": ["port", "share", "money", "many", "free"]})"},
    {"alternatives", R"({"type": "object", "properties": {"shapes": {"type": "array", "items": {"anyOf": [{"type":
        "object", "properties": {"kind": {"const": "circle"}, "radius": {"type": "number", "minimum": 0, "maximum": 9999}},
        "required": ["kind", "radius"]}, {"type": "object", "properties": {"kind": {"const": "polygon"}, "points": {"type":
        "array", "items": {"type": "array", "items": {"type": "integer", "minimum": -5000, "maximum": 5000}, "minItems": 2,
        "maxItems": 2}}}, "required": ["kind", "points"]}, {"type": "object", "properties": {"kind": {"const": "label"},
        "text": {"type": ["string", "null"]}}, "required": ["kind", "text"]}]}}}, "required": ["shapes"]})"},
    {"a form", R"({"type": "object", "properties": {"f0": {"type": "string", "maxLength": 20}, "f1": {"type": "string",
        "maxLength": 27}, "f2": {"type": "string", "maxLength": 34}, "f3": {"type": "string", "maxLength": 41},
        "f4": {"type": "string", "maxLength": 48}, "f5": {"type": "string", "maxLength": 55}, "f6": {"type":
        "string", "maxLength": 62}, "f7": {"type": "string", "maxLength": 69}, "f8": {"type": "string", "maxLength":
        76}, "f9": {"type": "string", "maxLength": 83}, "f10": {"type": "string", "maxLength": 90}, "f11": {"type":
        "string", "maxLength": 97}, "f12": {"type": "string", "maxLength": 104}, "f13": {"type": "string",
        "maxLength": 111}, "f14": {"type": "string", "maxLength": 118}, "f15": {"type": "string", "maxLength": 125},
        "f16": {"type": "string", "maxLength": 132}, "f17": {"type": "string", "maxLength": 139}, "f18": {"type":
        "string", "maxLength": 146}, "f19": {"type": "string", "maxLength": 153}, "f20": {"type": "string",
        "maxLength": 160}, "f21": {"type": "string", "maxLength": 167}, "f22": {"type": "string", "maxLength": 174},
        "f23": {"type": "string", "maxLength": 181}, "f24": {"type": "string", "maxLength": 188}, "f25": {"type":
        "string", "maxLength": 195}, "f26": {"type": "string", "maxLength": 202}, "f27": {"type": "string",
        "maxLength": 209}, "f28": {"type": "string", "maxLength": 216}, "f29": {"type": "string", "maxLength": 223},
        "f30": {"type": "string", "maxLength": 230}, "f31": {"type": "string", "maxLength": 237}, "f32": {"type":
        "string", "maxLength": 244}, "f33": {"type": "string", "maxLength": 251}, "f34": {"type": "string",
        "maxLength": 258}, "f35": {"type": "string", "maxLength": 265}, "f36": {"type": "string", "maxLength": 272},
        "f37": {"type": "string", "maxLength": 279}, "f38": {"type": "string", "maxLength": 286}, "f39": {"type":
        "string", "maxLength": 293}, "f40": {"type": "string", "maxLength": 300}, "f41": {"type": "string",
        "maxLength": 307}, "f42": {"type": "string", "maxLength": 314}, "f43": {"type": "string", "maxLength": 321},
        "f44": {"type": "string", "maxLength": 328}, "f45": {"type": "string", "maxLength": 335}, "f46": {"type":
        "string", "maxLength": 342}, "f47": {"type": "string", "maxLength": 349}}, "required": ["f0", "f1", "f2",
        "f3", "f4", "f5", "f6", "f7", "f8", "f9", "f10", "f11", "f12", "f13", "f14", "f15", "f16", "f17", "f18",
        "f19", "f20", "f21", "f22", "f23", "f24", "f25", "f26", "f27", "f28", "f29", "f30", "f31", "f32", "f33",
        "f34", "f35", "f36", "f37", "f38", "f39", "f40", "f41", "f42", "f43", "f44", "f45", "f46", "f47"]})"},
    {"long texts", R"({"type": "object", "properties": {"title": {"type": "string", "minLength": 3, "maxLength": 80},
        "summary": {"type": "string", "minLength": 20, "maxLength": 2000}, "notes": {"type": "array", "items": {"type":
        "string", "maxLength": 280}, "maxItems": 20}}, "required": ["title", "summary", "notes"]})"},
    {"formats", R"({"type": "object", "properties": {"id": {"type": "string", "format": "uuid", "examples":
        ["123e4567-e89b-12d3-a456-426614174000"]}, "at": {"type": "string", "format": "date-time", "examples":
        ["2026-11-23T08:41:39Z", "1999-12-31T23:59:59.125+01:00"]}, "day": {"type": "string", "format": "date", "examples":
        ["2026-11-23"]}, "mail": {"type": "string", "format": "email", "examples": ["ada@example.org",
        "first.last+tag@mail.example.com"]}, "link": {"type": "string", "format": "uri", "examples":
        ["https://example.org/a/b?c=d&e=f#g", "http://example.com"]}, "hosts": {"type": "array", "items": {"type":
        "string", "format": "ipv4", "examples": ["127.0.0.1", "192.168.100.254"]}}},
        "required": ["id", "at", "day", "mail", "link", "hosts"]})"},
    {"many members", R"({"type": "object", "properties": {"alpha": {"type": "integer"}, "beta": {"type": "boolean"},
        "gamma": {"type": "string"}, "delta_one": {"type": "integer"}, "delta_two": {"type": "number"}, "epsilon": {"type":
        "null"}, "zeta": {"enum": ["on", "off"]}, "eta": {"type": "string"}, "theta": {"type": "array", "items": {"type":
        "boolean"}}, "iota": {"type": "string", "maxLength": 20}, "kappa": {"type": "integer", "minimum": 0}, "lambda":
        {"type": "boolean"}, "mu": {"type": "string"}, "nu": {"type": "integer"}, "xi": {"type": "boolean"}, "omicron":
        {"type": "string"}, "pi": {"type": "number"}, "rho": {"type": "string"}, "sigma": {"type": "integer"}, "tau":
        {"type": "boolean"}, "upsilon": {"type": "string"}, "phi": {"type": "number"}, "chi": {"type": "integer"}, "psi":
        {"type": "string"}, "omega": {"type": "boolean"}}})"},
    {"map", R"({"type": "object", "additionalProperties": {"type": "object", "properties": {"count": {"type": "integer",
        "minimum": 0}, "seen": {"type": "array", "items": {"type": "string"}}}, "required": ["count"]}})"},
    {"tree",
     R"({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"op": {"enum": ["add", "mul",
        "neg", "lit", "var"]}, "args": {"type": "array", "items": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "number"},
        {"type": "string", "maxLength": 12}]}, "maxItems": 4}}, "required": ["op", "args"]}}})"},
    {"call edit",
     R"({"type": "object", "properties": {"file_path": {"type": "string"}, "old_string": {"type": "string"},
        "new_string": {"type": "string"}, "replace_all": {"type": "boolean"}}, "required": ["file_path", "old_string",
        "new_string"]})",
     true},
    {"call plan", R"({"type": "object", "properties": {"title": {"type": "string", "maxLength": 120}, "steps": {"type":
        "array", "items": {"type": "object", "properties": {"text": {"type": "string", "minLength": 1}, "status": {"enum":
        ["pending", "in_progress", "completed"]}, "minutes": {"type": "integer", "minimum": 1, "maximum": 9999}}, "required":
        ["text", "status"]}, "minItems": 1}, "priority": {"type": "integer", "minimum": 0, "maximum": 10}}, "required":
        ["title", "steps"]})",
     true},
    {"call search", R"({"type": "object", "properties": {"query": {"type": "string", "minLength": 2, "maxLength": 400},
        "regex": {"type": "string"}, "glob": {"type": "string", "pattern": "^[A-Za-z0-9_*?./-]+$", "examples":
        ["**/*.cpp", "src/server/*.h"]}, "context": {"type": ["integer", "null"], "minimum": 0, "maximum": 100},
        "output_mode": {"enum": ["content", "files_with_matches", "count"]}}, "required": ["query"]})",
     true}};

/// Values of a schema: of the keywords above only.
class Documents {
public:
    Documents(const Json& schema, unsigned seed) : root_(schema), random_(seed) {}
    Json next() { return value(root_, 0); }

    std::string words(size_t most) {
        static const char* const kWords[] = {"engine", "Ada", "of the",    "日本語",           "re-entrant", "42nd",
                                             "écrit",  "x",   "matrices,", "\n  if (a < b) {", "naïve",      "thermo"};
        std::string out;
        for (size_t n = below(most) + 1; n > 0; --n)
            out += kWords[below(std::size(kWords))] + std::string(n > 1 ? " " : "");
        return out;
    }

private:
    size_t below(size_t most) { return random_() % most; }
    template <typename List>
    const Json& one_of(const List& list) {
        return list[below(list.size())];
    }

    std::string text(const Json& schema) {
        if (schema.contains("examples")) return one_of(schema["examples"]);
        const auto most = schema.value("maxLength", size_t{1} << 20), least = schema.value("minLength", size_t{0});
        std::string out = words(most > 500 ? 40 : 8);
        const auto is_begin = [](char c) { return (static_cast<unsigned char>(c) & 0xC0) != 0x80; };
        while (std::count_if(out.begin(), out.end(), is_begin) < static_cast<std::ptrdiff_t>(least)) out += " more";
        if (out.size() > most) out = "short enough";  // bytes: at least as many as characters
        return out;
    }

    Json number(const Json& schema, bool integer) {
        const double low =
            schema.contains("minimum") ? schema["minimum"].get<double>() : schema.value("exclusiveMinimum", -1e6);
        const double high =
            schema.contains("maximum") ? schema["maximum"].get<double>() : schema.value("exclusiveMaximum", 1e6);
        const double share = static_cast<double>(random_() % 9999 + 1) / 10001;
        const double at = low + (high - low) * (below(3) == 0 ? share * 0.001 : share);
        if (integer) return static_cast<int64_t>(at);
        return std::round(at * 1000) / 1000;
    }

    Json object(const Json& schema, int depth) {
        Json out = Json::object();
        static const Json kNone = Json::object();
        const Json& properties = schema.contains("properties") ? schema["properties"] : kNone;
        const Json required = schema.value("required", Json::array());
        for (const auto& [name, of] : properties.items()) {
            const bool is_required = std::find(required.begin(), required.end(), name) != required.end();
            if (is_required || (depth < 5 && below(2) == 0)) out[name] = value(of, depth + 1);
        }
        if (!properties.empty()) return out;
        for (size_t n = below(6); n > 0; --n) {
            const std::string name = "key " + words(2);
            if (schema.contains("additionalProperties"))
                out[name] = value(schema["additionalProperties"], depth + 1);
            else if (below(2) == 0)
                out[name] = words(10);
            else
                out[name] = Json::array({1.5, nullptr, Json::array({true, Json::object()}), below(1000)});
        }
        return out;
    }

    Json array(const Json& schema, int depth) {
        Json out = Json::array();
        if (schema.contains("prefixItems")) {
            for (const Json& item : schema["prefixItems"]) out.push_back(value(item, depth + 1));
            return out;
        }
        const auto least = schema.value("minItems", size_t{0}), most = schema.value("maxItems", size_t{8});
        const size_t count = depth > 5 ? least : least + below(std::min<size_t>(most, 8) - least + 1);
        while (out.size() < count) out.push_back(value(schema["items"], depth + 1));
        return out;
    }

    Json value(const Json& schema, int depth) {
        if (schema.contains("$ref")) {
            const auto path = schema["$ref"].get<std::string>();
            return value(path == "#" ? root_ : root_["$defs"][path.substr(8)], depth);
        }
        if (schema.contains("enum")) return one_of(schema["enum"]);
        if (schema.contains("const")) return schema["const"];
        if (schema.contains("anyOf")) return value(depth > 5 ? schema["anyOf"].back() : one_of(schema["anyOf"]), depth);
        const Json& types = schema["type"];
        const std::string type = types.is_array() ? one_of(types) : types;
        if (type == "string") return text(schema);
        if (type == "integer" || type == "number") return number(schema, type == "integer");
        if (type == "boolean") return below(2) == 0;
        if (type == "object") return object(schema, depth);
        return type == "array" ? array(schema, depth) : Json();
    }

    const Json& root_;
    std::mt19937 random_;
};

}  // namespace thermocline::bench
