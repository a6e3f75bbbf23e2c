// Constrained output of the bundled demo model at high temperatures: whatever is drawn to its end is valid.
#include "src/engine/assemble.h"
#include "src/engine/grammar_constraint.h"
#include "src/text/schema_grammar.h"
#include "tests/text/schema_check.h"

#include <future>
#include <gtest/gtest.h>

namespace thermocline::engine {
namespace {

class Answer : public Listener {
public:
    bool on_token(const Token& token) override {
        if (!token.ends) ids.push_back(token.id);
        return true;
    }
    void on_finish(const Result& result) override { finished.set_value(result); }
    std::vector<int32_t> ids;
    std::promise<Result> finished;
};

const char* const kSchemas[] = {
    R"({"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer",
        "minimum": 1, "maximum": 120}, "kind": {"enum": ["a", "b c", null]}}, "required": ["name", "age", "kind"]})",
    R"({"type": "array", "items": {"anyOf": [{"type": "boolean"}, {"type": "number", "minimum": -2.5, "maximum": 7}]},
        "minItems": 2, "maxItems": 4})",
    R"({"type": "object", "properties": {"when": {"type": "string", "format": "date-time"}, "id": {"type": "string",
        "pattern": "^[a-f0-9]{4}(-x)?$"}}, "required": ["when", "id"], "additionalProperties": false})",
    R"({"$ref": "#/$defs/n", "$defs": {"n": {"type": "object", "properties": {"v": {"const": 1}, "kids": {"type": "array",
        "items": {"$ref": "#/$defs/n"}, "maxItems": 1}}, "required": ["v"], "additionalProperties": false}}})",
    R"({"oneOf": [{"type": "object", "properties": {"t": {"const": "x"}}, "required": ["t"]},
        {"type": "object", "properties": {"t": {"const": "y"}, "n": {"type": "null"}}, "required": ["t", "n"]}]})"};

TEST(ConstrainedDemo, WhateverEndsIsValid) {
    EngineOptions options;
    options.model = std::string(THERMOCLINE_SOURCE_DIR) + "/models/demo";
    options.threads = 1;
    options.max_model_len = 512;
    options.max_num_seqs = 4;
    const Assembly assembly = assemble(options);
    const auto trie = std::make_shared<const text::TokenTrie>(*assembly.tokenizer, assembly.engine->vocab());
    int ended = 0;
    for (const char* schema_text : kSchemas) {
        const Json schema = parse_json(schema_text, "schema");
        const auto masks = std::make_shared<text::TokenMasks>(
            std::make_shared<const text::Grammar>(text::schema_grammar(schema, "schema")), trie);
        std::vector<std::shared_ptr<Answer>> answers;
        for (uint64_t seed = 0; seed < 6; ++seed) {
            Request request;
            request.prompt = assembly.tokenizer->encode("Once upon a time there was ");
            request.sampling.temperature = seed % 2 == 0 ? 1.0f : 2.0f;
            request.sampling.seed = seed;
            request.max_tokens = 150;
            request.constraint = std::make_shared<GrammarConstraint>(std::vector{masks}, assembly.engine->eos_ids(),
                                                                     std::nullopt, std::vector<int32_t>());
            answers.push_back(std::make_shared<Answer>());
            ASSERT_NE(assembly.engine->submit(std::move(request), answers.back()), nullptr);
        }
        for (const auto& answer : answers) {
            const Result result = answer->finished.get_future().get();
            ASSERT_NE(result.reason, FinishReason::kError) << result.error;
            if (result.reason != FinishReason::kStop) continue;
            ++ended;
            const std::string text = assembly.tokenizer->decode(answer->ids);
            EXPECT_TRUE(testing::satisfies(parse_json(text, "answer"), schema)) << text << "\n" << schema_text;
        }
    }
    EXPECT_GT(ended, 20) << "most end within their tokens";
}

}  // namespace
}  // namespace thermocline::engine
