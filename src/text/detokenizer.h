// Token ids to text while they are being generated: never emits half a character. One Detokenizer per sequence, used
// by one thread; the Tokenizer must outlive it.
#pragma once

#include "src/text/tokenizer.h"

#include <cstdint>
#include <string>

namespace thermocline::text {

class Detokenizer {
public:
    explicit Detokenizer(const Tokenizer& tokenizer, bool skip_special = false)
        : tokenizer_(tokenizer), skip_special_(skip_special) {}

    /// The text that this token completes: valid UTF-8, U+FFFD for each ill-formed group; may be empty. At most 3 bytes
    /// of an unfinished character are held back. An id without a token adds nothing.
    std::string push(int32_t id);

    /// Ends the sequence: U+FFFD for a held-back unfinished character, else empty. The object is then as new.
    std::string flush();

    /// Bytes held back (0 to 3): all text so far is out when it is 0.
    size_t held_bytes() const { return held_.size(); }

private:
    const Tokenizer& tokenizer_;
    bool skip_special_;
    std::string held_;  // a truncated character
};

}  // namespace thermocline::text
