// Tool calls drawn from their grammar: the output parser finds tools that exist and arguments that are valid.
#include "src/text/tool_grammar.h"

#include "src/base/error.h"
#include "src/text/output_parser.h"
#include "tests/engine/fake_model.h"
#include "tests/text/grammar_text.h"
#include "tests/text/schema_check.h"

#include <gtest/gtest.h>

namespace thermocline::text {
namespace {

using testing::belongs;

Tool tool(const std::string& name, const std::string& parameters, bool strict = false) {
    Json function = {{"name", name}};
    if (!parameters.empty()) function["parameters"] = parse_json(parameters, "parameters");
    if (strict) function["strict"] = true;
    return {name, std::move(function)};
}

const char* const kEdit = R"({"type": "object", "properties": {
    "path": {"type": "string"}, "mode": {"enum": ["w", "a", 3]}, "lines": {"type": "array", "items": {"type": "string"}},
    "count": {"type": ["integer", "null"], "minimum": 1}, "short": {"type": "string", "maxLength": 3},
    "nested": {"$ref": "#/$defs/n"}, "any": {}},
    "required": ["path", "count"], "$defs": {"n": {"type": "object", "properties": {"n": {"$ref": "#/$defs/n"}},
    "additionalProperties": false}}})";

/// The tags with their mark as it is in the byte stream of a grammar.
std::string marked(std::string text) {
    for (size_t at; (at = text.find("｜DSML｜")) != std::string::npos;)
        text.replace(at, std::string("｜DSML｜").size(), {'\xFF', '\0'});
    return text;
}

std::string with_call(const std::string& name, const std::string& parameters) {
    return marked("\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name=\"" + name + "\">\n" + parameters +
                  "</｜DSML｜invoke>\n</｜DSML｜tool_calls>");
}

std::string parameter(const std::string& name, bool is_string, const std::string& value) {
    return "<｜DSML｜parameter name=\"" + name + "\" string=\"" + (is_string ? "true" : "false") + "\">" + value +
           "</｜DSML｜parameter>\n";
}

TEST(ToolGrammar, TakesTheMarkupOfTheModel) {
    ToolGrammarOptions options;
    options.tools = {tool("edit", kEdit), tool("ping", "")};
    const Grammar grammar = tool_call_grammar(options);
    const std::string path = parameter("path", true, "a/b \"c\" <d> </e>\n｜x"), count = parameter("count", false, "2");
    EXPECT_TRUE(belongs(grammar, with_call("edit", path + count)));
    EXPECT_TRUE(
        belongs(grammar, with_call("edit", path + parameter("mode", true, "a") + parameter("count", false, "null"))));
    EXPECT_TRUE(belongs(grammar, with_call("edit", path + parameter("mode", false, "3") + count)));
    EXPECT_TRUE(belongs(grammar, with_call("ping", "")));
    EXPECT_TRUE(belongs(grammar, with_call("ping", "\n")));
    EXPECT_FALSE(belongs(grammar, with_call("edit", path))) << "count is missing";
    EXPECT_FALSE(belongs(grammar, with_call("edit", count + path))) << "order";
    EXPECT_FALSE(belongs(grammar, with_call("edit", path + parameter("count", false, "0"))));
    EXPECT_FALSE(belongs(grammar, with_call("edit", path + parameter("count", true, "2"))));
    EXPECT_FALSE(belongs(grammar, with_call("edit", parameter("path", true,
                                                              "\xEF\xBD\x9C"
                                                              "DSML\xEF\xBD\x9C") +
                                                        count)))
        << "the mark spelled by other tokens";
    EXPECT_FALSE(belongs(grammar, with_call("delete", "")));
    EXPECT_FALSE(belongs(grammar, with_call("ping", path)));
}

TEST(ToolGrammar, WhateverIsDrawnIsAValidCall) {
    const Tokenizer tokenizer = thermocline::testing::fake_tokenizer();
    const auto trie = std::make_shared<const TokenTrie>(tokenizer, tokenizer.vocab_size());
    std::mt19937 random(11);
    for (const PromptRevision revision : {PromptRevision::kV4, PromptRevision::kV4_1}) {
        for (const bool parallel : {true, false}) {
            ToolGrammarOptions options;
            options.revision = revision;
            options.parallel = parallel;
            options.tools = {tool("edit", kEdit), tool("ping", ""), tool("free", R"({"type": "object"})")};
            const auto masks =
                std::make_shared<TokenMasks>(std::make_shared<const Grammar>(tool_call_grammar(options)), trie);
            for (int draw = 0; draw < 25; ++draw) {
                const std::string text = thermocline::testing::random_text(masks, random, 30);
                ParserOptions parser;
                parser.revision = revision;
                parser.tools = options.tools;
                const ParsedOutput output = parse_output(text, parser);
                ASSERT_EQ(output.content, "") << text;
                ASSERT_GE(output.tool_calls.size(), 1u) << text;
                ASSERT_TRUE(parallel || output.tool_calls.size() == 1) << text;
                ASSERT_EQ(output.reason, FinishReason::kToolCalls);
                for (const ToolCall& call : output.tool_calls) {
                    Json arguments;
                    ASSERT_NO_THROW(arguments = parse_json(call.arguments, "arguments")) << text << "\n"
                                                                                         << call.arguments;
                    ASSERT_TRUE(arguments.is_object());
                    ASSERT_TRUE(call.name != "edit" ||
                                thermocline::testing::satisfies(arguments, parse_json(kEdit, "edit")))
                        << text << "\n"
                        << call.arguments;
                    ASSERT_TRUE(call.name != "ping" || arguments.empty());
                }
            }
        }
    }
}

TEST(ToolGrammar, OnlyStrictToolsAreHeldToTheirSchema) {
    ToolGrammarOptions options;
    options.only_strict = options.behind_mark = true;
    options.tools = {
        tool("loose", R"({"not": {}})"),
        tool("strict", R"({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"]})", true)};
    const Grammar grammar = tool_call_grammar(options);
    const auto behind = [](const std::string& text) { return text.substr(text.find("tool_calls>")); };
    EXPECT_TRUE(belongs(grammar, behind(with_call("loose", parameter("x", true, "y")))));
    EXPECT_TRUE(belongs(grammar, behind(with_call("strict", parameter("a", false, "null")))));
    EXPECT_FALSE(belongs(grammar, behind(with_call("strict", parameter("a", false, "1")))));
    EXPECT_FALSE(belongs(grammar, behind(with_call("strict", ""))));
    options.only_strict = false;
    try {
        tool_call_grammar(options);
        ADD_FAILURE() << "a keyword that is not supported";
    } catch (const Error& error) {
        EXPECT_NE(std::string(error.what()).find("loose"), std::string::npos) << error.what();
        EXPECT_NE(std::string(error.what()).find("not"), std::string::npos) << error.what();
    }
}

}  // namespace
}  // namespace thermocline::text
