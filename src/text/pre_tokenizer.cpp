#include "src/text/pre_tokenizer.h"

#include "src/text/unicode.h"

#include <algorithm>
#include <array>

namespace thermocline::text {

namespace {

/// As the published tokenizer.json has them, after JSON unescaping: newlines stand in them raw.
constexpr std::array<std::string_view, 3> kDeepSeekV3Regexes = {
    R"(\p{N}{1,3})",
    "[\u4E00-\u9FA5\u3040-\u309F\u30A0-\u30FF]+",
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^)"
    "\r\n"
    R"(\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[)"
    "\r\n"
    R"(]*|\s*[)"
    "\r\n"
    R"(]+|\s+(?!\S)|\s+)",
};

/// llama.cpp names the set by a hash over the ids of a test text, hence three names for one thing.
constexpr std::array<std::string_view, 3> kDeepSeekV3GgufNames = {"deepseek-v3", "joyai-llm", "hunyuan-dense"};

constexpr uint8_t kWord = kLetter | kMark;
constexpr uint8_t kSign = kPunctuation | kSymbol;

/// The regex with its escapes \r and \n as the characters themselves: files write either.
std::string with_raw_newlines(std::string_view regex) {
    std::string out;
    for (size_t i = 0; i < regex.size(); ++i) {
        if (regex[i] != '\\' || i + 1 == regex.size()) {
            out += regex[i];
            continue;
        }
        const char escaped = regex[++i];
        if (escaped == 'r')
            out += '\r';
        else if (escaped == 'n')
            out += '\n';
        else
            out.append({'\\', escaped});
    }
    return out;
}

bool is_ascii_letter(char c) { return (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z'); }

}  // namespace

std::optional<PreTokenizer> pre_tokenizer_by_regexes(std::span<const std::string> regexes) {
    const auto same = [](const std::string& regex, std::string_view known) {
        return with_raw_newlines(regex) == known;
    };
    if (!std::equal(regexes.begin(), regexes.end(), kDeepSeekV3Regexes.begin(), kDeepSeekV3Regexes.end(), same)) {
        return {};
    }
    return PreTokenizer::kDeepSeekV3;
}

std::optional<PreTokenizer> pre_tokenizer_by_gguf_name(std::string_view name) {
    if (std::find(kDeepSeekV3GgufNames.begin(), kDeepSeekV3GgufNames.end(), name) == kDeepSeekV3GgufNames.end()) {
        return {};
    }
    return PreTokenizer::kDeepSeekV3;
}

PieceScanner::PieceScanner(std::string_view text) : text_(text), classes_(char_class_table()) {}

// The first two splits cut the text into segments: up to three numbers, a run of CJK, and what lies between. The third
// split sees each segment alone, so for it the segment's end is the end of the text. A segment is never measured
// ahead: `at` reports its end when a character belongs to another kind.
bool PieceScanner::next(std::string_view& piece) {
    if (pos_ >= text_.size()) return false;
    const Utf8Char first = decode_utf8(text_, pos_);
    segment_ = first.status == Utf8Char::kValid ? classes_[first.code_point] & (kNumber | kCjk) : 0;
    const size_t end = segment_ == kNumber ? skip_numbers(pos_) : match(pos_);
    piece = text_.substr(pos_, end - pos_);
    pos_ = end;
    return true;
}

PieceScanner::Char PieceScanner::at(size_t pos) const {
    if (pos >= text_.size()) return {0, 0};
    const auto byte = static_cast<uint8_t>(text_[pos]);
    if (byte < 0x80) return (classes_[byte] & (kNumber | kCjk)) == segment_ ? Char{classes_[byte], 1} : Char{0, 0};
    const Utf8Char c = decode_utf8(text_, pos);
    const uint8_t char_class = c.status == Utf8Char::kValid ? classes_[c.code_point] : 0;
    if ((char_class & (kNumber | kCjk)) != segment_) return {0, 0};
    return {char_class, c.length};
}

size_t PieceScanner::skip(size_t pos, uint8_t classes) const {
    for (Char c = at(pos); c.char_class & classes; c = at(pos)) pos += c.length;
    return pos;
}

/// \p{N}{1,3}; the third split finds nothing inside.
size_t PieceScanner::skip_numbers(size_t pos) const {
    for (int i = 0; i < 3; ++i) pos += at(pos).length;
    return pos;
}

/// The end of the piece that the third split makes at `start`: its alternatives in order, then the gap between matches.
size_t PieceScanner::match(size_t start) const {
    const Char first = at(start);
    const size_t second = start + first.length;

    // One ASCII sign and ASCII letters. (A letter past the segment's end is impossible: ASCII letters are in no other.)
    if (first.length == 1 && (first.char_class & kSign) && second < text_.size() && is_ascii_letter(text_[second])) {
        size_t end = second;
        while (end < text_.size() && is_ascii_letter(text_[end])) ++end;
        return end;
    }
    // [^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+
    if (first.char_class & kWord) return skip(second, kWord);
    if (!(first.char_class & (kSign | kNewline)) && (at(second).char_class & kWord)) return skip(second, kWord);
    //  ?[\p{P}\p{S}]+[\r\n]*
    const size_t sign = text_[start] == ' ' ? second : start;
    if (at(sign).char_class & kSign) return skip(skip(sign, kSign), kNewline);
    if (first.char_class & kSpace) return match_space(start);
    return match_gap(start);
}

/// \s*[\r\n]+ , else \s+(?!\S) , else \s+ : the last space before a word is left to the word.
size_t PieceScanner::match_space(size_t start) const {
    size_t end = start;
    size_t last = start;
    size_t after_newline = start;
    Char c = at(end);
    for (; c.char_class & kSpace; c = at(end)) {
        last = end;
        end += c.length;
        if (c.char_class & kNewline) after_newline = end;
    }
    if (after_newline > start) return after_newline;
    const bool at_segment_end = c.length == 0;
    return at_segment_end || last == start ? end : last;
}

/// Characters that no alternative takes; the last one goes to a word that follows it.
size_t PieceScanner::match_gap(size_t start) const {
    constexpr uint8_t kMatchable = kWord | kSign | kSpace;
    size_t last = start;
    size_t end = start;
    Char c = at(end);
    for (; c.length > 0 && !(c.char_class & kMatchable); c = at(end)) {
        last = end;
        end += c.length;
    }
    const bool word_follows = c.char_class & kWord;
    return word_follows ? last : end;
}

}  // namespace thermocline::text
