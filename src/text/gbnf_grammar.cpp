#include "src/text/gbnf_grammar.h"

#include "src/base/error.h"
#include "src/text/pattern_reader.h"

#include <map>
#include <string>
#include <utility>
#include <vector>

namespace thermocline::text {

namespace {

using Expr = GrammarBuilder::Expr;

constexpr int kMaxDepth = 100;

bool is_name_char(char32_t c) {
    return (c >= U'a' && c <= U'z') || (c >= U'A' && c <= U'Z') || (c >= U'0' && c <= U'9') || c == U'-' || c == U'_';
}

class GbnfReader {
public:
    explicit GbnfReader(std::string_view text) : in_(text, "grammar") {}

    Grammar read() {
        skip_space(true);
        while (!in_.at_end()) {
            const std::string name = this->name();
            skip_space(false);
            if (!in_.looking_at(U"::=")) in_.refuse("has a rule without ::=");
            in_.skip(3);
            skip_space(true);
            builder_.define(rule(name), alternatives(0));
            skip_space(true);
        }
        const auto root = rules_.find("root");
        if (root == rules_.end()) fail("grammar: has no rule root");
        return builder_.build(root->second);
    }

private:
    /// Blanks and comments; line ends too if the text may go on there.
    void skip_space(bool over_lines) {
        while (!in_.at_end()) {
            const char32_t c = in_.peek();
            const bool is_line_end = c == U'\n' || c == U'\r';
            if (c == U'#') {
                while (!in_.at_end() && in_.peek() != U'\n' && in_.peek() != U'\r') in_.skip(1);
            } else if (c == U' ' || c == U'\t' || (is_line_end && over_lines)) {
                in_.skip(1);
            } else {
                return;
            }
        }
    }

    std::string name() {
        std::string name;
        while (!in_.at_end() && is_name_char(in_.peek())) name += static_cast<char>(in_.next());
        if (name.empty()) in_.refuse("expected a name");
        return name;
    }

    int32_t rule(const std::string& name) {
        const auto known = rules_.find(name);
        if (known != rules_.end()) return known->second;
        return rules_[name] = builder_.new_rule(name);
    }

    Expr alternatives(int depth) {
        if (depth > kMaxDepth) in_.refuse("is nested deeper than 100 groups");
        std::vector<Expr> parts = {sequence(depth)};
        while (in_.take(U'|')) {
            skip_space(true);
            parts.push_back(sequence(depth));
        }
        return builder_.choice(std::move(parts));
    }

    Expr sequence(int depth) {
        std::vector<Expr> parts;
        while (!in_.at_end()) {
            const char32_t c = in_.peek();
            if (c == U'|' || c == U')' || c == U'\n' || c == U'\r') break;
            parts.push_back(repeated(item(depth)));
            skip_space(depth > 0);
        }
        return builder_.sequence(std::move(parts));
    }

    Expr item(int depth) {
        if (in_.take(U'"')) return text();
        if (in_.take(U'[')) return builder_.chars(bracket());
        if (in_.take(U'.')) return builder_.chars(CharSet::all());
        if (in_.take(U'(')) {
            skip_space(true);
            const Expr group = alternatives(depth + 1);
            if (!in_.take(U')')) in_.refuse("has a ( without )");
            return group;
        }
        if (!is_name_char(in_.peek())) in_.refuse("expected \"text\", [characters], a name, . or (");
        return builder_.call(rule(name()));
    }

    Expr repeated(Expr part) {
        constexpr int kMostInARow = 8;
        for (int n = 0;; ++n) {
            int64_t least = 0, most = GrammarBuilder::kUnlimited;
            if (in_.take(U'*')) {
            } else if (in_.take(U'+')) {
                least = 1;
            } else if (in_.take(U'?')) {
                most = 1;
            } else if (in_.take(U'{')) {
                const auto low = in_.number();
                const bool has_comma = in_.take(U',');
                const auto high = has_comma ? in_.number() : low;
                if (!low || !in_.take(U'}')) in_.refuse("expected {n}, {n,} or {n,m}");
                least = *low;
                most = high.value_or(GrammarBuilder::kUnlimited);
                if (high && *high < *low) in_.refuse("has a repetition {n,m} with n over m");
            } else {
                return part;
            }
            if (n == kMostInARow) in_.refuse("has more than 8 repetitions in a row");
            part = builder_.repeat(part, least, most);
        }
    }

    Expr text() {
        std::string bytes;
        while (!in_.take(U'"')) append_code_point(character(), bytes);
        return builder_.literal(bytes);
    }

    CharSet bracket() {
        const bool negated = in_.take(U'^');
        std::vector<CharSet::Range> ranges;
        while (!in_.take(U']')) {
            const char32_t first = character();
            char32_t last = first;
            if (in_.peek() == U'-' && in_.peek(1) != U']') {
                in_.skip(1);
                last = character();
            }
            if (last < first) in_.refuse("has a range that ends before it begins");
            ranges.emplace_back(first, last);
        }
        const CharSet set(std::move(ranges));
        return negated ? set.complement() : set;
    }

    char32_t character() {
        const char32_t c = in_.next();
        if (c != U'\\') return c;
        const char32_t escaped = in_.next();
        switch (escaped) {
            case U'n':
                return U'\n';
            case U'r':
                return U'\r';
            case U't':
                return U'\t';
            case U'x':
                return in_.hexadecimal(2);
            case U'u':
                return checked(in_.hexadecimal(4));
            case U'U':
                return checked(in_.hexadecimal(8));
            default:
                break;
        }
        if (std::u32string_view(U"\"\\[]-^").find(escaped) == std::u32string_view::npos)
            in_.refuse("has an unknown escape");
        return escaped;
    }

    char32_t checked(char32_t c) {
        if (c > 0x10FFFF || (c >= 0xD800 && c <= 0xDFFF)) in_.refuse("has an escape that is no character");
        return c;
    }

    PatternReader in_;
    GrammarBuilder builder_;
    std::map<std::string, int32_t> rules_;
};

}  // namespace

Grammar gbnf_grammar(std::string_view text) { return GbnfReader(text).read(); }

}  // namespace thermocline::text
