// Grammars from regular expressions and GBNF; bounds on hostile ones; characters as bytes.
#include "src/text/grammar.h"

#include "src/base/error.h"
#include "src/text/gbnf_grammar.h"
#include "src/text/regex_grammar.h"
#include "src/text/unicode.h"
#include "src/text/utf8_ranges.h"
#include "tests/text/grammar_text.h"

#include <chrono>
#include <gtest/gtest.h>

namespace thermocline::text {
namespace {

using testing::belongs;

Grammar regex(const std::string& pattern, RegexMatch match = RegexMatch::kWhole) {
    GrammarBuilder builder;
    const Speller spell = [&builder](const CharSet& set) { return builder.chars(set); };
    return builder.build(builder.rule("regex", regex_expression(pattern, match, builder, spell)));
}

TEST(CharSet, IsABooleanAlgebraWithoutSurrogates) {
    const CharSet digits = {{U'0', U'9'}};
    EXPECT_FALSE(digits.complement().contains(U'5'));
    EXPECT_TRUE(digits.complement().contains(0x10FFFF));
    EXPECT_FALSE(CharSet::all().contains(0xD800));
    EXPECT_EQ(CharSet::all().complement().ranges().size(), 0u);
    EXPECT_EQ((CharSet::of("ca") | CharSet::of("b")).ranges(), (std::vector<CharSet::Range>{{U'a', U'c'}}));
    EXPECT_EQ((CharSet::of("abc") - CharSet::of("b")).ranges().size(), 2u);
}

TEST(Utf8Ranges, SpellEveryCharacterOnceAndNothingElse) {
    const CharSet set = {{0x30, 0x39}, {0x7F, 0x82}, {0x7FF, 0x1234}, {0xFFFF, 0x10123}, {0x10FFFE, 0x10FFFF}};
    const auto ranges = utf8_ranges(set);
    for (char32_t c = 0; c <= 0x10FFFF; ++c) {
        if (c >= 0xD800 && c < 0xE000) continue;
        std::string bytes;
        append_code_point(c, bytes);
        int ways = 0;
        for (const auto& way : ranges) {
            bool fits = way.size() == bytes.size();
            for (size_t i = 0; fits && i < way.size(); ++i) {
                const auto byte = static_cast<uint8_t>(bytes[i]);
                fits = way[i].low <= byte && byte <= way[i].high;
            }
            ways += fits ? 1 : 0;
        }
        ASSERT_EQ(ways, set.contains(c) ? 1 : 0) << static_cast<uint32_t>(c);
    }
}

TEST(Regex, MatchesWhatItSays) {
    const struct {
        const char* pattern;
        std::vector<const char*> in, out;
    } cases[] = {{"a|bc", {"a", "bc"}, {"", "ab", "abc"}},
                 {"^(foo|ba[rz])+?$", {"foo", "barbaz"}, {"", "ba", "foob"}},
                 {"[^a-c\\d]x{2,3}", {"dxx", "-xxx", "éxx"}, {"axx", "1xx", "dx", "dxxxx"}},
                 {"\\u00e9\\x41\\u{1F600}", {"éA😀"}, {"eA😀"}},
                 {"\\ud83d\\ude00", {"😀"}, {}},
                 {"\\w+@\\w+\\.com", {"a_1@b.com"}, {"a b@c.com", "@b.com"}},
                 {"a.c", {"abc", "a😀c"}, {"a\nc", "ac"}},
                 {"[\\]\\-a]+", {"]-a"}, {"b"}},
                 {"(a*)*b", {"b", "aaab"}, {"a"}},
                 {"x{,3}", {"x{,3}"}, {"x"}},
                 {"(?:a(?<name>b))?", {"", "ab"}, {"a"}},
                 {"\\p{L}\\P{N}", {"éx", "日-"}, {"1x", "é1"}},
                 {"\\s\\S", {"\t!"}, {"!!"}}};
    for (const auto& one : cases) {
        const Grammar grammar = regex(one.pattern);
        for (const char* text : one.in) EXPECT_TRUE(belongs(grammar, text)) << one.pattern << " " << text;
        for (const char* text : one.out) EXPECT_FALSE(belongs(grammar, text)) << one.pattern << " " << text;
    }
    const Grammar search = regex("b|^c|d$", RegexMatch::kSearch);
    for (const char* text : {"abc", "ca", "ad", "b"}) EXPECT_TRUE(belongs(search, text)) << text;
    for (const char* text : {"ac", "da", ""}) EXPECT_FALSE(belongs(search, text)) << text;
}

TEST(Regex, RefusesWhatItCannotKeep) {
    for (const char* pattern : {"(a)\\1", "(?=a)", "(?!a)b", "(?<=a)b", "\\bword",         "a**",
                                "*a",     "(a",    "a)",     "[a",      "[b-a]",           "a{3,2}",
                                "\\",     "\\q",   "(?i)a",  "a^b",     "x{999999999999}", "\\p{Greek}",
                                "\xFF",   "(^a)"})
        EXPECT_THROW(regex(pattern), Error) << pattern;
    EXPECT_THROW(regex(std::string(300, '(') + std::string(300, ')')), Error);
}

TEST(Gbnf, MatchesWhatItSays) {
    const Grammar grammar = gbnf_grammar(R"(# a comment
root  ::= "say " item ("," " "? item)* end   # another
item  ::= [a-z]+ | "\"" [^"\n]* "\"" |
          number{1,2}
number ::= "-"? [0-9]
  end ::= "\n"? | "\x21\u00e9")");
    for (const char* text : {"say a", "say a,b", "say \"x y\", -1-2\n", "say z!é"})
        EXPECT_TRUE(belongs(grammar, text)) << text;
    for (const char* text : {"say ", "say A", "say a,  b", "say 123", "say a!"})
        EXPECT_FALSE(belongs(grammar, text)) << text;
    const Grammar nested = gbnf_grammar("root ::= \"(\" root \")\" root | \"\"");
    EXPECT_TRUE(belongs(nested, "(())()"));
    EXPECT_FALSE(belongs(nested, "(()"));
}

TEST(Gbnf, RefusesWhatIsWrong) {
    for (const char* text : {"", "a ::= \"b\"", "root ::= b", "root := \"a\"", "root ::= (\"a\"", "root ::= \"a",
                             "root ::= [a", "root ::= root \"a\" | \"b\"", "root ::= a\na ::= root? root \"x\" | \"y\"",
                             "root ::= \"a\" root", "root ::= \"a\"{3,2}", "root ::= <think>", "root ::= \"\\q\"",
                             "root ::= [z-a]", "root ::= \"\\ud800\"", "root ::= [a-z]{100000000}"})
        EXPECT_THROW(gbnf_grammar(text), Error) << text;
}

TEST(Grammar, AmbiguityDoesNotExplode) {
    const Grammar twice = gbnf_grammar("root ::= (\"a\" root \"b\")? | (\"a\" root \"c\")? | x\nx ::= \"a\" x | \"a\"");
    std::string text(100, 'a');
    for (int i = 0; i < 100; ++i) text += i % 2 == 0 ? 'b' : 'c';
    const auto start = std::chrono::steady_clock::now();
    EXPECT_TRUE(belongs(twice, text));
    EXPECT_FALSE(belongs(twice, text + "b"));
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
    EXPECT_TRUE(belongs(regex("(a|a)*(a|aa)*b?"), std::string(500, 'a')));
}

}  // namespace
}  // namespace thermocline::text
