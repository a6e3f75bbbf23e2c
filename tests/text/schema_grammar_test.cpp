// JSON schemas as grammars: what belongs and what does not, what is refused, and that whatever is drawn is valid by an
// independent checker.
#include "src/text/schema_grammar.h"

#include "src/base/error.h"
#include "tests/engine/fake_model.h"
#include "tests/text/grammar_text.h"
#include "tests/text/schema_check.h"

#include <gtest/gtest.h>

namespace thermocline::text {
namespace {

using testing::belongs;

Grammar compile(const std::string& schema) { return schema_grammar(parse_json(schema, "test"), "test"); }

struct Case {
    const char* schema;
    std::vector<const char*> in, out;
};

void check(const std::vector<Case>& cases) {
    for (const Case& one : cases) {
        const Grammar grammar = compile(one.schema);
        const Json schema = parse_json(one.schema, "test");
        for (const char* text : one.in) {
            EXPECT_TRUE(belongs(grammar, text)) << one.schema << " " << text;
            EXPECT_TRUE(testing::satisfies(parse_json(text, "in"), schema)) << one.schema << " " << text;
        }
        for (const char* text : one.out) EXPECT_FALSE(belongs(grammar, text)) << one.schema << " " << text;
    }
}

TEST(Schema, Values) {
    check(
        {{"{}",
          {"1", "null", R"({"a": [1, 2, {}], "b":"é\n"})", "-0.5e-3", R"("\ud83d\ude00")"},
          {"", "01", "tru", "{\"a\":1,}", R"("\ud800")", "\"\n\"", "[1 , 2]", "+1", ".5", "1.", "\"\xFF\""}},
         {"true", {"[]"}, {"]"}},
         {R"({"type": ["null", "boolean"]})", {"null", "true", "false"}, {"0", "\"true\""}},
         {R"({"enum": [1, "é\"", {"a": [null]}, 2.5]})", {"1", R"("é\"")", R"({"a": [null]})", "2.5"}, {"2", "\"1\""}},
         {R"({"const": {"b": 1, "a": 2}})", {R"({"b": 1, "a": 2})"}, {R"({"b": 1})"}},
         {R"({"enum": ["a", 1, null], "type": "string"})", {"\"a\""}, {"1", "null"}}});
}

TEST(Schema, Numbers) {
    check({{R"({"type": "integer"})", {"0", "-7", "1234567890123456"}, {"1.5", "01", "1e3", "12345678901234567"}},
           {R"({"type": "integer", "minimum": -12, "maximum": 345})",
            {"-12", "-1", "0", "9", "99", "100", "345"},
            {"-13", "346", "1000", "-20", "0.5"}},
           {R"({"type": "integer", "exclusiveMinimum": 0})", {"1", "10"}, {"0", "-1"}},
           {R"({"minimum": 0.25, "exclusiveMaximum": 1.5, "type": "number"})",
            {"0.25", "0.3", "1", "1.49", "0.250"},
            {"0.2", "0.249", "1.5", "1.50", "0", "2", "1e0"}},
           {R"({"type": "number", "maximum": -0.5})", {"-0.5", "-1", "-100.25"}, {"-0.4", "0", "0.5", "-0"}},
           {R"({"type": "integer", "maximum": 9007199254740991, "minimum": -9007199254740991})",
            {"9007199254740991", "-9007199254740990"},
            {"9007199254740992", "-9007199254740992"}},
           {R"({"type": "integer", "minimum": 0.5, "maximum": 2.5})", {"1", "2"}, {"0", "3"}},
           {R"({"type": ["integer", "string"], "minimum": 5})", {"5", "\"\""}, {"4"}},
           {R"({"type": "integer", "minimum": 1e3, "maximum": 1.5e3})", {"1000", "1500"}, {"999", "1501"}}});
}

