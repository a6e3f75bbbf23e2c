#include "src/text/tool_grammar.h"

#include "src/base/error.h"
#include "src/text/prompt_deepseek_v4.h"
#include "src/text/schema_grammar.h"

#include <algorithm>
#include <deque>
#include <optional>
#include <utility>

namespace thermocline::text {

namespace {

using Expr = GrammarBuilder::Expr;

constexpr std::string_view kMark = kMarkupToken;
const std::u32string kMarkCharacters = U"｜DSML｜";
const CharSet kFirst = {{kMarkCharacters[0], kMarkCharacters[0]}};

class ToolGrammar {
public:
    explicit ToolGrammar(const ToolGrammarOptions& options)
        : options_(options), markup_(tool_markup(options.revision)), json_(builder_, kFirst) {
        raw_.spell = [this](const CharSet& set) { return builder_.chars(set - kFirst); };
        raw_.any = text_without_mark();
        raw_.excluded = std::string(kMark);
    }

    Grammar build() {
        std::vector<Expr> calls;
        for (const Tool& tool : options_.tools)
            calls.push_back(with_context("tool " + printable(tool.name, 60), [&] { return call(tool); }));
        const Expr any_call = builder_.choice(std::move(calls));
        const Expr open = options_.behind_mark ? builder_.literal(behind_mark(markup_.block) + ">\n")
                                               : markup("\n\n<" + markup_.block + ">\n");
        const int64_t most = options_.parallel ? GrammarBuilder::kUnlimited : 1;
        const Expr block =
            builder_.sequence({open, builder_.repeat(any_call, 1, most), markup("</" + markup_.block + ">")});
        const int32_t root = builder_.rule("root", block);
        for (SchemaGrammar& schema : schemas_) schema.finish();
        return builder_.build(root);
    }

private:
    static std::string behind_mark(const std::string& tag) { return tag.substr(tag.find(kMark) + kMark.size()); }

    /// Literal text in which the mark is the token.
    Expr markup(const std::string& text) {
        std::vector<Expr> parts;
        size_t begin = 0;
        for (size_t at; options_.mark_is_token && (at = text.find(kMark, begin)) != std::string::npos;) {
            parts.push_back(builder_.literal(text.substr(begin, at - begin)));
            parts.push_back(builder_.token(std::string(kMark)));
            begin = at + kMark.size();
        }
        parts.push_back(builder_.literal(text.substr(begin)));
        return builder_.sequence(std::move(parts));
    }

    /// Any text without the mark: rule k stands behind k of its characters.
    Expr text_without_mark() {
        const auto length = kMarkCharacters.size();
        std::vector<int32_t> rules;
        for (size_t k = 0; k < length; ++k) rules.push_back(builder_.new_rule("text"));
        for (size_t k = 0; k < length; ++k) {
            const CharSet next = {{kMarkCharacters[k], kMarkCharacters[k]}};
            const CharSet first = kFirst - next;
            std::vector<Expr> ways = {builder_.nothing()};
            const auto go = [&](const CharSet& set, size_t to) {
                if (!set.empty()) ways.push_back(builder_.sequence({builder_.chars(set), builder_.call(rules[to])}));
            };
            if (k + 1 < length) go(next, k + 1);
            go(first, 1);
            go(CharSet::all() - (next | first), 0);
            builder_.define(rules[k], builder_.choice(std::move(ways)));
        }
        return builder_.call(rules[0]);
    }

    Expr call(const Tool& tool) {
        const Expr open = markup("<" + markup_.invoke + " name=\"" + tool.name + "\">\n");
        const Expr close = markup("</" + markup_.invoke + ">\n");
        const bool is_free = options_.only_strict && !is_strict(tool);
        const Expr inside = is_free ? free_parameters() : parameters(tool);
        return builder_.sequence({open, inside, close});
    }

    /// An empty line where there is none, as the prompts have it, or nothing.
    Expr parameter_lines(std::vector<GrammarBuilder::Member> members, Expr extra) {
        const bool may_be_empty =
            std::none_of(members.begin(), members.end(), [](const auto& member) { return member.required; });
        const Expr lines = builder_.members(std::move(members), builder_.nothing(), extra);
        return may_be_empty ? builder_.choice({lines, builder_.literal("\n")}) : lines;
    }

