// The official JSON Schema Test Suite (draft 2020-12), for the keywords that constrained output claims: nothing that it
// calls invalid may come out. The other way round much may stay out (order of members, names beyond "properties"), and
// schemas with keywords that are not supported are refused: both are counted, so that a loss shows.
#include "src/base/error.h"
#include "src/base/file.h"
#include "src/text/python_json.h"
#include "src/text/schema_grammar.h"
#include "tests/text/grammar_text.h"

#include <gtest/gtest.h>
#include <sstream>

namespace thermocline::text {
namespace {

TEST(SchemaSuite, NothingInvalidComesOut) {
    std::istringstream lines(read_text(THERMOCLINE_SOURCE_DIR "/tests/golden/json-schema-test-suite.jsonl", 1 << 20));
    int compiled = 0, refused = 0, invalid = 0, valid = 0, reachable = 0;
    for (std::string line; std::getline(lines, line);) {
        const Json group = parse_json(line, "suite");
        Grammar grammar;
        try {
            grammar = schema_grammar(group["schema"], "schema");
            ++compiled;
        } catch (const Error& error) {
            // A schema that nothing satisfies is compiled, in a way.
            const bool is_void = std::string(error.what()).find("no text satisfies") != std::string::npos;
            for (const Json& test : group["tests"]) EXPECT_FALSE(is_void && test["valid"] == true) << line;
            ++refused;
            continue;
        }
        for (const Json& test : group["tests"]) {
            const bool comes_out = testing::belongs(grammar, python_json(test["data"]));
            if (test["valid"] == false) {
                ++invalid;
                EXPECT_FALSE(comes_out) << group["schema"] << " " << test;
            } else {
                ++valid;
                reachable += comes_out ? 1 : 0;
            }
        }
    }
    std::printf("%d schemas compiled, %d refused; %d invalid instances stay out; %d of %d valid ones can come out\n",
                compiled, refused, invalid, reachable, valid);
    EXPECT_GE(compiled, 132);
    EXPECT_GE(reachable, 188);
}

}  // namespace
}  // namespace thermocline::text