TEST(Schema, Strings) {
    check({{R"({"type": "string", "minLength": 2, "maxLength": 3})",
            {"\"éé\"", "\"abc\"", R"("\n\u00e9")", R"("\ud83d\ude00x")"},
            {"\"a\"", "\"abcd\"", "\"\""}},
           {R"({"type": "string", "pattern": "^a+(b|cé)?$"})", {"\"aab\"", "\"acé\""}, {"\"b\"", "\"aabx\""}},
           {R"({"type": "string", "pattern": "x\"\\\\n"})", {R"("zzx\"\\ny")"}, {R"("x\n")", "\"\""}},
           {R"({"type": "string", "pattern": "^\\n$"})", {R"("\n")"}, {"\"\n\""}},
           {R"({"type": "string", "maxLength": 0})", {"\"\""}, {"\"a\""}}});
    const std::pair<const char*, std::pair<std::vector<const char*>, std::vector<const char*>>> formats[] = {
        {"date", {{"2024-02-28", "1999-12-31"}, {"2024-02-30", "2024-13-01", "2024-1-1"}}},
        {"date-time",
         {{"2026-11-22T10:00:00Z", "2026-11-22T10:00:00.5+01:30"}, {"2026-11-22 10:00:00Z", "2026-11-22T25:00:00Z"}}},
        {"time", {{"23:59:59Z"}, {"24:00:00Z", "10:00"}}},
        {"uuid", {{"123e4567-e89b-12d3-a456-426614174000"}, {"123e4567"}}},
        {"email", {{"a.b@example.com"}, {"a@b", "@example.com"}}},
        {"ipv4", {{"255.0.10.99"}, {"256.0.0.1", "1.2.3"}}},
        {"ipv6", {{"1:2:3:4:5:6:7:8"}, {"1:2"}}},
        {"hostname", {{"a-b.example"}, {"-a", "a_b"}}},
        {"uri", {{"https://a.example:80/p/q?x=1#f"}, {"a.example", "http:/x"}}}};
    for (const auto& [name, texts] : formats) {
        const Grammar grammar = compile(std::string(R"({"type": "string", "format": ")") + name + "\"}");
        for (const char* text : texts.first)
            EXPECT_TRUE(belongs(grammar, '"' + std::string(text) + '"')) << name << text;
        for (const char* text : texts.second)
            EXPECT_FALSE(belongs(grammar, '"' + std::string(text) + '"')) << name << text;
    }
}

TEST(Schema, Objects) {
    check(
        {{R"({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}, "required": ["a"]})",
          {R"({"a": 1})", R"({"a":1,"b":"x"})", "{\n  \"a\": 1,\n  \"b\": \"\"\n}"},
          {"{}", R"({"b": "x"})", R"({"b": "x", "a": 1})", R"({"a": 1, "c": 2})", R"({"a": 1.5})",
           R"({"a": 1, "a": 2})", R"({"a":  1})", "{\n\n\"a\": 1}"}},
         {R"({"type": "object"})", {"{}", R"({"x": [{}]})"}, {"[]", "{"}},
         {R"({"properties": {"foo": {}, "fo": {}}, "additionalProperties": {"type": "integer"}})",
          {"{}", R"({"foo": "x", "f": 2})", R"({"fooo": 1, "x": 2, "é": 3})", R"({"": 1})"},
          {R"({"f": "a"})", R"({"x": 1, "fo": "s"})", R"({"f\u006f": 1})"}},
         {R"({"type": "object", "additionalProperties": false})", {"{}"}, {R"({"a": 1})"}},
         {R"({"type": "object", "required": ["x"]})", {R"({"x": null})"}, {"{}"}},
         {R"({"properties": {"a": false, "b": {}}, "additionalProperties": true})",
          {R"({"b": 1, "c": 2})"},
          {R"({"a": 1})"}},
         {R"({"type": "object", "propertyNames": {"pattern": "^k\\d$"}, "additionalProperties": {"type": "null"}})",
          {"{}", R"({"k1": null, "k2": null})"},
          {R"({"x": null})", R"({"k1": 1})"}}});
}

TEST(Schema, Arrays) {
    check(
        {{R"({"type": "array", "items": {"type": "integer"}, "minItems": 2})",
          {"[1,2]", "[\n 1, 2, 3]"},
          {"[]", "[1]", "[1, \"a\"]"}},
         {R"({"items": {"type": "null"}, "maxItems": 2})", {"[]", "[null, null]"}, {"[null,null,null]"}},
         {R"({"prefixItems": [{"type": "integer"}, {"type": "string"}], "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3})",
          {"[1]", "[1, \"a\"]", "[1, \"a\", true]"},
          {"[]", "[\"a\"]", "[1,true]", "[1,\"a\",true,true]"}},
         {R"({"prefixItems": [{"const": 1}], "items": false})", {"[]", "[1]"}, {"[1,1]"}},
         {R"({"type": "array", "maxItems": 0})", {"[]"}, {"[1]"}},
         {R"({"type": "array", "items": false})", {"[]"}, {"[1]"}}});
}

