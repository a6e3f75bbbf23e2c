// Masks against the obvious way: try every token byte by byte. With the vocabulary of the demo model.
#include "src/text/token_masks.h"

#include "src/base/error.h"
#include "src/text/gbnf_grammar.h"
#include "src/text/schema_grammar.h"
#include "src/text/tokenizer_json.h"
#include "src/text/tool_grammar.h"

#include <gtest/gtest.h>
#include <random>

namespace thermocline::text {
namespace {

const Tokenizer& demo() {
    static const Tokenizer tokenizer(load_tokenizer_json(THERMOCLINE_SOURCE_DIR "/models/demo"));
    return tokenizer;
}

std::shared_ptr<const TokenTrie> demo_trie() {
    static const auto trie = std::make_shared<const TokenTrie>(demo(), demo().vocab_size() + 70);
    return trie;
}

std::shared_ptr<const Grammar> grammar_of(const char* name) {
    static const char* const kSchema = R"({"type": "object", "properties": {
        "name": {"type": "string", "maxLength": 60}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["a", "the", "and he said"]}}, "child": {"$ref": "#"}, "any": {}},
        "required": ["name"], "additionalProperties": {"type": "null"}})";
    static const char* const kCounted = R"({"type": "array", "items": {"anyOf": [{"type": "string", "maxLength": 20},
        {"type": "string", "minLength": 3, "maxLength": 45}, {"type": "string", "minLength": 18, "maxLength": 300},
        {"type": "string", "pattern": "^[a-z]{2,25}(x|yy){0,17}[0-9]?$"}, {"type": "array", "items": {"type": "string",
        "maxLength": 16}, "maxItems": 18}, {"type": "array", "items": {"type": "boolean"}, "maxItems": 20}]}})";
    const std::string kind = name;
    if (kind == "counted") return std::make_shared<const Grammar>(schema_grammar(parse_json(kCounted, "s"), "s"));
    if (kind == "call") {
        ToolGrammarOptions options;
        options.mark_is_token = false;
        options.tools = {{"t", parse_json(R"({"name": "t", "parameters": {"type": "object", "properties": {
            "a": {"type": "string", "maxLength": 30}, "b": {"type": "string", "minLength": 1, "maxLength": 17}}}})",
                                          "t")}};
        return std::make_shared<const Grammar>(tool_call_grammar(options));
    }
    // What follows the run may begin as its copies do, in the same rule or behind its end.
    if (kind == "overlap")
        return std::make_shared<const Grammar>(
            gbnf_grammar("root ::= (few \"ab\" | few [a-m]* \"!\") (\"-\" few)*\n"
                         "few ::= [a-z ]{0,18} | [^\\n<]{0,30} \"</x>\" | (\"a\" | \"an\" | \"n\"){0,20}"));
    if (kind == "schema") return std::make_shared<const Grammar>(schema_grammar(parse_json(kSchema, "s"), "s"));
    if (kind == "any") return std::make_shared<const Grammar>(schema_grammar(Json(true), "s"));
    return std::make_shared<const Grammar>(
        gbnf_grammar("root ::= line+ \"end\"\nline ::= word (\" \" word)* \"\\n\" | \"(\" line \")\" | [^\\n]{0,90} "
                     "\";\"\nword ::= [a-z]+ | "
                     "[A-Z][a-z]*"));
}

/// Every token whose bytes lead on from where the text stands.
std::vector<uint64_t> obvious_mask(const Grammar& grammar, const std::string& text) {
    GrammarMachine machine(std::make_shared<const Grammar>(grammar));
    const auto run = [&machine](int32_t config, const std::string& bytes) {
        for (const char byte : bytes)
            if (config != GrammarMachine::kDead) config = machine.step(config, static_cast<uint8_t>(byte));
        return config;
    };
    const int32_t here = run(machine.start(), text);
    std::vector<uint64_t> mask(demo_trie()->words());
    for (int32_t id = 0; id < demo().vocab_size(); ++id) {
        const std::string& bytes = demo().token_bytes(id);
        if (bytes.empty() || demo().is_added(id) || run(here, bytes) == GrammarMachine::kDead) continue;
        mask[static_cast<size_t>(id) / 64] |= uint64_t{1} << id % 64;
    }
    return mask;
}

