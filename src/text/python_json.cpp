#include "src/text/python_json.h"

#include "src/base/error.h"

#include <charconv>
#include <cmath>
#include <cstdlib>
#include <unordered_map>

namespace thermocline::text {

namespace {

constexpr int kMaxDepth = 256;

void append_utf8(std::string& out, unsigned code_point) {
    if (code_point < 0x80) {
        out += static_cast<char>(code_point);
    } else if (code_point < 0x800) {
        out += static_cast<char>(0xC0 | (code_point >> 6));
        out += static_cast<char>(0x80 | (code_point & 0x3F));
    } else if (code_point < 0x10000) {
        out += static_cast<char>(0xE0 | (code_point >> 12));
        out += static_cast<char>(0x80 | ((code_point >> 6) & 0x3F));
        out += static_cast<char>(0x80 | (code_point & 0x3F));
    } else {
        out += static_cast<char>(0xF0 | (code_point >> 18));
        out += static_cast<char>(0x80 | ((code_point >> 12) & 0x3F));
        out += static_cast<char>(0x80 | ((code_point >> 6) & 0x3F));
        out += static_cast<char>(0x80 | (code_point & 0x3F));
    }
}

/// repr(float): the shortest digits that read back equal, exponent form from 1e16 up and below 1e-4.
std::string python_float(double value) {
    char buffer[40];
    const auto end = std::to_chars(buffer, buffer + sizeof buffer, value, std::chars_format::scientific).ptr;
    std::string_view spelled(buffer, static_cast<size_t>(end - buffer));
    std::string out;
    if (spelled.front() == '-') {
        out = "-";
        spelled.remove_prefix(1);
    }
    const size_t e = spelled.find('e');
    std::string digits(1, spelled[0]);
    if (e > 2) digits += spelled.substr(2, e - 2);
    const int exponent = std::atoi(std::string(spelled.substr(e + 1)).c_str());
    if (exponent >= 16 || exponent < -4) {
        out += digits[0];
        if (digits.size() > 1) out += "." + digits.substr(1);
        const int magnitude = std::abs(exponent);
        return out + (exponent < 0 ? "e-" : "e+") + (magnitude < 10 ? "0" : "") + std::to_string(magnitude);
    }
    if (exponent < 0) return out + "0." + std::string(static_cast<size_t>(-exponent - 1), '0') + digits;
    const size_t whole = static_cast<size_t>(exponent) + 1;
    if (digits.size() <= whole) return out + digits + std::string(whole - digits.size(), '0') + ".0";
    return out + digits.substr(0, whole) + "." + digits.substr(whole);
}

double parse_double(const std::string& number) {
    double value = 0;
    const auto result = std::from_chars(number.data(), number.data() + number.size(), value);
    // from_chars leaves the value alone when it is out of range; strtod says which side it fell off.
    return result.ec == std::errc() ? value : std::strtod(number.c_str(), nullptr);
}

/// Recursive descent over JSON text that writes Python's spelling as it goes. Every parse_* returns false on bad input.
class Respeller {
public:
    explicit Respeller(std::string_view text) : text_(text) {}

    bool whole_value(std::string& out) { return parse_value(out) && at_end(); }

    bool whole_object(std::vector<JsonMember>& members) {
        skip_space();
        return peek() == '{' && parse_members(members) && at_end();
    }

private:
    char peek() const { return position_ < text_.size() ? text_[position_] : '\0'; }
    bool take(char expected) {
        if (position_ >= text_.size() || text_[position_] != expected) return false;
        ++position_;
        return true;
    }
    bool take_word(std::string_view word) {
        if (text_.substr(position_, word.size()) != word) return false;
        position_ += word.size();
        return true;
    }
    void skip_space() {
        while (position_ < text_.size() && std::string_view(" \t\n\r").find(text_[position_]) != std::string_view::npos)
            ++position_;
    }
    bool at_end() {
        skip_space();
        return position_ == text_.size();
    }

    bool parse_value(std::string& out) {
        skip_space();
        switch (peek()) {
            case '{':
                return parse_object(out);
            case '[':
                return parse_array(out);
            case '"': {
                std::string characters;
                if (!parse_string(characters)) return false;
                out += python_json_string(characters);
                return true;
            }
            case 't':
                out += "true";
                return take_word("true");
            case 'f':
                out += "false";
                return take_word("false");
            case 'n':
                out += "null";
                return take_word("null");
            default:
                return parse_number(out);
        }
    }

    bool parse_object(std::string& out) {
        std::vector<JsonMember> members;
        if (!parse_members(members)) return false;
        out += '{';
        for (size_t i = 0; i < members.size(); ++i) {
            if (i > 0) out += ", ";
            out += python_json_string(members[i].key) + ": ";
            out += members[i].is_string ? python_json_string(members[i].value) : members[i].value;
        }
        out += '}';
        return true;
    }

    bool parse_members(std::vector<JsonMember>& members) {
        if (!take('{') || ++depth_ > kMaxDepth) return false;
        std::unordered_map<std::string, size_t> place;
        skip_space();
        if (!take('}')) {
            do {
                JsonMember member;
                if (!parse_member(member)) return false;
                const auto [seen, is_new] = place.try_emplace(member.key, members.size());
                if (is_new)
                    members.push_back(std::move(member));
                else
                    members[seen->second] = std::move(member);
                skip_space();
            } while (take(','));
            if (!take('}')) return false;
        }
        --depth_;
        return true;
    }