TEST(Schema, Combinations) {
    check(
        {{R"({"anyOf": [{"type": "string"}, {"type": "integer", "minimum": 3}]})", {"\"a\"", "3"}, {"2", "null"}},
         {R"({"type": "object", "properties": {"t": {}}, "anyOf": [{"required": ["t"]}, {"properties": {"u": {"const": 1}}, "required": ["u"]}]})",
          {R"({"t": 1})", R"({"t": 2, "u": 1})", R"({"u": 1})"},
          {"{}", R"({"u": 2})"}},
         {R"({"oneOf": [{"type": "object", "properties": {"k": {"const": "a"}}, "required": ["k"]},
                          {"type": "object", "properties": {"k": {"const": "b"}, "n": {"type": "integer"}}, "required": ["k"]}]})",
          {R"({"k": "a"})", R"({"k": "b", "n": 1})"},
          {R"({"k": "c"})", R"({"k": "a", "n": 1})"}},
         {R"({"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                          {"properties": {"a": {"maximum": 5}, "b": {"const": "x"}}, "required": ["b"]}]})",
          {R"({"a": 5, "b": "x"})"},
          {R"({"a": 6, "b": "x"})", R"({"a": 1})"}},
         {R"({"allOf": [{"type": "number"}, {"type": ["integer", "null"]}, {"enum": [1, 2.5, null]}]})",
          {"1"},
          {"2.5", "null"}},
         {R"({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"v": {"type": "integer"},
                "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}}, "required": ["v", "next"]}}})",
          {R"({"v": 1, "next": {"v": 2, "next": null}})"},
          {R"({"v": 1, "next": {"v": 2}})"}},
         {R"({"properties": {"l": {"$ref": "#"}, "r": {"$ref": "#", "description": "beside"}}, "additionalProperties": false})",
          {R"({"l": {"r": {}}, "r": {}})"},
          {R"({"l": {"x": {}}})"}},
         {R"({"$defs": {"a/b~c": {"type": "null"}}, "$ref": "#/$defs/a~1b~0c"})", {"null"}, {"0"}}});
}

TEST(Schema, RefusesWithTheKeyword) {
    const std::pair<const char*, const char*> cases[] = {
        {R"({"not": {}})", "not"},
        {R"({"if": {}, "then": {}})", "if"},
        {R"({"type": "array", "uniqueItems": true})", "uniqueItems"},
        {R"({"patternProperties": {"a": {}}})", "patternProperties"},
        {R"({"properties": {"a": {"multipleOf": 2}}})", "multipleOf"},
        {R"({"type": "text"})", "type"},
        {R"({"type": []})", "type"},
        {R"({"$ref": "http://example.com/x"})", "$ref"},
        {R"({"$ref": "#/$defs/missing"})", "$ref"},
        {R"x({"pattern": "(?=x)"})x", "pattern"},
        {R"({"pattern": "a", "minLength": 2})", "pattern"},
        {R"({"type": "string", "format": "color"})", "format"},
        {R"({"minLength": -1})", "minLength"},
        {R"({"maxLength": "3"})", "maxLength"},
        {R"({"minimum": "3"})", "minimum"},
        {R"({"enum": []})", "enum"},
        {R"({"enum": ["a"], "minLength": 1})", "minLength"},
        {R"({"required": "a"})", "required"},
        {R"({"properties": {"a": 1}})", "properties"},
        {R"({"oneOf": [{"type": "integer"}, {"type": "number"}]})", "oneOf"},
        {R"({"oneOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]})", "oneOf"},
        {R"({"allOf": [{"pattern": "a"}, {"pattern": "b"}]})", "pattern"},
        {R"({"unknownKeyword": 1})", "unknownKeyword"}};
    for (const auto& [schema, keyword] : cases) {
        try {
            compile(schema);
            ADD_FAILURE() << schema;
        } catch (const Error& error) {
            EXPECT_NE(std::string(error.what()).find(keyword), std::string::npos) << schema << ": " << error.what();
        }
    }
}