    Expr line(Expr name, const char* is_string, Expr value) {
        return builder_.sequence({markup("<" + markup_.parameter + " name=\""), name,
                                  builder_.literal(std::string("\" string=\"") + is_string + "\">"), value,
                                  markup("</" + markup_.parameter + ">"), builder_.literal("\n")});
    }

    Expr any_name() {
        const CharSet letters = {{U'a', U'z'}, {U'A', U'Z'}, {U'0', U'9'}, {U'_', U'_'}, {U'-', U'.'}, {U'$', U'$'}};
        return builder_.repeat(builder_.chars(letters), 1, 64);
    }

    Expr parameter(Expr name, const SchemaGrammar::Forms& forms) {
        std::vector<Expr> ways;
        if (!forms.raw.empty()) ways.push_back(line(name, "true", builder_.choice(forms.raw)));
        if (!forms.json.empty()) ways.push_back(line(name, "false", builder_.choice(forms.json)));
        return builder_.call(builder_.rule("parameter", builder_.choice(std::move(ways))));
    }

    /// Members of any name and value.
    Expr free_parameters() {
        SchemaGrammar::Forms any;
        any.raw = {raw_.any};
        any.json = {
            json_.object(),          json_.array(), json_.number(), builder_.literal("true"), builder_.literal("false"),
            builder_.literal("null")};
        return parameter_lines({}, parameter(any_name(), any));
    }

    Expr parameters(const Tool& tool) {
        static const Json kNoParameters = {
            {"type", "object"}, {"properties", Json::object()}, {"additionalProperties", false}};
        const auto found = tool.function.find("parameters");
        const bool has_schema = found != tool.function.end() && !found->is_null();
        const Json& schema = has_schema ? *found : kNoParameters;
        schemas_.emplace_back(builder_, json_, schema, "parameters");
        SchemaGrammar& grammar = schemas_.back();
        std::vector<Expr> ways;
        for (const Json& alternative : grammar.document().alternatives(schema)) {
            const std::vector<std::string> types = grammar.document().types(alternative);
            const bool may_be_object = types.empty() || std::find(types.begin(), types.end(), "object") != types.end();
            if (!may_be_object) continue;
            for (const char* key : {"enum", "const", "propertyNames"})
                if (alternative.contains(key)) grammar.document().refuse(key, "is not supported for arguments");
            ways.push_back(object_parameters(alternative, grammar));
        }
        return builder_.choice(std::move(ways));
    }

    Expr object_parameters(const Json& schema, SchemaGrammar& grammar) {
        static const Json kNone = Json::object();
        const Json& properties = schema.contains("properties") ? schema["properties"] : kNone;
        std::vector<std::string> required, names;
        if (schema.contains("required")) required = schema["required"].get<std::vector<std::string>>();
        const Json rest = schema.contains("additionalProperties") ? schema["additionalProperties"] : Json(true);
        const bool has_extra = rest != false && properties.empty() && required.empty() &&
                               (schema.contains("additionalProperties") || !schema.contains("properties"));
        std::vector<GrammarBuilder::Member> members;
        const auto add = [&](const std::string& name, const Json& of, bool is_required) {
            names.push_back(name);
            if (name.find_first_of("\"\n") != std::string::npos || name.find(kMark) != std::string::npos)
                grammar.document().refuse("properties",
                                          "has the name " + printable(name, 40) + ", which tool calls cannot hold");
            const auto forms = grammar.forms(of, raw_);
            members.push_back({parameter(builder_.literal(name), forms), is_required});
        };
        for (const auto& [name, of] : properties.items())
            add(name, of, std::find(required.begin(), required.end(), name) != required.end());
        for (const std::string& name : required)
            if (std::find(names.begin(), names.end(), name) == names.end()) add(name, rest, true);
        return parameter_lines(std::move(members), has_extra ? parameter(any_name(), grammar.forms(rest, raw_)) : -1);
    }

    const ToolGrammarOptions& options_;
    const ToolMarkup& markup_;
    GrammarBuilder builder_;
    JsonGrammar json_;
    RawText raw_;
    std::deque<SchemaGrammar> schemas_;  // they refer to each other's parts: must not move
};

}  // namespace

bool is_strict(const Tool& tool) {
    const auto strict = tool.function.find("strict");
    return strict != tool.function.end() && *strict == true;
}

Grammar tool_call_grammar(const ToolGrammarOptions& options) { return ToolGrammar(options).build(); }

}  // namespace thermocline::text
