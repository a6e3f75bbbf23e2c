#include "src/text/unicode.h"

#include <algorithm>
#include <vector>

namespace thermocline::text {

namespace {

struct ClassRange {
    uint32_t first;
    uint32_t last;
    uint8_t char_class;
};

#include "src/text/unicode_tables.inl"

std::vector<uint8_t> expand_classes() {
    std::vector<uint8_t> table(0x110000, 0);
    for (const ClassRange& range : kClassRanges) {
        std::fill(table.begin() + range.first, table.begin() + range.last + 1, range.char_class);
    }
    return table;
}

}  // namespace

const uint8_t* char_class_table() {
    // 1.1 MB, but text touches only the few pages of its scripts; one load per character instead of a search.
    static const std::vector<uint8_t> table = expand_classes();
    return table.data();
}

Utf8Char decode_utf8(std::string_view text, size_t pos) {
    const auto lead = static_cast<uint8_t>(text[pos]);
    if (lead < 0x80) return {lead, 1, Utf8Char::kValid};
    uint8_t length = 0;
    if (lead >= 0xC2 && lead <= 0xDF)
        length = 2;
    else if (lead >= 0xE0 && lead <= 0xEF)
        length = 3;
    else if (lead >= 0xF0 && lead <= 0xF4)
        length = 4;
    else
        return {0, 1, Utf8Char::kInvalid};

    // The second byte's range excludes overlong forms, surrogates and code points beyond 0x10FFFF.
    uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
    uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
    char32_t code_point = lead & (0x7F >> length);
    for (uint8_t i = 1; i < length; ++i) {
        if (pos + i >= text.size()) return {0, i, Utf8Char::kTruncated};
        const auto byte = static_cast<uint8_t>(text[pos + i]);
        if (byte < low || byte > high) return {0, i, Utf8Char::kInvalid};
        code_point = code_point << 6 | (byte & 0x3F);
        low = 0x80;
        high = 0xBF;
    }
    return {code_point, length, Utf8Char::kValid};
}

size_t append_utf8(std::string_view bytes, std::string& out) {
    size_t pos = 0;
    size_t copied = 0;  // [copied, pos) is valid and not yet in `out`
    while (pos < bytes.size()) {
        const Utf8Char c = decode_utf8(bytes, pos);
        if (c.status == Utf8Char::kTruncated) break;
        if (c.status == Utf8Char::kInvalid) {
            out.append(bytes.substr(copied, pos - copied)).append(kReplacementCharacter);
            copied = pos + c.length;
        }
        pos += c.length;
    }
    out.append(bytes.substr(copied, pos - copied));
    return pos;
}

std::string to_valid_utf8(std::string_view bytes) {
    std::string out;
    out.reserve(bytes.size());
    if (append_utf8(bytes, out) < bytes.size()) out.append(kReplacementCharacter);
    return out;
}

void append_code_point(char32_t code_point, std::string& out) {
    if (code_point < 0x80) {
        out += static_cast<char>(code_point);
        return;
    }
    const int tail = code_point < 0x800 ? 1 : code_point < 0x10000 ? 2 : 3;  // continuation bytes
    const int lead_mark = (0xF0 << (3 - tail)) & 0xFF;                       // 110xxxxx, 1110xxxx, 11110xxx
    out += static_cast<char>(lead_mark | static_cast<int>(code_point >> (6 * tail)));
    for (int i = tail - 1; i >= 0; --i) out += static_cast<char>(0x80 | (code_point >> (6 * i) & 0x3F));
}

}  // namespace thermocline::text