TEST(Schema, HostileOnesAreRefusedInTime) {
    std::string deep, many;
    for (int i = 0; i < 120; ++i) deep += R"({"properties": {"a": )";
    deep += "{}";
    for (int i = 0; i < 120; ++i) deep += "}}";
    for (int i = 0; i < 40; ++i)
        many += "\"d" + std::to_string(i) + R"(": {"allOf": [{"$ref": "#/$defs/d)" + std::to_string(i + 1) +
                R"("}, {"$ref": "#/$defs/d)" + std::to_string(i + 1) + "\"}]}, ";
    const std::string hostile[] = {deep,
                                   R"({"$ref": "#/$defs/d0", "$defs": {)" + many + R"("d40": {}}})",
                                   R"({"type": "string", "maxLength": 1000000})",
                                   R"({"type": "array", "minItems": 1000000000})",
                                   R"({"type": "integer", "minimum": 1e300})",
                                   R"({"$ref": "#"})",
                                   R"({"anyOf": [{"$ref": "#"}]})",
                                   R"({"allOf": [{"$ref": "#"}]})",
                                   R"({"properties": {"a": {"$ref": "#"}}, "required": ["a"]})",
                                   R"x({"pattern": "((((a{1000}){1000}){1000}){1000})"})x",
                                   "false"};
    for (const std::string& schema : hostile) {
        const auto start = std::chrono::steady_clock::now();
        EXPECT_THROW(compile(schema), Error) << schema.substr(0, 80);
        EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(10)) << schema.substr(0, 80);
    }
}

/// A random schema; `depth` bounds its nesting.
Json random_schema(std::mt19937& random, int depth) {
    const auto pick = [&](int n) { return static_cast<int>(random() % static_cast<unsigned>(n)); };
    switch (pick(depth > 0 ? 11 : 6)) {
        case 0:
            return {{"type", "integer"}, {"minimum", pick(300) - 200}, {"maximum", 100 + pick(3000)}};
        case 1:
            return {{"type", "number"}, {"exclusiveMinimum", -pick(100) / 8.0}, {"maximum", pick(1000) / 16.0 + 0.25}};
        case 2:
            return {{"type", "string"}, {"minLength", pick(3)}, {"maxLength", 3 + pick(30)}};
        case 3:
            return {{"type", "string"}, {"pattern", pick(2) == 0 ? "^[a-f]{2,5}(-\\d+)?$" : "^x[^y]*z$"}};
        case 4:
            return {{"enum", {"a", pick(9), nullptr, true, {1, "b"}}}};
        case 5:
            return {{"type", {"boolean", "null", "string"}}};
        case 6:
            return {{"type", "array"},
                    {"items", random_schema(random, depth - 1)},
                    {"minItems", pick(3)},
                    {"maxItems", 3 + pick(3)}};
        case 7:
            return {{"anyOf", {random_schema(random, depth - 1), random_schema(random, depth - 1)}}};
        case 8:
            return {{"$ref", "#/$defs/tree"}};
        case 9:
            return {{"prefixItems", {random_schema(random, depth - 1), {{"type", "integer"}}}},
                    {"items", false},
                    {"minItems", 1}};
        default:
            break;
    }
    Json schema = {{"type", "object"}, {"properties", Json::object()}, {"required", Json::array()}};
    for (int i = pick(5); i >= 0; --i) {
        const std::string name =
            std::string(1 + static_cast<size_t>(pick(3)), static_cast<char>('a' + i)) + (pick(4) == 0 ? "é\"" : "");
        schema["properties"][name] = random_schema(random, depth - 1);
        if (pick(2) == 0) schema["required"].push_back(name);
    }
    if (pick(2) == 0) schema["additionalProperties"] = pick(2) == 0 ? Json(false) : random_schema(random, 0);
    return schema;
}

TEST(Schema, WhateverIsDrawnIsValid) {
    const Tokenizer tokenizer = thermocline::testing::fake_tokenizer();
    const auto trie = std::make_shared<const TokenTrie>(tokenizer, tokenizer.vocab_size());
    std::mt19937 random(7);
    for (int round = 0; round < 300; ++round) {
        Json schema = random_schema(random, 3);
        schema["$defs"]["tree"] = {
            {"type", "object"},
            {"properties",
             {{"v", {{"type", "integer"}}}, {"kids", {{"type", "array"}, {"items", {{"$ref", "#/$defs/tree"}}}}}}},
            {"required", {"v"}},
            {"additionalProperties", false}};
        const auto masks =
            std::make_shared<TokenMasks>(std::make_shared<const Grammar>(schema_grammar(schema, "random")), trie);
        for (int draw = 0; draw < 3; ++draw) {
            const std::string text = testing::random_text(masks, random, 40);
            Json value;
            ASSERT_NO_THROW(value = parse_json(text, "drawn")) << text << "\n" << schema;
            ASSERT_TRUE(testing::satisfies(value, schema)) << text << "\n" << schema;
        }
    }
}

}  // namespace
}  // namespace thermocline::text
