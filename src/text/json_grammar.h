// JSON values as grammar expressions, and numbers between bounds. Belongs to one GrammarBuilder, which must outlive it.
//
// White space: at most one blank, or one line end with up to 64 blanks or tabs, behind { [ , and in front of } ], at
// most one blank behind a colon: unlimited white space lets weak models loop. Numbers are bounded in length for the
// same reason (16 digits, 15 behind the point, 2 of the exponent). Strings are valid UTF-8 with JSON's escapes, \u
// without lone surrogates.
#pragma once

#include "src/text/char_set.h"
#include "src/text/grammar.h"

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace thermocline::text {

/// A number that JSON can write, as digits.
struct Decimal {
    bool negative = false;
    std::string whole, fraction;  // digits; no zeros in front or at the end; "" is zero
    static constexpr int kMostDigits = 64;

    /// From JSON text such as -12.50e3. Throws Error if it has more than kMostDigits.
    static Decimal parse(std::string_view json);
};

struct NumberBound {
    Decimal value;
    bool open = false;  // the value itself is outside
};

class JsonGrammar {
public:
    using Expr = GrammarBuilder::Expr;

    /// Strings never hold a `barred` character as itself.
    explicit JsonGrammar(GrammarBuilder& builder, const CharSet& barred = {});

    Expr value();
    Expr object();
    Expr array();
    Expr string();
    Expr number();
    Expr integer();
    /// A number within the bounds, where there are any; an integer is written without a fraction.
    Expr number_between(const std::optional<NumberBound>& low, const std::optional<NumberBound>& high, bool integer);

    /// Optional white space between brackets, members and commas.
    Expr gap();
    Expr comma();
    Expr colon();
    /// Members or elements within their brackets; `inside` may be nothing.
    Expr enclosed(const char* open, Expr inside, const char* close);
    Expr quoted(Expr inside);
    /// One character of a string out of `set`, as JSON spells it.
    Expr spelled(const CharSet& set);
    /// Any string that is none of `names`, written without escapes, in quotes.
    Expr key_except(const std::vector<std::string>& names);

private:
    struct Tight {
        bool low, high;  // all digits so far are those of the bound
    };
    struct Bounds {
        const NumberBound *low, *high;  // magnitudes; null: none
        bool integer;
        size_t length;  // digits of the whole part
    };
    Expr rule(std::optional<int32_t>& known, const char* name, Expr (JsonGrammar::*body)());
    Expr string_body();
    Expr value_body();
    Expr object_body();
    Expr array_body();
    Expr number_body();
    Expr integer_body();
    Expr gap_body();
    Expr digits(int64_t least, int64_t most);
    Expr any_escape();
    Expr magnitudes(const NumberBound* low, const NumberBound* high, bool integer);
    Expr whole_digits(const Bounds& bounds, size_t place, Tight tight);
    Expr fraction_digits(const Bounds& bounds, size_t place, Tight tight);
    Expr keys_below(const std::vector<std::u32string>& names, size_t depth);

    GrammarBuilder& builder_;
    CharSet plain_;  // what stands in a string as itself
    std::optional<int32_t> value_, object_, array_, string_, number_, integer_, gap_;
};

}  // namespace thermocline::text
