#include "src/server/structured.h"

#include "src/engine/grammar_constraint.h"
#include "src/server/errors.h"
#include "src/text/gbnf_grammar.h"
#include "src/text/prompt_deepseek_v4.h"
#include "src/text/schema_grammar.h"
#include "src/text/tool_grammar.h"

#include <algorithm>

namespace thermocline::server {
namespace {

constexpr size_t kMaxSchemaBytes = 1 << 20;
constexpr size_t kMaxChoices = 1000;
constexpr size_t kMostKept = 16;  // grammars

using Kind = AnswerRule::Kind;

void check_size(const std::string& text, const std::string& field) {
    if (text.size() > kMaxSchemaBytes)
        throw RequestError(400, field + " has " + std::to_string(text.size()) + " bytes, expected at most 1 MiB",
                           field);
}

AnswerRule schema_rule(std::string field, const Json& schema) {
    AnswerRule rule{Kind::kSchema, std::move(field), schema, "", {}};
    if (schema.is_string()) {
        const auto& text = schema.get_ref<const std::string&>();
        check_size(text, rule.field);
        rule.schema = parse_client_json(text, rule.field);
    }
    if (!rule.schema.is_object() && !rule.schema.is_boolean())
        throw RequestError(400, rule.field + " is " + printable(dump_json(schema), 40) + ", expected a JSON schema",
                           rule.field);
    return rule;
}

AnswerRule text_rule(Kind kind, const std::string& field, const Json& value) {
    if (!value.is_string())
        throw RequestError(400, field + " is " + printable(dump_json(value), 40) + ", expected a string", field);
    return {kind, field, Json(), value.get<std::string>(), {}};
}

AnswerRule choice_rule(const std::string& field, const Json& value) {
    AnswerRule rule{Kind::kChoice, field, Json(), "", {}};
    const bool fits = value.is_array() && !value.empty() && value.size() <= kMaxChoices;
    if (fits)
        for (const Json& item : value)
            if (item.is_string() && !item.get_ref<const std::string&>().empty()) rule.choices.push_back(item);
    if (!fits || rule.choices.size() != value.size())
        throw RequestError(
            400,
            field + " is " + printable(dump_json(value), 40) + ", expected a list of 1 to 1000 strings, none empty",
            field);
    return rule;
}

std::optional<AnswerRule> response_format(const Fields& fields) {
    const std::string field = "response_format";
    const Json* format = fields.find(field);
    if (format == nullptr) return std::nullopt;
    if (!format->is_object()) fields.refuse(field, "an object");
    const Fields inner(*format, field + ".");
    const auto type = inner.string("type");
    if (type == "text") return std::nullopt;
    const Json* schema = inner.find("schema");
    if (type == "json_object" && schema == nullptr) return AnswerRule{Kind::kJsonObject, field, Json(), "", {}};
    if (type == "json_object") return schema_rule(field, *schema);
    if (type != "json_schema") fields.refuse(field, "one with type text, json_object or json_schema");
    if (const Json* wrapper = inner.find("json_schema")) {
        if (!wrapper->is_object()) inner.refuse("json_schema", "an object");
        schema = Fields(*wrapper).find("schema");
    }
    if (schema == nullptr) throw RequestError(400, "response_format.json_schema.schema is missing", field);
    return schema_rule(field, *schema);
}

/// One of vLLM's structured_outputs or guided_*; `word` is what stands behind "guided_".
std::optional<AnswerRule> guided(const std::string& word, const std::string& field, const Json& value) {
    if (word == "json") return schema_rule(field, value);
    if (word == "regex") return text_rule(Kind::kRegex, field, value);
    if (word == "choice") return choice_rule(field, value);
    if (word == "grammar") return text_rule(Kind::kGrammar, field, value);
    if (!value.is_boolean()) throw RequestError(400, field + " is no boolean", field);
    if (value == false) return std::nullopt;
    return AnswerRule{Kind::kJsonObject, field, Json(), "", {}};
}

std::vector<AnswerRule> structured_outputs(const Fields& fields) {
    std::vector<AnswerRule> rules;
    const std::string field = "structured_outputs";
    const Json* object = fields.find(field);
    if (object == nullptr) return rules;
    if (!object->is_object()) fields.refuse(field, "an object");
    const Fields inner(*object, field + ".");
    if (inner.has("structural_tag"))
        throw RequestError(501, "structured_outputs.structural_tag is not supported by this server", field);
    for (const char* word : {"json", "regex", "choice", "grammar", "json_object"})
        if (const Json* value = inner.find(word))
            if (auto rule = guided(word, field, *value)) rules.push_back(std::move(*rule));
    if (rules.size() != 1) fields.refuse(field, "exactly one of json, regex, choice, grammar and json_object");
    return rules;
}

text::Grammar choice_grammar(const std::vector<std::string>& choices) {
    text::GrammarBuilder builder;
    std::vector<text::GrammarBuilder::Expr> ways;
    for (const std::string& choice : choices) ways.push_back(builder.literal(choice));
    return builder.build(builder.rule("choice", builder.choice(std::move(ways))));
}

text::Grammar regex_grammar(const std::string& pattern) {
    text::GrammarBuilder builder;
    const text::Speller spell = [&builder](const text::CharSet& set) { return builder.chars(set); };
    return builder.build(
        builder.rule("regex", text::regex_expression(pattern, text::RegexMatch::kWhole, builder, spell)));
}

text::Grammar json_object_grammar() {
    text::GrammarBuilder builder;
    text::JsonGrammar json(builder);
    return builder.build(builder.rule("root", json.object()));
}

}  // namespace

std::optional<AnswerRule> answer_rule(const Fields& fields) {
    std::vector<AnswerRule> rules = structured_outputs(fields);
    if (auto rule = response_format(fields)) rules.push_back(std::move(*rule));
    for (const char* word : {"json", "regex", "choice", "grammar"}) {
        const std::string field = std::string("guided_") + word;
        if (const Json* value = fields.find(field)) rules.push_back(*guided(word, field, *value));
    }
    if (const Json* grammar = fields.find("grammar")) rules.push_back(text_rule(Kind::kGrammar, "grammar", *grammar));
    if (const Json* schema = fields.find("json_schema")) rules.push_back(schema_rule("json_schema", *schema));
    if (rules.empty()) return std::nullopt;
    if (rules.size() > 1)
        throw RequestError(400, rules[0].field + " and " + rules[1].field + " are both given, expected one of them",
                           rules[1].field);
    return std::move(rules[0]);
}

Grammars::Grammars(const text::Tokenizer& tokenizer, int64_t vocab, std::vector<int32_t> eos_ids)
    : tokenizer_(tokenizer),
      vocab_(vocab),
      eos_ids_(std::move(eos_ids)),
      mark_(tokenizer.token_id(text::kMarkupToken)) {}

/// Made when first needed.
std::shared_ptr<const text::TokenTrie> Grammars::trie() {
    const std::lock_guard lock(mutex_);
    if (!trie_) trie_ = std::make_shared<const text::TokenTrie>(tokenizer_, vocab_);
    return trie_;
}

Grammars::Masks Grammars::compiled(const std::string& key, const std::string& field,
                                   const std::function<text::Grammar()>& compile) {
    {
        const std::lock_guard lock(mutex_);
        const auto found =
            std::find_if(recent_.begin(), recent_.end(), [&key](const auto& entry) { return entry.first == key; });
        if (found != recent_.end()) {
            recent_.splice(recent_.begin(), recent_, found);
            return recent_.front().second;
        }
    }
    check_size(key, field);
    Masks masks;
    try {
        masks = std::make_shared<text::TokenMasks>(std::make_shared<const text::Grammar>(compile()), trie());
        masks->prepare();  // here, not on the engine thread, which is the only one from now on
    } catch (const Error& error) {
        throw RequestError(400, field + ": " + error.what(), field);
    }
    const std::lock_guard lock(mutex_);
    recent_.emplace_front(key, masks);
    if (recent_.size() > kMostKept) recent_.pop_back();
    return masks;
}

Grammars::Masks Grammars::of_answer(const AnswerRule& rule) {
    switch (rule.kind) {
        case Kind::kJsonObject:
            return compiled("object", rule.field, json_object_grammar);
        case Kind::kSchema:
            return compiled("schema " + dump_json(rule.schema), rule.field,
                            [&rule] { return text::schema_grammar(rule.schema, "schema"); });
        case Kind::kRegex:
            return compiled("regex " + rule.text, rule.field, [&rule] { return regex_grammar(rule.text); });
        case Kind::kChoice:
            return compiled("choice " + dump_json(rule.choices), rule.field,
                            [&rule] { return choice_grammar(rule.choices); });
        case Kind::kGrammar:
            break;
    }
    return compiled("gbnf " + rule.text, rule.field, [&rule] { return text::gbnf_grammar(rule.text); });
}

Grammars::Masks Grammars::of_calls(const text::ChatOptions& options, bool behind_mark) {
    text::ToolGrammarOptions calls;
    const text::ToolChoice& choice = options.tool_choice;
    calls.revision = options.revision;
    calls.parallel = options.parallel_tool_calls;
    calls.behind_mark = behind_mark;
    calls.only_strict = choice.kind == text::ToolChoice::Kind::kAuto;
    calls.mark_is_token = mark_.has_value();
    std::string key = std::string("calls ") + std::string(text::revision_name(options.revision)) +
                      (calls.parallel ? "p" : "1") + (behind_mark ? "b" : "w") + (calls.only_strict ? "s" : "a");
    for (const text::Tool& tool : options.tools) {
        if (choice.kind == text::ToolChoice::Kind::kNamed && tool.name != choice.name) continue;
        calls.tools.push_back(tool);
        key += " " + dump_json(tool.function);
    }
    return compiled(key, "tools", [&calls] { return text::tool_call_grammar(calls); });
}

ConstraintSource Grammars::source(std::vector<Masks> grammars, std::optional<int32_t> reasoning_end) {
    std::vector<int32_t> barred;  // a tool call would end the reasoning too
    if (mark_) barred.push_back(*mark_);
    return [grammars = std::move(grammars), eos = eos_ids_, reasoning_end, barred] {
        return std::make_shared<engine::GrammarConstraint>(grammars, eos, reasoning_end, barred);
    };
}

ConstraintSource Grammars::for_completion(const std::optional<AnswerRule>& rule) {
    if (!rule) return {};
    return source({of_answer(*rule)}, std::nullopt);
}

ConstraintSource Grammars::for_chat(const std::optional<AnswerRule>& rule, const text::ChatOptions& options,
                                    bool starts_in_reasoning) {
    using Choice = text::ToolChoice::Kind;
    const Choice choice = options.tool_choice.kind;
    const bool forced = choice == Choice::kRequired || choice == Choice::kNamed;
    if (forced && rule)
        throw RequestError(400, rule->field + " is given together with a tool_choice that forces a call", rule->field);
    const bool may_call = choice == Choice::kAuto && !options.tools.empty();
    std::optional<int32_t> reasoning_end;
    if ((forced || rule) && starts_in_reasoning) {
        reasoning_end = tokenizer_.token_id("</think>");
        if (!reasoning_end)
            throw RequestError(501, "the vocabulary has no token </think>: turn thinking off for constrained output");
    }
    if (forced) return source({of_calls(options, false)}, reasoning_end);
    if (rule && may_call) return source({of_answer(*rule), of_calls(options, false)}, reasoning_end);
    if (rule) return source({of_answer(*rule)}, reasoning_end);
    if (!may_call || std::none_of(options.tools.begin(), options.tools.end(), text::is_strict)) return {};
    if (!mark_) throw RequestError(501, "the vocabulary has no token for tool markup: strict tools need it", "tools");
    return [masks = of_calls(options, true), mark = *mark_] {
        return std::make_shared<engine::MarkupConstraint>(masks, mark);
    };
}

}  // namespace thermocline::server