void check_walks(const char* name, size_t kept_bytes, bool prepares = false) {
    const auto grammar = grammar_of(name);
    const auto masks = std::make_shared<TokenMasks>(grammar, demo_trie(), kept_bytes);
    if (prepares) masks->prepare();
    std::mt19937 random(3);
    for (int walk = 0; walk < 4; ++walk) {
        GrammarMatcher matcher(masks);
        std::string text;
        for (int n = 0; n < 60 && matcher.goes_on(); ++n) {
            const std::span<const uint64_t> mask = matcher.mask();
            ASSERT_EQ(std::vector<uint64_t>(mask.begin(), mask.end()), obvious_mask(*grammar, text))
                << name << ": " << text;
            std::vector<int32_t> ids;
            for (int32_t id = 0; id < demo().vocab_size(); ++id)
                if ((mask[static_cast<size_t>(id) / 64] >> id % 64 & 1) != 0) ids.push_back(id);
            ASSERT_FALSE(ids.empty()) << text;
            // Short tokens more often: they lead to brackets and ends.
            int32_t id = ids[random() % ids.size()];
            for (int i = 0; i < 3; ++i) {
                const int32_t other = ids[random() % ids.size()];
                if (demo().token_bytes(other).size() < demo().token_bytes(id).size()) id = other;
            }
            GrammarMatcher copy = matcher;
            ASSERT_TRUE(copy.accept(id));
            matcher = copy;
            text += demo().token_bytes(id);
        }
    }
}

TEST(TokenMasks, AreThoseOfTheObviousWay) {
    for (const char* name : {"schema", "any", "gbnf", "counted", "call", "overlap"})
        check_walks(name, TokenMasks::kKeptBytes);
}

TEST(TokenMasks, AreTheSameWhenTheyWerePrepared) {
    for (const char* name : {"schema", "counted"}) check_walks(name, TokenMasks::kKeptBytes, true);
}

TEST(TokenMasks, AreTheSameWhenEverythingIsForgottenAllTheTime) {
    for (const char* name : {"schema", "counted"}) check_walks(name, 1);
}

TEST(TokenMasks, MatchersGoBack) {
    const auto masks = std::make_shared<TokenMasks>(grammar_of("any"), demo_trie());
    GrammarMatcher matcher(masks);
    const auto ids = demo().encode("{\"a\": [1, 2, {\"b\": null}]}");
    std::vector<std::vector<uint64_t>> seen;
    for (const int32_t id : ids) {
        const auto mask = matcher.mask();
        seen.emplace_back(mask.begin(), mask.end());
        ASSERT_TRUE(matcher.accept(id));
    }
    EXPECT_TRUE(matcher.is_complete());
    EXPECT_FALSE(matcher.goes_on());
    for (size_t back = ids.size(); back-- > 0;) {
        matcher.roll_back(1);
        const auto mask = matcher.mask();
        EXPECT_EQ(std::vector<uint64_t>(mask.begin(), mask.end()), seen[back]);
    }
    EXPECT_FALSE(matcher.accept(*demo().eos_id())) << "no added token is text";
}

TEST(TokenMasks, NamedTokensComeAsThemselves) {
    GrammarBuilder builder;
    const int32_t root = builder.rule("root", builder.sequence({builder.repeat(builder.chars(CharSet::all()), 0),
                                                                builder.token("</think>"), builder.literal("x")}));
    const auto masks = std::make_shared<TokenMasks>(std::make_shared<const Grammar>(builder.build(root)), demo_trie());
    GrammarMatcher matcher(masks);
    const int32_t mark = *demo().token_id("</think>");
    const auto allows = [&matcher](int32_t id) {
        return (matcher.mask()[static_cast<size_t>(id) / 64] >> id % 64 & 1) != 0;
    };
    EXPECT_TRUE(allows(mark));
    EXPECT_FALSE(allows(*demo().token_id("<think>")));
    ASSERT_TRUE(matcher.accept(mark));
    EXPECT_FALSE(allows(mark));
    EXPECT_TRUE(allows(*demo().token_id("x")));

    GrammarBuilder other;
    const int32_t missing = other.rule("root", other.token("<no such token>"));
    EXPECT_THROW(TokenMasks(std::make_shared<const Grammar>(other.build(missing)), demo_trie()), Error);
}

}  // namespace
}  // namespace thermocline::text
