// What the readers of regular expressions and of GBNF share: a place in a text of characters, and escapes.
#pragma once

#include "src/base/error.h"
#include "src/text/char_set.h"
#include "src/text/unicode.h"

#include <optional>
#include <string>
#include <string_view>

namespace thermocline::text {

class PatternReader {
public:
    /// Throws Error if the text is not UTF-8. `what` begins the messages.
    PatternReader(std::string_view text, std::string what) : what_(std::move(what)) {
        for (size_t at = 0; at < text.size();) {
            const Utf8Char c = decode_utf8(text, at);
            if (c.status != Utf8Char::kValid) fail(what_, ": not valid UTF-8 at byte ", at);
            text_ += c.code_point;
            at += c.length;
        }
    }

    size_t place() const { return at_; }
    void go_back(size_t place) { at_ = place; }
    bool at_end() const { return at_ >= text_.size(); }
    char32_t peek(size_t ahead = 0) const { return at_ + ahead < text_.size() ? text_[at_ + ahead] : U'\0'; }
    bool looking_at(std::u32string_view text) const { return text_.compare(at_, text.size(), text) == 0; }
    void skip(size_t count) { at_ += count; }
    char32_t next() {
        if (at_end()) refuse("ends too early");
        return text_[at_++];
    }
    bool take(char32_t c) {
        if (at_end() || text_[at_] != c) return false;
        ++at_;
        return true;
    }
    /// A decimal number below a billion.
    std::optional<int64_t> number() {
        int64_t value = 0;
        size_t digits = 0;
        for (; !at_end() && peek() >= U'0' && peek() <= U'9'; ++at_, ++digits) {
            value = value * 10 + static_cast<int64_t>(peek() - U'0');
            if (digits > 8) refuse("has a number over 999999999");
        }
        return digits == 0 ? std::nullopt : std::optional(value);
    }
    /// `count` hexadecimal digits.
    char32_t hexadecimal(int count) {
        char32_t value = 0;
        for (int i = 0; i < count; ++i) {
            const char32_t c = next();
            char32_t digit = 16;
            if (c >= U'0' && c <= U'9') digit = c - U'0';
            if (c >= U'a' && c <= U'f') digit = c - U'a' + 10;
            if (c >= U'A' && c <= U'F') digit = c - U'A' + 10;
            if (digit > 15) refuse("has a bad hexadecimal escape");
            value = value * 16 + digit;
        }
        return value;
    }
    [[noreturn]] void refuse(const std::string& complaint) const {
        fail(what_, ": ", complaint, ", at character ", at_);
    }

private:
    std::u32string text_;
    size_t at_ = 0;
    std::string what_;
};

}  // namespace thermocline::text
