// Tool calls of DeepSeek-V4 as grammars: the markup of prompt-encoding.md section 7 with names that exist and arguments
// that the tools' schemas accept. Pure, any thread; a schema that cannot be compiled is an Error that names tool and
// keyword.
//
// Strings of the arguments stand raw between their tags, everything else as JSON. A raw string never holds the mark of
// the markup, of a string with a pattern or a length not even its first character. Arguments beyond "properties" do not
// come, where there are any.
#pragma once

#include "src/text/chat.h"
#include "src/text/grammar.h"

#include <string>
#include <vector>

namespace thermocline::text {

struct ToolGrammarOptions {
    PromptRevision revision = PromptRevision::kV4;
    std::vector<Tool> tools;  // those that may be called
    bool parallel = true;     // false: one call
    /// The block has begun: its "<" and mark are there.
    bool behind_mark = false;
    /// Tools whose arguments need not satisfy their schemas: all that are not marked strict.
    bool only_strict = false;
    bool mark_is_token = true;  // the vocabulary has the mark as a token
};

/// Stands in every tag of the markup.
inline constexpr const char* kMarkupToken = "｜DSML｜";

/// One block of one or more calls.
Grammar tool_call_grammar(const ToolGrammarOptions& options);

/// The function object says "strict": true.
bool is_strict(const Tool& tool);

}  // namespace thermocline::text
