// The JSON `arguments` text of one tool call, built while the call streams in. Every function returns the next bytes to
// send, so what was sent is always a prefix of the final object. One object per call, one thread.
// Source: prompt-encoding.md section 7 and its rules 5, 6, 13.
#pragma once

#include "src/text/chat.h"

#include <string>
#include <string_view>

namespace thermocline::text {

class CallArguments {
public:
    /// `tool` is the called tool if the request offers one of that name; it must outlive this object.
    explicit CallArguments(const Tool* tool = nullptr);

    /// A parameter of characters: open_string, any number of pieces, close_string.
    std::string open_string(const std::string& key);
    std::string string_piece(std::string_view characters);
    std::string close_string();

    /// A parameter of JSON; what is not JSON is passed on as a string (rule 5).
    std::string json_value(const std::string& key, const std::string& value);

    /// The invoke held one JSON object instead of parameters (rule 13). False, and nothing is taken, if it is none.
    bool whole_object(std::string_view body);

    /// Ends the object. A key written twice stays twice: readers of JSON take the last.
    std::string end();

    int parameters() const { return parameters_; }

private:
    std::string send(std::string text);
    std::string open_parameter(const std::string& key);
    bool wraps_arguments() const;

    const Json* properties_ = nullptr;  // of the tool's schema; null if unknown
    int parameters_ = 0;
    bool may_wrap_ = false;     // rule 6: the first key is one that models put all arguments under; send at the end
    std::string collected_;     // what would have been sent, while may_wrap_
    std::string wrapped_;       // that parameter's value, as written
    std::string whole_object_;  // rule 13
};

}  // namespace thermocline::text
