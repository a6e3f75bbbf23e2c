#include "src/text/regex_grammar.h"

#include "src/base/error.h"
#include "src/text/pattern_reader.h"

#include <vector>

namespace thermocline::text {

namespace {

using Expr = GrammarBuilder::Expr;

constexpr int kMaxDepth = 100;
constexpr size_t kMostBytes = 1 << 16;

/// Characters whose general category is one of the bits.
CharSet with_class(uint8_t bits) {
    std::vector<CharSet::Range> ranges;
    const uint8_t* table = char_class_table();
    for (char32_t c = 0; c <= 0x10FFFF; ++c) {
        if ((table[c] & bits) == 0) continue;
        const char32_t first = c;
        while (c < 0x10FFFF && (table[c + 1] & bits) != 0) ++c;
        ranges.emplace_back(first, c);
    }
    return CharSet(std::move(ranges));
}

const CharSet& digits() {
    static const CharSet set = {{U'0', U'9'}};
    return set;
}

const CharSet& word() {
    static const CharSet set = {{U'0', U'9'}, {U'A', U'Z'}, {U'a', U'z'}, {U'_', U'_'}};
    return set;
}

/// ECMAScript's white space and line ends.
const CharSet& space() {
    static const CharSet set = {{9, 13},          {32, 32},         {0xA0, 0xA0},     {0x1680, 0x1680},
                                {0x2000, 0x200A}, {0x2028, 0x2029}, {0x202F, 0x202F}, {0x205F, 0x205F},
                                {0x3000, 0x3000}, {0xFEFF, 0xFEFF}};
    return set;
}

class RegexReader {
public:
    RegexReader(std::string_view pattern, GrammarBuilder& builder, const Speller& spell)
        : in_(pattern, "pattern \"" + printable(pattern, 60) + "\""), builder_(builder), spell_(spell) {}

    Expr whole(RegexMatch match) {
        std::vector<Expr> alternatives;
        do alternatives.push_back(outer_alternative(match));
        while (in_.take(U'|'));
        if (!in_.at_end()) in_.refuse("has a ) without (");
        return builder_.choice(std::move(alternatives));
    }

private:
    Expr outer_alternative(RegexMatch match) {
        const Expr anything = builder_.repeat(spell_(CharSet::all()), 0);
        const bool from_start = in_.take(U'^');
        std::vector<Expr> parts = {sequence(0)};
        const bool to_end = in_.take(U'$');
        if (match == RegexMatch::kSearch && !from_start) parts.insert(parts.begin(), anything);
        if (match == RegexMatch::kSearch && !to_end) parts.push_back(anything);
        return builder_.sequence(std::move(parts));
    }

    Expr sequence(int depth) {
        std::vector<Expr> parts;
        while (!in_.at_end() && in_.peek() != U'|' && in_.peek() != U')') {
            if (in_.peek() == U'$' && depth == 0 && (in_.peek(1) == U'|' || in_.peek(1) == U'\0')) break;
            parts.push_back(quantified(atom(depth)));
        }
        return builder_.sequence(std::move(parts));
    }

    Expr group(int depth) {
        if (depth >= kMaxDepth) in_.refuse("is nested deeper than 100 groups");
        if (in_.take(U'?')) {
            in_.take(U'P');
            if (in_.take(U'<') && in_.peek() != U'=' && in_.peek() != U'!') {
                while (in_.next() != U'>') {
                }
            } else if (!in_.take(U':')) {
                in_.refuse("has look-around or flags, which are not regular or not supported");
            }
        }
        std::vector<Expr> alternatives;
        do alternatives.push_back(sequence(depth + 1));
        while (in_.take(U'|'));
        if (!in_.take(U')')) in_.refuse("has a ( without )");
        return builder_.choice(std::move(alternatives));
    }

    Expr atom(int depth) {
        const char32_t c = in_.next();
        if (c == U'(') return group(depth);
        if (c == U'[') return spell_(bracket());
        if (c == U'.') return spell_(CharSet::all() - CharSet{{10, 10}, {13, 13}, {0x2028, 0x2029}});
        if (c == U'\\') return spell_(escape(false));
        if (c == U'^' || c == U'$') in_.refuse("has an anchor inside, expected ^ and $ at the ends only");
        if (c == U'*' || c == U'+' || c == U'?') in_.refuse("has a quantifier with nothing before it");
        return spell_({{c, c}});
    }

    Expr quantified(Expr part) {
        int64_t least = 1, most = 1;
        if (in_.take(U'*')) {
            least = 0;
            most = GrammarBuilder::kUnlimited;
        } else if (in_.take(U'+')) {
            most = GrammarBuilder::kUnlimited;
        } else if (in_.take(U'?')) {
            least = 0;
        } else if (in_.peek() != U'{' || !counts(least, most)) {
            return part;
        }
        in_.take(U'?');  // lazy: the same texts
        const char32_t c = in_.at_end() ? U'a' : in_.peek();
        if (c == U'*' || c == U'+' || c == U'?') in_.refuse("has two quantifiers in a row");
        return builder_.repeat(part, least, most);
    }

