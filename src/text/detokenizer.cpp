#include "src/text/detokenizer.h"

#include "src/text/unicode.h"

namespace thermocline::text {

std::string Detokenizer::push(int32_t id) {
    if (skip_special_ && tokenizer_.is_special(id)) return {};
    held_ += tokenizer_.token_bytes(id);
    std::string text;
    held_.erase(0, append_utf8(held_, text));
    return text;
}

std::string Detokenizer::flush() {
    const std::string text = to_valid_utf8(held_);
    held_.clear();
    return text;
}

}  // namespace thermocline::text
