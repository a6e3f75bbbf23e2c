// UTF-8 and the character classes of the pre-tokenizer regexes (Unicode 16.0, scripts/make_unicode_tables.py).
// Pure functions, any thread. Ill-formed UTF-8 is never refused here: each maximal ill-formed group counts as one
// character (the grouping of Python's errors="replace" and of the Unicode standard, section 3.9).
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace thermocline::text {

/// Bits of a class byte. A code point has at most one of the first five (its general category's first letter).
enum CharClass : uint8_t {
    kLetter = 1,
    kMark = 2,
    kNumber = 4,
    kPunctuation = 8,
    kSymbol = 16,
    kSpace = 32,    // Unicode White_Space
    kNewline = 64,  // CR and LF; they have kSpace too
    kCjk = 128,     // U+4E00..9FA5, U+3040..30FF: the ranges that the second split names
};

/// Class byte of every code point, indexed by code point: [0x110000].
const uint8_t* char_class_table();

struct Utf8Char {
    enum Status : uint8_t { kValid, kInvalid, kTruncated };  // truncated: well-formed so far, but the text ends
    char32_t code_point;                                     // 0 unless valid
    uint8_t length;                                          // bytes it takes, 1..4
    Status status;
};

/// The character at `pos` (pos < text.size()).
Utf8Char decode_utf8(std::string_view text, size_t pos);

/// Appends `bytes` to `out` with U+FFFD for each ill-formed group. Stops before a truncated character at the end and
/// returns how many bytes were taken: all, or all but the last 1 to 3.
size_t append_utf8(std::string_view bytes, std::string& out);

/// `bytes` as valid UTF-8, a truncated end replaced too.
std::string to_valid_utf8(std::string_view bytes);

/// Appends the UTF-8 form of a code point below 0x110000.
void append_code_point(char32_t code_point, std::string& out);

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

}  // namespace thermocline::text