    /// {n}, {n,} or {n,m}; false, and nothing is taken, if it is none: then { is a character.
    bool counts(int64_t& least, int64_t& most) {
        const size_t start = in_.place();
        in_.skip(1);
        const auto low = in_.number();
        std::optional<int64_t> high = low;
        if (low && in_.take(U',')) high = in_.peek() == U'}' ? GrammarBuilder::kUnlimited : in_.number();
        if (!high || !in_.take(U'}')) {
            in_.go_back(start);
            return false;
        }
        if (*high != GrammarBuilder::kUnlimited && *high < *low) in_.refuse("has a repetition {n,m} with n over m");
        least = *low;
        most = *high;
        return true;
    }

    CharSet bracket() {
        const bool negated = in_.take(U'^');
        std::vector<CharSet::Range> ranges;
        while (!in_.take(U']')) {
            const CharSet low = bracket_item();
            const bool is_range = in_.peek() == U'-' && in_.peek(1) != U']' && in_.peek(1) != U'\0';
            if (!is_range) {
                ranges.insert(ranges.end(), low.ranges().begin(), low.ranges().end());
                continue;
            }
            in_.skip(1);
            const CharSet high = bracket_item();
            if (!is_single(low) || !is_single(high)) in_.refuse("has a class as the end of a range");
            const char32_t first = low.ranges()[0].first, last = high.ranges()[0].first;
            if (first > last) in_.refuse("has a range that ends before it begins");
            ranges.emplace_back(first, last);
        }
        const CharSet set(std::move(ranges));
        return negated ? set.complement() : set;
    }

    static bool is_single(const CharSet& set) {
        return set.ranges().size() == 1 && set.ranges()[0].first == set.ranges()[0].second;
    }

    CharSet bracket_item() {
        const char32_t c = in_.next();
        return c == U'\\' ? escape(true) : CharSet{{c, c}};
    }

    CharSet escape(bool in_bracket) {
        const char32_t c = in_.next();
        const auto one = [](char32_t value) { return CharSet{{value, value}}; };
        switch (c) {
            case U'd':
                return digits();
            case U'D':
                return digits().complement();
            case U'w':
                return word();
            case U'W':
                return word().complement();
            case U's':
                return space();
            case U'S':
                return space().complement();
            case U'p':
                return category();
            case U'P':
                return category().complement();
            case U't':
                return one(9);
            case U'n':
                return one(10);
            case U'v':
                return one(11);
            case U'f':
                return one(12);
            case U'r':
                return one(13);
            case U'x':
                return one(in_.hexadecimal(2));
            case U'u':
                return one(unicode_escape());
            default:
                break;
        }
        if (c == U'b' && in_bracket) return one(8);
        if (c == U'0' && !(in_.peek() >= U'0' && in_.peek() <= U'9')) return one(0);
        const bool is_letter = (c >= U'a' && c <= U'z') || (c >= U'A' && c <= U'Z') || (c >= U'0' && c <= U'9');
        if (is_letter) in_.refuse("has the escape \\" + std::string(1, static_cast<char>(c)) + ", not supported");
        return one(c);
    }

    char32_t unicode_escape() {
        if (in_.take(U'{')) {
            char32_t value = 0;
            while (!in_.take(U'}')) {
                value = value * 16 + in_.hexadecimal(1);
                if (value > 0x10FFFF) in_.refuse("has an escape beyond U+10FFFF");
            }
            return value;
        }
        const char32_t first = in_.hexadecimal(4);
        if (first < 0xD800 || first > 0xDBFF || !in_.looking_at(U"\\u")) return first;
        in_.skip(2);
        const char32_t second = in_.hexadecimal(4);
        if (second < 0xDC00 || second > 0xDFFF) in_.refuse("has half a surrogate pair");
        return 0x10000 + ((first - 0xD800) << 10) + (second - 0xDC00);
    }

    CharSet category() {
        if (!in_.take(U'{')) in_.refuse("has \\p without {");
        std::string name;
        for (char32_t c = in_.next(); c != U'}'; c = in_.next()) name += static_cast<char>(c & 0x7F);
        static const std::vector<std::pair<std::vector<std::string>, CharSet>> kClasses = {
            {{"L", "Letter"}, with_class(kLetter)},
            {{"M", "Mark"}, with_class(kMark)},
            {{"N", "Number"}, with_class(kNumber)},
            {{"P", "Punctuation"}, with_class(kPunctuation)},
            {{"S", "Symbol"}, with_class(kSymbol)}};
        for (const auto& [names, set] : kClasses)
            for (const std::string& known : names)
                if (name == known) return set;
        in_.refuse("has \\p{" + printable(name, 20) + "}, expected L, M, N, P or S");
    }

    PatternReader in_;
    GrammarBuilder& builder_;
    const Speller& spell_;
};

}  // namespace

Expr regex_expression(std::string_view pattern, RegexMatch match, GrammarBuilder& builder, const Speller& spell) {
    if (pattern.size() > kMostBytes)
        fail("pattern \"", printable(pattern, 60), "\" has ", pattern.size(), " bytes, expected at most ", kMostBytes);
    return RegexReader(pattern, builder, spell).whole(match);
}

}  // namespace thermocline::text
