// A context-free grammar over bytes, for constrained output: rules as small automata with byte edges, empty edges and
// calls. Built from expressions by GrammarBuilder; a Grammar is immutable, any thread. Makers of grammars:
// regex_grammar.h, gbnf_grammar.h, schema_grammar.h, tool_grammar.h; what reads them: grammar_machine.h.
//
// Own code: no constrained-decoding library comes from where scripts/install installs (looked at in November 2026).
// Debian 12 has none; the wheels of xgrammar 0.2.8 and llguidance 1.9.1 on PyPI each hold one Python extension without
// headers, and xgrammar's needs PyTorch.
//
// Hostile input is bounded: at most kMaxStates states and kMaxEdges edges, no left recursion, nothing that cannot end;
// building takes time in proportion to these.
#pragma once

#include "src/text/char_set.h"

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace thermocline::text {

struct Grammar {
    static constexpr int32_t kBytes = -1, kEmpty = -2;
    struct Edge {
        int32_t target;
        int32_t rule;  // called on the way; kBytes: one byte of [low, high] instead, kEmpty: nothing
        uint8_t low, high;
    };
    /// `count` equal copies of an automaton in a row, each of which takes at least one byte.
    struct Run {
        int32_t base, stride, count;  // [base + i * stride, base + (i + 1) * stride): the end of copy i and its inside
        int32_t exit;   // where to go on in front of every copy, and behind the last; -1: behind that only
        int32_t begin;  // in front of the first copy; other things may begin there too
    };
    std::vector<int32_t> first_edge;  // [states + 1]
    std::vector<Edge> edges;
    std::vector<uint8_t> accepts;  // [states] 1: its rule may end here
    struct Rule {
        int32_t start;  // no edge leads back to it
        int32_t rank;   // above that of every rule that may begin with this one
    };
    std::vector<Rule> rules;
    int32_t root = 0;
    bool accepts_nothing = false;  // the empty text is one of the language
    std::vector<Run> runs;         // ascending by base
    /// Tokens that the grammar names: number k stands in the byte stream as kTokenMark, k.
    std::vector<std::string> tokens;
};

/// Never part of UTF-8.
inline constexpr uint8_t kTokenMark = 0xFF;

class GrammarBuilder {
public:
    using Expr = int32_t;
    static constexpr int64_t kUnlimited = -1;
    static constexpr size_t kMaxStates = 400000, kMaxEdges = 2000000, kMaxExpressions = 1000000;

    Expr nothing() { return sequence({}); }
    Expr never() { return choice({}); }
    Expr literal(std::string_view bytes);
    Expr chars(CharSet set);
    Expr sequence(std::vector<Expr> parts);
    Expr choice(std::vector<Expr> parts);
    Expr repeat(Expr part, int64_t least, int64_t most = kUnlimited);
    Expr optional(Expr part) { return choice({part, nothing()}); }
    struct Member {
        Expr part;
        bool required;
    };
    /// Some of the members in their order, all required ones among them, then any number of `extra` (-1: none), with
    /// `separator` between them.
    Expr members(std::vector<Member> parts, Expr separator, Expr extra);
    Expr call(int32_t rule);
    /// A token of the vocabulary that must come as itself, not spelled by others. Throws Error beyond 255 of them.
    Expr token(const std::string& text);

    int32_t new_rule(std::string name);
    void define(int32_t rule, Expr body);
    int32_t rule(std::string name, Expr body);

    /// Throws Error if the grammar is too large, left-recursive, or matches nothing.
    Grammar build(int32_t root);

private:
    enum class Kind : uint8_t { kLiteral, kChars, kSequence, kChoice, kRepeat, kMembers, kCall };
    struct Node {
        Kind kind;
        std::string bytes;
        CharSet set;
        std::vector<Expr> parts;
        int64_t least = 0, most = 0;
        int32_t rule = -1;
        std::vector<uint8_t> required = {};  // [parts - 2] of kMembers, whose parts are separator, extra, members
    };
    struct Rule {
        std::string name;
        Expr body = -1;
        bool nullable = false;
        int32_t start = -1;
        std::vector<int32_t> leading;  // rules that may come first
    };
    struct LooseEdge {
        int32_t from;
        Grammar::Edge edge;
    };
    struct LooseRun {
        Grammar::Run run;
        Expr body;
    };

    /// Edges of a set of characters; states are counted from its own first, kBegin and kEnd are those around it.
    struct Spelling {
        static constexpr int32_t kBegin = -2, kEnd = -1;
        std::vector<LooseEdge> edges;
        int32_t states = 0;
    };

    Expr add(Node node);
    bool nullable(Expr expr) const { return nullable_[static_cast<size_t>(expr)] == 1; }
    void find_nullable();
    int32_t new_state();
    void add_edge(int32_t from, int32_t target, int32_t rule, uint8_t low = 0, uint8_t high = 0);
    void emit(Expr expr, int32_t from, int32_t to);
    void emit_choice(const Node& node, int32_t from, int32_t to);
    void emit_literals(std::vector<std::string_view> texts, int32_t from, int32_t to);
    static Spelling spelling(const CharSet& set);
    void emit_chars(Expr expr, int32_t from, int32_t to);
    void emit_repeat(const Node& node, int32_t from, int32_t to);
    void emit_members(const Node& node, int32_t from, int32_t to);
    int32_t emit_copies(Expr part, int64_t count, int32_t from, std::optional<int32_t> exit);
    void emit_rules(int32_t root);
    std::vector<uint8_t> productive_states(const Grammar& grammar) const;
    void find_leading(const Grammar& grammar);
    void rank_rules(Grammar& grammar) const;
    Grammar connected(int32_t root);

    std::vector<Node> nodes_;
    std::vector<Rule> rules_;
    std::vector<std::string> tokens_;
    // Of build():
    std::vector<uint8_t> nullable_;       // [nodes]
    std::map<Expr, Spelling> spellings_;  // of sets of characters
    std::vector<uint8_t> accepts_;
    std::vector<LooseEdge> edges_;
    std::vector<LooseRun> runs_;
};

}  // namespace thermocline::text