    bool parse_member(JsonMember& member) {
        skip_space();
        if (!parse_string(member.key)) return false;
        skip_space();
        if (!take(':')) return false;
        skip_space();
        member.is_string = peek() == '"';
        return member.is_string ? parse_string(member.value) : parse_value(member.value);
    }

    bool parse_array(std::string& out) {
        if (!take('[') || ++depth_ > kMaxDepth) return false;
        out += '[';
        skip_space();
        if (!take(']')) {
            if (!parse_value(out)) return false;
            for (skip_space(); take(','); skip_space()) {
                out += ", ";
                if (!parse_value(out)) return false;
            }
            if (!take(']')) return false;
        }
        out += ']';
        --depth_;
        return true;
    }

    bool parse_string(std::string& characters) {
        if (!take('"')) return false;
        while (position_ < text_.size()) {
            const char c = text_[position_++];
            if (c == '"') return true;
            if (static_cast<unsigned char>(c) < 0x20) return false;
            if (c != '\\')
                characters += c;
            else if (!parse_escape(characters))
                return false;
        }
        return false;
    }

    bool parse_escape(std::string& characters) {
        if (position_ >= text_.size()) return false;
        const char c = text_[position_++];
        static constexpr std::string_view kLetters = "\"\\/bfnrt";
        static constexpr std::string_view kMeanings = "\"\\/\b\f\n\r\t";
        if (const size_t which = kLetters.find(c); which != std::string_view::npos) {
            characters += kMeanings[which];
            return true;
        }
        unsigned unit = 0;
        if (c != 'u' || !parse_hex4(unit)) return false;
        if (unit >= 0xD800 && unit < 0xDC00 && text_.substr(position_, 2) == "\\u") {
            const size_t before_second = position_;
            position_ += 2;
            unsigned low = 0;
            if (!parse_hex4(low)) return false;
            if (low >= 0xDC00 && low < 0xE000) {
                append_utf8(characters, 0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00));
                return true;
            }
            position_ = before_second;
        }
        const bool lone_surrogate = unit >= 0xD800 && unit < 0xE000;
        append_utf8(characters, lone_surrogate ? 0xFFFD : unit);
        return true;
    }

    bool parse_hex4(unsigned& unit) {
        const std::string_view digits = text_.substr(position_, 4);
        const auto result = std::from_chars(digits.data(), digits.data() + digits.size(), unit, 16);
        if (digits.size() != 4 || result.ec != std::errc() || result.ptr != digits.data() + 4) return false;
        position_ += 4;
        return true;
    }

    bool take_digits() {
        const size_t start = position_;
        while (peek() >= '0' && peek() <= '9') ++position_;
        return position_ > start;
    }

    bool parse_number(std::string& out) {
        const size_t start = position_;
        take('-');
        if (!take('0') && !take_digits()) return false;
        bool is_integer = true;
        if (take('.')) {
            is_integer = false;
            if (!take_digits()) return false;
        }
        if (take('e') || take('E')) {
            is_integer = false;
            if (!take('+')) take('-');
            if (!take_digits()) return false;
        }
        const std::string number(text_.substr(start, position_ - start));
        if (is_integer) {
            out += number == "-0" ? "0" : number;
            return true;
        }
        // Python would go on with Infinity, which nobody can read back as JSON.
        const double value = parse_double(number);
        if (std::isinf(value)) return false;
        out += python_float(value);
        return true;
    }

    std::string_view text_;
    size_t position_ = 0;
    int depth_ = 0;
};

}  // namespace

void append_json_escaped(std::string& out, std::string_view characters) {
    static constexpr char kHex[] = "0123456789abcdef";
    for (const char c : characters) {
        switch (c) {
            case '"':
                out += "\\\"";
                break;
            case '\\':
                out += "\\\\";
                break;
            case '\n':
                out += "\\n";
                break;
            case '\r':
                out += "\\r";
                break;
            case '\t':
                out += "\\t";
                break;
            case '\b':
                out += "\\b";
                break;
            case '\f':
                out += "\\f";
                break;
            default:
                if (static_cast<unsigned char>(c) < 0x20) {
                    out += "\\u00";
                    out += kHex[c >> 4];
                    out += kHex[c & 15];
                } else {
                    out += c;
                }
        }
    }
}

std::string python_json_string(std::string_view characters) {
    std::string out = "\"";
    append_json_escaped(out, characters);
    return out += '"';
}

std::optional<std::string> python_json_text(std::string_view json_text) {
    std::string out;
    if (!Respeller(json_text).whole_value(out)) return std::nullopt;
    return out;
}

std::optional<std::vector<JsonMember>> python_json_members(std::string_view json_text) {
    std::vector<JsonMember> members;
    if (!Respeller(json_text).whole_object(members)) return std::nullopt;
    return members;
}

std::string python_json(const Json& value) {
    const auto respelled = python_json_text(dump_json(value));
    if (!respelled) fail("JSON value nested deeper than ", kMaxDepth);
    return *respelled;
}

}  // namespace thermocline::text
