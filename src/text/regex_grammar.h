// Regular expressions as grammar expressions: the part of ECMAScript's syntax that is regular. Pure, any thread.
//
// Understood: characters, escapes (\n \t \r \f \v \0 \xHH \uHHHH \u{H}), . \d \D \w \W \s \S \p{L|M|N|P|S} \P{..},
// [...], groups (captures mean nothing), |, * + ? {n} {n,} {n,m} (lazy ones too), ^ and $ at the ends of the outermost
// alternatives. Refused by an Error that quotes them: back references, look-around, \b, flags, anchors elsewhere.
#pragma once

#include "src/text/char_set.h"
#include "src/text/grammar.h"

#include <functional>
#include <string_view>

namespace thermocline::text {

/// How the characters of a set are written, as an expression for one of them.
using Speller = std::function<GrammarBuilder::Expr(const CharSet&)>;

enum class RegexMatch { kWhole, kSearch };  // kSearch: anything may stand around what is not anchored

GrammarBuilder::Expr regex_expression(std::string_view pattern, RegexMatch match, GrammarBuilder& builder,
                                      const Speller& spell);

}  // namespace thermocline::text
