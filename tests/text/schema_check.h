// Whether a JSON value satisfies a schema: written from the specification alone, for the keywords that constrained
// output claims. Independent of src/text.
#pragma once

#include "src/base/json.h"

namespace thermocline::testing {

bool satisfies(const Json& value, const Json& schema, const Json& root);
inline bool satisfies(const Json& value, const Json& schema) { return satisfies(value, schema, schema); }

}  // namespace thermocline::testing
