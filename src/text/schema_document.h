// A JSON schema as a document: its references, and schemas made one where several must hold (allOf, keywords beside
// $ref, anyOf or oneOf). Pure but for a count of the work done; one thread. Errors name the keyword.
#pragma once

#include "src/base/json.h"

#include <string>
#include <vector>

namespace thermocline::text {

class SchemaDocument {
public:
    /// The document must outlive this object. `name` begins the messages.
    SchemaDocument(const Json& root, std::string name);

    const Json& root() const { return root_; }
    /// What a local reference (#, #/$defs/x) points to.
    const Json& target(const std::string& reference) const;
    /// Checks that every keyword is known; what only annotates is left out.
    Json meaningful(const Json& schema);
    /// The schema with what its $ref, allOf, anyOf and oneOf say drawn in: one or more schemas without these keywords,
    /// of which one must hold. Exactly one holds for whatever the grammar of one of them writes.
    std::vector<Json> alternatives(const Json& schema);
    /// The types that a schema allows, from "type" or from the keywords that speak about one type only.
    std::vector<std::string> types(const Json& schema) const;

    [[noreturn]] void refuse(const std::string& keyword, const std::string& complaint) const;

private:
    Json merged(const Json& a, const Json& b);
    Json plain(const Json& schema);
    void merge_keyword(Json& into, const std::string& key, const Json& value);
    Json merged_objects(Json a, Json b);
    void check_exclusive(const std::vector<Json>& branches);
    bool are_apart(const Json& a, const Json& b);
    bool never_written_as(const Json& a, const Json& b);
    bool share_value(const std::vector<Json>& some, const std::vector<Json>& others);
    void count_work(const Json& read);

    const Json& root_;
    std::string name_;
    int64_t work_ = 0;  // values that were copied
    int depth_ = 0;
};

}  // namespace thermocline::text
