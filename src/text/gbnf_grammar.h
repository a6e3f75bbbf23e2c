// GBNF, the grammar notation of llama-server's "grammar" field, as a Grammar. Pure, any thread.
//
// NAME ::= alternatives of "text", [a-z] and [^...], ., names, ( ), * + ? {n} {n,} {n,m}, | ; # begins a comment. The
// rule `root` is the whole text. Escapes: \n \r \t \" \\ \[ \] \- \^ \xHH \uHHHH \UHHHHHHHH. An Error says what is
// wrong, left recursion too.
#pragma once

#include "src/text/grammar.h"

#include <string_view>

namespace thermocline::text {

Grammar gbnf_grammar(std::string_view text);

}  // namespace thermocline::text
