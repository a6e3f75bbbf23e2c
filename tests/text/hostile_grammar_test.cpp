// Grammars that want to take all time and memory: each is refused or given up with an Error, or followed in bounded
// time.
#include "src/base/error.h"
#include "src/text/gbnf_grammar.h"
#include "src/text/regex_grammar.h"
#include "src/text/schema_grammar.h"
#include "src/text/token_masks.h"
#include "src/text/tokenizer_json.h"

#include <chrono>
#include <gtest/gtest.h>
#include <random>

namespace thermocline::text {
namespace {

using std::chrono::steady_clock;

/// Generous: the machine of the tests may be busy, and sanitizers slow it down.
constexpr std::chrono::seconds kBound(60);

Grammar regex(const std::string& pattern) {
    GrammarBuilder builder;
    const Speller spell = [&builder](const CharSet& set) { return builder.chars(set); };
    return builder.build(builder.rule("regex", regex_expression(pattern, RegexMatch::kWhole, builder, spell)));
}

std::string repeated(const std::string& text, int count) {
    std::string out;
    for (int i = 0; i < count; ++i) out += text;
    return out;
}

/// Compiles it one way or the other; the time is checked.
template <typename Compile>
void compile_in_time(const std::string& what, Compile compile) {
    const auto start = steady_clock::now();
    try {
        compile();
    } catch (const Error&) {
    }
    EXPECT_LT(steady_clock::now() - start, kBound) << what;
}

TEST(HostileGrammar, CompilesInTimeOrNotAtAll) {
    std::string chain = "root ::= \"x\" r0\n", names, numbers;
    for (int i = 0; i < 60000; ++i) chain += "r" + std::to_string(i) + "::=r" + std::to_string(i + 1) + "\n";
    compile_in_time("a chain of rules", [&] { gbnf_grammar(chain + "r60000 ::= \"a\"?"); });
    compile_in_time("braces", [] { regex(repeated("a{", 32000)); });
    compile_in_time("classes", [] { regex(repeated("\\p{L}", 13000)); });
    compile_in_time("counted classes", [] { regex("(\\p{L}|\\p{N}){4000}"); });
    compile_in_time("counted nothing", [] { regex("((){10000}){10000}"); });
    for (int i = 0; i < 100000; ++i) names += "\"n" + std::to_string(i) + "\",";
    compile_in_time("required", [&] {
        schema_grammar(parse_json(R"({"type": "object", "required": [)" + names + "\"x\"]}", "test"), "test");
    });
    for (int i = 0; i < 20000; ++i) numbers += std::to_string(i) + ".5,";
    compile_in_time("oneOf", [&] {
        schema_grammar(
            parse_json(R"({"oneOf": [{"enum": [)" + numbers + R"(1]}, {"enum": [)" + numbers + "2]}]}", "test"),
            "test");
    });
    EXPECT_THROW(gbnf_grammar("root ::= \"a\"" + std::string(100000, '*')), Error);
    EXPECT_THROW(regex(std::string(70000, 'a')), Error);
}

TEST(HostileGrammar, LongListsAreCheap) {
    std::string list;
    for (int i = 0; i < 50000; ++i) list += "\"value number " + std::to_string(i) + "\", ";
    const Grammar grammar = schema_grammar(parse_json(R"({"enum": [)" + list + "null]}", "test"), "test");
    EXPECT_LT(grammar.accepts.size(), 150000u) << "what begins alike is there once";
    GrammarMachine machine(std::make_shared<const Grammar>(grammar));
    int32_t config = machine.start();
    for (const char c : std::string("\"value number 49999\"")) config = machine.step(config, static_cast<uint8_t>(c));
    ASSERT_NE(config, GrammarMachine::kDead);
    EXPECT_TRUE(machine.is_complete(config));
    EXPECT_FALSE(machine.goes_on(config));
}

TEST(HostileGrammar, IsGivenUpBeforeItTakesAllTime) {
    static const Tokenizer tokenizer(load_tokenizer_json(THERMOCLINE_SOURCE_DIR "/models/demo"));
    const auto trie = std::make_shared<const TokenTrie>(tokenizer, tokenizer.vocab_size());
    for (const char* pattern : {"(((a?){100}){100}){9}", "(.*a.{3000})|b", "(.{1,50}){1,50}", "(a|b|ab|ba){1,3000}c",
                                "((.?){300}(.?){300})*"}) {
        const auto start = steady_clock::now();
        const auto masks = std::make_shared<TokenMasks>(std::make_shared<const Grammar>(regex(pattern)), trie);
        GrammarMatcher matcher(masks);
        std::mt19937 random(3);
        int taken = 0;
        try {
            for (; taken < 200 && matcher.goes_on(); ++taken) {
                const auto mask = matcher.mask();
                std::vector<int32_t> ids;
                for (int32_t id = 0; id < tokenizer.vocab_size(); ++id)
                    if ((mask[static_cast<size_t>(id) / 64] >> id % 64 & 1) != 0) ids.push_back(id);
                ASSERT_FALSE(ids.empty()) << pattern;
                ASSERT_TRUE(matcher.accept(ids[random() % ids.size()])) << pattern;
            }
        } catch (const Error& error) {
            EXPECT_NE(std::string(error.what()).find("takes too long"), std::string::npos) << error.what();
        }
        EXPECT_LT(steady_clock::now() - start, kBound) << pattern;
        std::printf("%s: %d tokens, %.2f s, %.1f MB\n", pattern, taken,
                    std::chrono::duration<double>(steady_clock::now() - start).count(),
                    static_cast<double>(masks->machine().size_bytes()) * 1e-6);
    }
}

/// 2^26 sets of states within one repetition.
TEST(HostileGrammar, ManyWaysThroughOneRepetitionAreFollowed) {
    const auto start = steady_clock::now();
    const Tokenizer tokenizer(load_tokenizer_json(THERMOCLINE_SOURCE_DIR "/models/demo"));
    GrammarMatcher matcher(
        std::make_shared<TokenMasks>(std::make_shared<const Grammar>(regex("([ab]*a[ab]{25}c){0,16}")),
                                     std::make_shared<const TokenTrie>(tokenizer, tokenizer.vocab_size())));
    std::mt19937 random(3);
    for (int taken = 0; taken < 40 && matcher.goes_on(); ++taken) {
        const std::span<const uint64_t> span = matcher.mask();
        const std::vector<uint64_t> mask(span.begin(), span.end());
        std::vector<int32_t> ids;
        for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
            const bool is_allowed = (mask[static_cast<size_t>(id) / 64] >> id % 64 & 1) != 0;
            ASSERT_EQ(GrammarMatcher(matcher).accept(id), is_allowed) << taken << ": " << tokenizer.token_bytes(id);
            if (is_allowed) ids.push_back(id);
        }
        ASSERT_FALSE(ids.empty());
        ASSERT_TRUE(matcher.accept(ids[random() % ids.size()]));
    }
    EXPECT_LT(steady_clock::now() - start, kBound);
}

}  // namespace
}  // namespace thermocline::text
