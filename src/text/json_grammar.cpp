#include "src/text/json_grammar.h"

#include "src/base/error.h"
#include "src/text/unicode.h"

#include <algorithm>
#include <charconv>
#include <map>

namespace thermocline::text {

namespace {

using Expr = GrammarBuilder::Expr;

constexpr int64_t kMostIndent = 64;
constexpr size_t kMostWhole = 16;
constexpr size_t kMostFraction = 15;

std::string without_zeros_in_front(std::string digits) {
    digits.erase(0, std::min(digits.find_first_not_of('0'), digits.size()));
    return digits;
}

/// Digit number `place` of a bound's whole part of `length` digits, or of its fraction.
char digit_at(const std::string& digits, size_t place) { return place < digits.size() ? digits[place] : '0'; }

bool all_zero_from(const std::string& digits, size_t place) {
    return digits.find_first_not_of('0', std::min(place, digits.size())) == std::string::npos;
}

}  // namespace

Decimal Decimal::parse(std::string_view json) {
    Decimal out;
    if (json.starts_with('-')) {
        out.negative = true;
        json.remove_prefix(1);
    }
    int exponent = 0;
    if (const size_t e = json.find_first_of("eE"); e != std::string_view::npos) {
        std::string_view digits = json.substr(e + 1);
        if (digits.starts_with('+')) digits.remove_prefix(1);
        std::from_chars(digits.data(), digits.data() + digits.size(), exponent);
        if (exponent > kMostDigits || exponent < -kMostDigits) fail("number ", json, ", expected fewer digits");
        json = json.substr(0, e);
    }
    const size_t point = std::min(json.find('.'), json.size());
    out.whole = std::string(json.substr(0, point));
    out.fraction = point < json.size() ? std::string(json.substr(point + 1)) : "";
    if (out.whole.size() + out.fraction.size() > kMostDigits) fail("number ", json, ", expected fewer digits");
    for (; exponent > 0; --exponent) {
        out.whole += digit_at(out.fraction, 0);
        if (!out.fraction.empty()) out.fraction.erase(0, 1);
    }
    for (; exponent < 0; ++exponent) {
        out.fraction.insert(0, 1, out.whole.empty() ? '0' : out.whole.back());
        if (!out.whole.empty()) out.whole.pop_back();
    }
    out.whole = without_zeros_in_front(out.whole);
    while (!out.fraction.empty() && out.fraction.back() == '0') out.fraction.pop_back();
    if (out.whole.empty() && out.fraction.empty()) out.negative = false;
    return out;
}

JsonGrammar::JsonGrammar(GrammarBuilder& builder, const CharSet& barred)
    : builder_(builder), plain_(CharSet::all() - (barred | CharSet{{0, 0x1F}, {U'"', U'"'}, {U'\\', U'\\'}})) {}

Expr JsonGrammar::rule(std::optional<int32_t>& known, const char* name, Expr (JsonGrammar::*body)()) {
    if (!known) {
        known = builder_.new_rule(name);  // first: the body may call it
        builder_.define(*known, (this->*body)());
    }
    return builder_.call(*known);
}

Expr JsonGrammar::value() { return rule(value_, "value", &JsonGrammar::value_body); }
Expr JsonGrammar::object() { return rule(object_, "object", &JsonGrammar::object_body); }
Expr JsonGrammar::array() { return rule(array_, "array", &JsonGrammar::array_body); }
Expr JsonGrammar::string() { return rule(string_, "string", &JsonGrammar::string_body); }
Expr JsonGrammar::number() { return rule(number_, "number", &JsonGrammar::number_body); }
Expr JsonGrammar::integer() { return rule(integer_, "integer", &JsonGrammar::integer_body); }
Expr JsonGrammar::gap() { return rule(gap_, "gap", &JsonGrammar::gap_body); }

Expr JsonGrammar::value_body() {
    return builder_.choice({object(), array(), string(), number(), builder_.literal("true"), builder_.literal("false"),
                            builder_.literal("null")});
}

Expr JsonGrammar::object_body() {
    const Expr member = builder_.sequence({string(), colon(), value()});
    return enclosed("{", builder_.members({}, comma(), member), "}");
}

Expr JsonGrammar::array_body() { return enclosed("[", builder_.members({}, comma(), value()), "]"); }

Expr JsonGrammar::string_body() { return quoted(builder_.repeat(spelled(CharSet::all()), 0)); }

Expr JsonGrammar::digits(int64_t least, int64_t most) {
    return builder_.repeat(builder_.chars({{U'0', U'9'}}), least, most);
}

Expr JsonGrammar::integer_body() {
    const Expr long_one = builder_.sequence({builder_.chars({{U'1', U'9'}}), digits(0, kMostWhole - 1)});
    return builder_.sequence(
        {builder_.optional(builder_.literal("-")), builder_.choice({builder_.literal("0"), long_one})});
}

Expr JsonGrammar::number_body() {
    const Expr fraction = builder_.sequence({builder_.literal("."), digits(1, kMostFraction)});
    const Expr exponent = builder_.sequence(
        {builder_.chars(CharSet::of("eE")), builder_.optional(builder_.chars(CharSet::of("+-"))), digits(1, 2)});
    return builder_.sequence({integer(), builder_.optional(fraction), builder_.optional(exponent)});
}

Expr JsonGrammar::gap_body() {
    const Expr indent = builder_.repeat(builder_.chars(CharSet::of(" \t")), 0, kMostIndent);
    return builder_.choice(
        {builder_.nothing(), builder_.literal(" "), builder_.sequence({builder_.literal("\n"), indent})});
}

Expr JsonGrammar::comma() { return builder_.sequence({builder_.literal(","), gap()}); }

Expr JsonGrammar::colon() {
    return builder_.sequence({builder_.literal(":"), builder_.optional(builder_.literal(" "))});
}

Expr JsonGrammar::enclosed(const char* open, Expr inside, const char* close) {
    return builder_.sequence({builder_.literal(open), gap(), inside, gap(), builder_.literal(close)});
}

Expr JsonGrammar::quoted(Expr inside) {
    return builder_.sequence({builder_.literal("\""), inside, builder_.literal("\"")});
}

/// \uXXXX, but for surrogates that do not come in pairs.
Expr JsonGrammar::any_escape() {
    const Expr hex = builder_.chars(CharSet::of("0123456789abcdefABCDEF"));
    const auto set = [this](const char* letters) { return builder_.chars(CharSet::of(letters)); };
    const Expr plain = builder_.sequence({set("0123456789abcefABCEF"), hex, hex, hex});
    const Expr below_surrogates = builder_.sequence({set("dD"), set("01234567"), hex, hex});
    const Expr pair = builder_.sequence(
        {set("dD"), set("89abAB"), hex, hex, builder_.literal("\\u"), set("dD"), set("cdefCDEF"), hex, hex});
    return builder_.sequence({builder_.literal("u"), builder_.choice({plain, below_surrogates, pair})});
}

Expr JsonGrammar::spelled(const CharSet& set) {
    static const std::map<char32_t, char> kShort = {{U'"', '"'},  {U'\\', '\\'}, {U'\b', 'b'}, {U'\f', 'f'},
                                                    {U'\n', 'n'}, {U'\r', 'r'},  {U'\t', 't'}};
    std::string short_ones;
    std::vector<Expr> escapes;
    for (const auto& [c, letter] : kShort)
        if (set.contains(c)) short_ones += letter;
    const bool any = set.ranges() == CharSet::all().ranges();
    if (any) short_ones += '/';
    if (!short_ones.empty()) escapes.push_back(builder_.chars(CharSet::of(short_ones)));
    if (any) escapes.push_back(any_escape());
    for (char32_t c = 0; c < 0x20 && !any; ++c) {
        if (!set.contains(c) || kShort.contains(c)) continue;
        const std::string hex = {c < 16 ? '0' : '1', "0123456789abcdef"[c % 16]};
        escapes.push_back(builder_.literal("u00" + hex));
    }
    const CharSet plain = plain_ - set.complement();
    std::vector<Expr> ways;
    if (!plain.empty()) ways.push_back(builder_.chars(plain));
    if (!escapes.empty()) ways.push_back(builder_.sequence({builder_.literal("\\"), builder_.choice(escapes)}));
    return builder_.choice(std::move(ways));
}

Expr JsonGrammar::key_except(const std::vector<std::string>& names) {
    std::vector<std::u32string> sorted;
    for (const std::string& name : names) {
        std::u32string characters;
        for (size_t at = 0; at < name.size();) {
            const Utf8Char c = decode_utf8(name, at);
            characters += c.code_point;
            at += c.length;
        }
        sorted.push_back(std::move(characters));
    }
    std::sort(sorted.begin(), sorted.end());
    sorted.erase(std::unique(sorted.begin(), sorted.end()), sorted.end());
    return builder_.sequence({builder_.literal("\""), keys_below(sorted, 0), builder_.literal("\"")});
}

/// What may follow `depth` characters that all of the names begin with, so that the whole is none of them. A rule for
/// every step: names may be long.
Expr JsonGrammar::keys_below(const std::vector<std::u32string>& names, size_t depth) {
    std::vector<Expr> ways;
    CharSet other = plain_;
    bool is_name = false;
    for (size_t i = 0; i < names.size();) {
        if (names[i].size() == depth) {
            is_name = true;
            ++i;
            continue;
        }
        const char32_t c = names[i][depth];
        std::vector<std::u32string> below;
        for (; i < names.size() && names[i][depth] == c; ++i) below.push_back(names[i]);
        other = other - CharSet{{c, c}};
        if (!plain_.contains(c) || depth >= 256) continue;  // cannot be written, or is given up: not allowed
        ways.push_back(builder_.sequence({builder_.chars({{c, c}}), keys_below(below, depth + 1)}));
    }
    ways.push_back(builder_.sequence({builder_.chars(other), builder_.repeat(builder_.chars(plain_), 0)}));
    if (!is_name) ways.push_back(builder_.nothing());
    return builder_.choice(std::move(ways));
}

Expr JsonGrammar::number_between(const std::optional<NumberBound>& low, const std::optional<NumberBound>& high,
                                 bool integer) {
    if (!low && !high) return integer ? this->integer() : number();
    std::vector<Expr> ways;
    const auto is_negative = [](const std::optional<NumberBound>& bound) { return bound && bound->value.negative; };
    if (!is_negative(high))
        ways.push_back(magnitudes(low && !is_negative(low) ? &*low : nullptr, high ? &*high : nullptr, integer));
    // Below zero the bounds change places; zero itself is written without a sign.
    if (!low || is_negative(low)) {
        NumberBound from_zero;
        from_zero.open = true;
        const NumberBound* nearest = is_negative(high) ? &*high : &from_zero;
        ways.push_back(builder_.sequence({builder_.literal("-"), magnitudes(nearest, low ? &*low : nullptr, integer)}));
    }
    return builder_.choice(std::move(ways));
}

/// Numbers without a sign, by the number of their digits.
Expr JsonGrammar::magnitudes(const NumberBound* low, const NumberBound* high, bool integer) {
    const auto size = [](const NumberBound* bound) { return std::max<size_t>(1, bound->value.whole.size()); };
    const size_t least = low == nullptr ? 1 : size(low);
    const size_t most = high != nullptr ? size(high) : std::max(kMostWhole, least);
    std::vector<Expr> ways;
    for (size_t length = least; length <= most; ++length) {
        const Tight tight{low != nullptr && length == least, high != nullptr && length == most};
        ways.push_back(whole_digits({low, high, integer, length}, 0, tight));
    }
    return builder_.choice(std::move(ways));
}

Expr JsonGrammar::whole_digits(const Bounds& bounds, size_t place, Tight tight) {
    if (place == bounds.length) return fraction_digits(bounds, 0, tight);
    const auto digit_of = [&](const NumberBound* bound) {
        const std::string& whole = bound->value.whole;
        return whole.empty() ? '0' : whole[place];
    };
    const char least = tight.low ? digit_of(bounds.low) : place == 0 && bounds.length > 1 ? '1' : '0';
    const char most = tight.high ? digit_of(bounds.high) : '9';
    std::vector<Expr> ways;
    const auto add = [&](char first, char last, Tight next) {
        if (first > last) return;
        const CharSet set = {{static_cast<char32_t>(first), static_cast<char32_t>(last)}};
        ways.push_back(builder_.sequence({builder_.chars(set), whole_digits(bounds, place + 1, next)}));
    };
    if (tight.low && tight.high && least == most) {
        add(least, least, tight);
    } else {
        const bool low_apart = tight.low, high_apart = tight.high;
        if (low_apart && least <= most) add(least, least, {true, false});
        add(low_apart ? static_cast<char>(least + 1) : least, high_apart ? static_cast<char>(most - 1) : most,
            {false, false});
        if (high_apart && most >= least) add(most, most, {false, true});
    }
    return builder_.choice(std::move(ways));
}

/// The rest of a number whose first `place` digits behind the point are there.
Expr JsonGrammar::fraction_digits(const Bounds& bounds, size_t place, Tight tight) {
    const std::string none;
    const std::string& low = tight.low ? bounds.low->value.fraction : none;
    const std::string& high = tight.high ? bounds.high->value.fraction : none;
    const bool above = !tight.low || (all_zero_from(low, place) && !bounds.low->open);
    const bool below = !tight.high || !all_zero_from(high, place) || !bounds.high->open;
    std::vector<Expr> ways;
    if (above && below) ways.push_back(builder_.nothing());
    if (!bounds.integer && !tight.low && !tight.high) {
        // Free: any digits.
        const Expr more = digits(place == 0 ? 1 : 0, static_cast<int64_t>(kMostFraction));
        if (place > 0) return more;
        ways.push_back(builder_.sequence({builder_.literal("."), more}));
    } else if (!bounds.integer && place < std::max(low.size(), high.size()) + 4) {
        const char least = tight.low ? digit_at(low, place) : '0';
        const char most = tight.high ? digit_at(high, place) : '9';
        std::vector<Expr> next;
        for (char digit = least; digit <= most; ++digit) {
            const Tight after{tight.low && digit == least, tight.high && digit == most};
            next.push_back(builder_.sequence(
                {builder_.literal(std::string(1, digit)), fraction_digits(bounds, place + 1, after)}));
        }
        const Expr digits_on = builder_.choice(std::move(next));
        ways.push_back(place == 0 ? builder_.sequence({builder_.literal("."), digits_on}) : digits_on);
    }
    return builder_.choice(std::move(ways));
}

}  // namespace thermocline::text
