// Structured output (serving-api.md section 9): the fields of a request that restrict its output, and what is made of
// them: constraints for the engine. Everything that can be wrong with a schema or a grammar is a RequestError 400 here,
// before the request is queued.
#pragma once

#include "src/engine/constraint.h"
#include "src/server/fields.h"
#include "src/text/chat.h"
#include "src/text/tokenizer.h"

#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace thermocline::text {
struct Grammar;
class TokenMasks;
class TokenTrie;
}  // namespace thermocline::text

namespace thermocline::server {

/// What the text of an answer must be.
struct AnswerRule {
    enum class Kind : uint8_t { kJsonObject, kSchema, kRegex, kChoice, kGrammar };
    Kind kind = Kind::kJsonObject;
    std::string field;                 // of the request, for messages
    Json schema;                       // kSchema
    std::string text;                  // kRegex, kGrammar
    std::vector<std::string> choices;  // kChoice
};

/// From response_format, structured_outputs, guided_*, grammar, json_schema: at most one of them.
std::optional<AnswerRule> answer_rule(const Fields& fields);

/// Makes the constraint of one choice.
using ConstraintSource = std::function<std::shared_ptr<engine::TokenConstraint>()>;

/// Compiles grammars for one vocabulary and keeps those that were used last, with what was learnt about their tokens.
/// Any thread.
class Grammars {
public:
    /// The tokenizer must outlive this object and all constraints. `vocab`: rows of the model's output.
    Grammars(const text::Tokenizer& tokenizer, int64_t vocab, std::vector<int32_t> eos_ids);

    /// Empty if the answer is free.
    ConstraintSource for_completion(const std::optional<AnswerRule>& rule);
    /// The same for a chat, whose tool choice and strict tools count too.
    ConstraintSource for_chat(const std::optional<AnswerRule>& rule, const text::ChatOptions& options,
                              bool starts_in_reasoning);

private:
    using Masks = std::shared_ptr<text::TokenMasks>;

    std::shared_ptr<const text::TokenTrie> trie();
    Masks compiled(const std::string& key, const std::string& field, const std::function<text::Grammar()>& compile);
    Masks of_answer(const AnswerRule& rule);
    Masks of_calls(const text::ChatOptions& options, bool behind_mark);
    ConstraintSource source(std::vector<Masks> grammars, std::optional<int32_t> reasoning_end);

    const text::Tokenizer& tokenizer_;
    const int64_t vocab_;
    const std::vector<int32_t> eos_ids_;
    const std::optional<int32_t> mark_;  // of tool markup, where it is a token

    std::mutex mutex_;  // guards what follows
    std::shared_ptr<const text::TokenTrie> trie_;
    std::list<std::pair<std::string, Masks>> recent_;  // last used first
};

}  // namespace thermocline::server
