// JSON schemas as grammars: every text of the grammar is a JSON text that the schema accepts. Not the other way round:
// members come in the order of "properties", no name beyond these comes unless additionalProperties says so, white
// space and numbers are those of json_grammar.h, an integer has no fraction.
//
// Keywords: type (lists too), enum, const, properties, required, additionalProperties, propertyNames (where there are
// no properties), items, prefixItems, minItems, maxItems, minLength, maxLength, pattern (regex_grammar.h), format
// (date, time, date-time, uuid, email, uri, ipv4, ipv6, hostname), minimum, maximum, exclusiveMinimum,
// exclusiveMaximum, anyOf, oneOf (branches that cannot hold together), allOf, local $ref (recursive ones too), true and
// false. What only annotates is ignored; anything else, and a combination that is not worked out (pattern with
// minLength), is an Error that names the keyword. Without "type" the types follow from the other keywords.
#pragma once

#include "src/text/json_grammar.h"
#include "src/text/regex_grammar.h"
#include "src/text/schema_document.h"

#include <map>
#include <string>
#include <utility>
#include <vector>

namespace thermocline::text {

/// How strings are written where they do not stand as JSON.
struct RawText {
    Speller spell;             // a character
    GrammarBuilder::Expr any;  // any text
    std::string excluded;      // characters that no text may hold in a row
};

class SchemaGrammar {
public:
    using Expr = GrammarBuilder::Expr;

    /// All must outlive this object. `name` begins the messages of Errors.
    SchemaGrammar(GrammarBuilder& builder, JsonGrammar& json, const Json& root, std::string name);

    /// The JSON texts of a schema of the document.
    Expr value(const Json& schema);
    /// Those that are strings as raw text, apart from the others as JSON: either may be empty.
    struct Forms {
        std::vector<Expr> raw, json;
    };
    Forms forms(const Json& schema, const RawText& raw);
    /// Defines what value() referred to. Call it before GrammarBuilder::build.
    void finish();

    SchemaDocument& document() { return document_; }

private:
    Expr one(const Json& schema);
    Expr of_type(const std::string& type, const Json& schema);
    std::vector<Json> listed(const Json& schema) const;
    bool has_list(const Json& schema) const { return schema.contains("enum") || schema.contains("const"); }
    Expr object(const Json& schema);
    Expr key(const Json& schema);
    Expr array(const Json& schema);
    Expr characters(const Json& schema, const Speller& spell);
    Expr number(const Json& schema, bool integer);
    std::vector<std::string> types_of(const Json& schema) const;

    GrammarBuilder& builder_;
    JsonGrammar& json_;
    SchemaDocument document_;
    Speller spell_json_;
    /// A rule to be defined later, so that schemas may go round and deep.
    struct Undefined {
        int32_t rule;
        Json schema;
        bool is_plain;  // one of SchemaDocument::alternatives
    };
    Expr call(const std::string& name, const Json& schema, bool is_plain);

    std::map<std::string, int32_t> rules_;  // by reference, or by the text of a plain schema
    std::vector<Undefined> undefined_;
    int depth_ = 0;
};

/// The JSON texts of a schema.
Grammar schema_grammar(const Json& schema, const std::string& name);

}  // namespace thermocline::text
