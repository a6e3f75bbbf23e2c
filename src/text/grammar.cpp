#include "src/text/grammar.h"

#include "src/base/check.h"
#include "src/base/error.h"
#include "src/text/utf8_ranges.h"

#include <algorithm>
#include <map>
#include <utility>

namespace thermocline::text {

namespace {

/// Runs shorter than this gain nothing from being known.
constexpr int64_t kLeastRun = 16;

}  // namespace

GrammarBuilder::Expr GrammarBuilder::add(Node node) {
    if (nodes_.size() >= kMaxExpressions) fail("grammar: more than ", kMaxExpressions, " expressions");
    nodes_.push_back(std::move(node));
    return static_cast<Expr>(nodes_.size() - 1);
}

GrammarBuilder::Expr GrammarBuilder::literal(std::string_view bytes) {
    return add({.kind = Kind::kLiteral, .bytes = std::string(bytes), .set = {}, .parts = {}});
}

GrammarBuilder::Expr GrammarBuilder::chars(CharSet set) {
    return add({.kind = Kind::kChars, .bytes = {}, .set = std::move(set), .parts = {}});
}

GrammarBuilder::Expr GrammarBuilder::sequence(std::vector<Expr> parts) {
    return add({.kind = Kind::kSequence, .bytes = {}, .set = {}, .parts = std::move(parts)});
}

GrammarBuilder::Expr GrammarBuilder::choice(std::vector<Expr> parts) {
    return add({.kind = Kind::kChoice, .bytes = {}, .set = {}, .parts = std::move(parts)});
}

GrammarBuilder::Expr GrammarBuilder::repeat(Expr part, int64_t least, int64_t most) {
    CHECK(least >= 0 && (most == kUnlimited || most >= least));
    return add({.kind = Kind::kRepeat, .bytes = {}, .set = {}, .parts = {part}, .least = least, .most = most});
}

GrammarBuilder::Expr GrammarBuilder::members(std::vector<Member> parts, Expr separator, Expr extra) {
    Node node{.kind = Kind::kMembers, .bytes = {}, .set = {}, .parts = {separator, extra}};
    for (const Member& member : parts) {
        node.parts.push_back(member.part);
        node.required.push_back(member.required ? 1 : 0);
    }
    return add(std::move(node));
}

GrammarBuilder::Expr GrammarBuilder::call(int32_t rule) {
    return add({.kind = Kind::kCall, .bytes = {}, .set = {}, .parts = {}, .rule = rule});
}

GrammarBuilder::Expr GrammarBuilder::token(const std::string& text) {
    const auto found = std::find(tokens_.begin(), tokens_.end(), text);
    const auto index = static_cast<size_t>(found - tokens_.begin());
    if (found == tokens_.end()) tokens_.push_back(text);
    if (index > 254) fail("grammar: names more than 255 tokens");
    const char bytes[] = {static_cast<char>(kTokenMark), static_cast<char>(index)};
    return literal({bytes, sizeof bytes});
}

int32_t GrammarBuilder::new_rule(std::string name) {
    rules_.push_back({std::move(name), -1, false, -1, {}});
    return static_cast<int32_t>(rules_.size() - 1);
}

void GrammarBuilder::define(int32_t rule, Expr body) { rules_[static_cast<size_t>(rule)].body = body; }

int32_t GrammarBuilder::rule(std::string name, Expr body) {
    const int32_t made = new_rule(std::move(name));
    define(made, body);
    return made;
}

/// From what is empty by itself to what becomes so by its parts, each expression once.
void GrammarBuilder::find_nullable() {
    nullable_.assign(nodes_.size(), 0);
    std::vector<std::vector<Expr>> users(nodes_.size()), callers(rules_.size());
    std::vector<std::vector<size_t>> bodies(nodes_.size());  // rules that an expression is the body of
    std::vector<size_t> missing(nodes_.size(), 1);           // parts that must be found nullable yet
    std::vector<Expr> found;
    for (size_t i = 0; i < nodes_.size(); ++i) {
        const Node& node = nodes_[i];
        const auto expr = static_cast<Expr>(i);
        const bool has_required = std::find(node.required.begin(), node.required.end(), 1) != node.required.end();
        if (node.kind == Kind::kSequence) missing[i] = node.parts.size();
        if ((node.kind == Kind::kLiteral && node.bytes.empty()) || (node.kind == Kind::kRepeat && node.least == 0) ||
            (node.kind == Kind::kMembers && !has_required))
            missing[i] = 0;
        if (missing[i] == 0) found.push_back(expr);
        if (node.kind == Kind::kCall) callers[static_cast<size_t>(node.rule)].push_back(expr);
        if (node.kind == Kind::kMembers) continue;  // no member is empty
        for (const Expr part : node.parts) users[static_cast<size_t>(part)].push_back(expr);
    }
    for (size_t r = 0; r < rules_.size(); ++r)
        if (rules_[r].body >= 0) bodies[static_cast<size_t>(rules_[r].body)].push_back(r);
    const auto count_down = [&](Expr user) {
        size_t& left = missing[static_cast<size_t>(user)];
        if (left > 0 && --left == 0) found.push_back(user);
    };
    while (!found.empty()) {
        const auto i = static_cast<size_t>(found.back());
        found.pop_back();
        nullable_[i] = 1;
        for (const Expr user : users[i]) count_down(user);
        for (const size_t rule : bodies[i]) {
            rules_[rule].nullable = true;
            for (const Expr call : callers[rule]) count_down(call);
        }
    }
}

int32_t GrammarBuilder::new_state() {
    if (accepts_.size() >= kMaxStates)
        fail("grammar: more than ", kMaxStates, " states, expected fewer or smaller counts, alternatives and texts");
    accepts_.push_back(0);
    return static_cast<int32_t>(accepts_.size() - 1);
}

void GrammarBuilder::add_edge(int32_t from, int32_t target, int32_t rule, uint8_t low, uint8_t high) {
    if (edges_.size() >= kMaxEdges) fail("grammar: more than ", kMaxEdges, " edges, expected fewer alternatives");
    edges_.push_back({from, {target, rule, low, high}});
}

void GrammarBuilder::emit(Expr expr, int32_t from, int32_t to) {
    const Node& node = nodes_[static_cast<size_t>(expr)];
    switch (node.kind) {
        case Kind::kLiteral:
            for (size_t i = 0; i < node.bytes.size(); ++i) {
                const int32_t next = i + 1 == node.bytes.size() ? to : new_state();
                const auto byte = static_cast<uint8_t>(node.bytes[i]);
                add_edge(std::exchange(from, next), next, Grammar::kBytes, byte, byte);
            }
            if (node.bytes.empty()) add_edge(from, to, Grammar::kEmpty);
            return;
        case Kind::kChars:
            return emit_chars(expr, from, to);
        case Kind::kSequence:
            for (size_t i = 0; i < node.parts.size(); ++i) {
                const int32_t next = i + 1 == node.parts.size() ? to : new_state();
                emit(node.parts[i], std::exchange(from, next), next);
            }
            if (node.parts.empty()) add_edge(from, to, Grammar::kEmpty);
            return;
        case Kind::kChoice:
            return emit_choice(node, from, to);
        case Kind::kRepeat:
            return emit_repeat(node, from, to);
        case Kind::kMembers:
            return emit_members(node, from, to);
        case Kind::kCall:
            if (rules_[static_cast<size_t>(node.rule)].nullable) add_edge(from, to, Grammar::kEmpty);
            add_edge(from, to, node.rule);
    }
}

void GrammarBuilder::emit_choice(const Node& node, int32_t from, int32_t to) {
    std::vector<std::string_view> texts;
    for (const Expr part : node.parts) {
        const Node& way = nodes_[static_cast<size_t>(part)];
        if (way.kind == Kind::kLiteral && !way.bytes.empty())
            texts.emplace_back(way.bytes);
        else
            emit(part, from, to);
    }
    emit_literals(std::move(texts), from, to);
}

/// Texts that begin alike share their first states: a long list stays cheap to follow.
void GrammarBuilder::emit_literals(std::vector<std::string_view> texts, int32_t from, int32_t to) {
    std::sort(texts.begin(), texts.end());
    texts.erase(std::unique(texts.begin(), texts.end()), texts.end());
    struct Open {
        size_t begin, end, depth;  // these texts are alike in their first `depth` bytes
        int32_t state;
    };
    std::vector<Open> open = {{0, texts.size(), 0, from}};
    while (!open.empty()) {
        const Open node = open.back();
        open.pop_back();
        for (size_t begin = node.begin, end = begin; begin < node.end; begin = end) {
            const auto byte = static_cast<uint8_t>(texts[begin][node.depth]);
            while (end < node.end && static_cast<uint8_t>(texts[end][node.depth]) == byte) ++end;
            if (texts[begin].size() == node.depth + 1) {
                add_edge(node.state, to, Grammar::kBytes, byte, byte);
                ++begin;
            }
            if (begin == end) continue;
            const int32_t next = new_state();
            add_edge(node.state, next, Grammar::kBytes, byte, byte);
            open.push_back({begin, end, node.depth + 1, next});
        }
    }
}

/// Ways that end alike share their last states.
GrammarBuilder::Spelling GrammarBuilder::spelling(const CharSet& set) {
    Spelling out;
    std::map<std::vector<ByteRange>, int32_t> rests;  // what is still to come -> the state before it
    for (const std::vector<ByteRange>& bytes : utf8_ranges(set)) {
        int32_t next = Spelling::kEnd;
        for (size_t i = bytes.size(); i-- > 0;) {
            const std::vector<ByteRange> rest(bytes.begin() + static_cast<std::ptrdiff_t>(i), bytes.end());
            const auto known = i > 0 ? rests.find(rest) : rests.end();
            if (known != rests.end()) {
                next = known->second;
                continue;
            }
            const int32_t state = i == 0 ? Spelling::kBegin : out.states++;
            out.edges.push_back({state, {next, Grammar::kBytes, bytes[i].low, bytes[i].high}});
            if (i > 0) rests[rest] = state;
            next = state;
        }
    }
    return out;
}

void GrammarBuilder::emit_chars(Expr expr, int32_t from, int32_t to) {
    const auto [entry, is_new] = spellings_.try_emplace(expr);
    if (is_new) entry->second = spelling(nodes_[static_cast<size_t>(expr)].set);
    const auto base = static_cast<int32_t>(accepts_.size());
    for (int32_t i = 0; i < entry->second.states; ++i) new_state();
    const auto place = [&](int32_t state) {
        return state == Spelling::kBegin ? from : state == Spelling::kEnd ? to : base + state;
    };
    for (const LooseEdge& loose : entry->second.edges)
        add_edge(place(loose.from), place(loose.edge.target), Grammar::kBytes, loose.edge.low, loose.edge.high);
}

void GrammarBuilder::emit_repeat(const Node& node, int32_t from, int32_t to) {
    const Expr part = node.parts[0];
    const int64_t least = node.least, most = node.most;
    const int32_t required = emit_copies(part, least, from, std::nullopt);
    if (most != kUnlimited) {
        add_edge(emit_copies(part, most - least, required, to), to, Grammar::kEmpty);
        return;
    }
    const int32_t hub = new_state();
    add_edge(required, hub, Grammar::kEmpty);
    emit(part, hub, hub);
    add_edge(hub, to, Grammar::kEmpty);
}

/// `count` copies in a row, with `exit` one may leave to it before any of them. Returns where the last one ends.
int32_t GrammarBuilder::emit_copies(Expr part, int64_t count, int32_t from, std::optional<int32_t> exit) {
    int32_t begin = from, stride = 0;
    const auto base = static_cast<int32_t>(accepts_.size());
    for (int64_t i = 0; i < count; ++i) {
        if (exit) add_edge(begin, *exit, Grammar::kEmpty);
        const int32_t end = new_state();
        emit(part, begin, end);
        stride = static_cast<int32_t>(accepts_.size()) - end;
        begin = end;
    }
    if (count >= kLeastRun)
        runs_.push_back({{base, stride, static_cast<int32_t>(count), exit.value_or(-1), from}, part});
    return begin;
}

/// Two rows of states: no member yet, some members already.
void GrammarBuilder::emit_members(const Node& node, int32_t from, int32_t to) {
    const Expr separator = node.parts[0], extra = node.parts[1];
    const auto emit_separated = [&](Expr part, int32_t begin, int32_t end) {
        const int32_t between = new_state();
        emit(separator, begin, between);
        emit(part, between, end);
    };
    int32_t none = new_state(), some = new_state();
    add_edge(from, none, Grammar::kEmpty);
    for (size_t i = 0; i < node.required.size(); ++i) {
        const int32_t next_none = new_state(), next_some = new_state();
        emit(node.parts[i + 2], none, next_some);
        emit_separated(node.parts[i + 2], some, next_some);
        if (node.required[i] == 0) {
            add_edge(none, next_none, Grammar::kEmpty);
            add_edge(some, next_some, Grammar::kEmpty);
        }
        none = next_none;
        some = next_some;
    }
    if (extra >= 0) {
        const int32_t hub = new_state();
        emit(extra, none, hub);
        add_edge(some, hub, Grammar::kEmpty);
        emit_separated(extra, hub, hub);
        add_edge(hub, to, Grammar::kEmpty);
    }
    add_edge(none, to, Grammar::kEmpty);
    add_edge(some, to, Grammar::kEmpty);
}

void GrammarBuilder::emit_rules(int32_t root) {
    std::vector<int32_t> open = {root};
    std::vector<uint8_t> seen(rules_.size(), 0);
    seen[static_cast<size_t>(root)] = 1;
    while (!open.empty()) {
        Rule& rule = rules_[static_cast<size_t>(open.back())];
        open.pop_back();
        if (rule.body < 0) fail("grammar: rule ", printable(rule.name, 60), " is used but not defined");
        const size_t first = edges_.size();
        rule.start = new_state();
        const int32_t end = new_state();
        accepts_[static_cast<size_t>(end)] = 1;
        emit(rule.body, rule.start, end);
        for (size_t i = first; i < edges_.size(); ++i) {
            const int32_t called = edges_[i].edge.rule;
            if (called < 0 || std::exchange(seen[static_cast<size_t>(called)], 1) == 1) continue;
            open.push_back(called);
        }
    }
}

namespace {

/// Edges by their origin.
void sort_edges(Grammar& grammar, const std::vector<std::pair<int32_t, Grammar::Edge>>& edges) {
    grammar.first_edge.assign(grammar.accepts.size() + 1, 0);
    for (const auto& [from, edge] : edges) ++grammar.first_edge[static_cast<size_t>(from) + 1];
    for (size_t i = 1; i < grammar.first_edge.size(); ++i) grammar.first_edge[i] += grammar.first_edge[i - 1];
    std::vector<int32_t> next(grammar.first_edge.begin(), grammar.first_edge.end() - 1);
    grammar.edges.resize(edges.size());
    for (const auto& [from, edge] : edges) grammar.edges[static_cast<size_t>(next[static_cast<size_t>(from)]++)] = edge;
}

}  // namespace

/// States from which the end of their rule can be reached, 1 or 0.
std::vector<uint8_t> GrammarBuilder::productive_states(const Grammar& grammar) const {
    std::vector<std::vector<size_t>> into(accepts_.size()), calling(rules_.size());  // edges
    for (size_t i = 0; i < edges_.size(); ++i) {
        const Grammar::Edge& edge = edges_[i].edge;
        into[static_cast<size_t>(edge.target)].push_back(i);
        if (edge.rule >= 0) calling[static_cast<size_t>(edge.rule)].push_back(i);
    }
    std::vector<int32_t> rule_at(accepts_.size(), -1);  // that begins in the state
    for (size_t r = 0; r < rules_.size(); ++r)
        if (rules_[r].start >= 0) rule_at[static_cast<size_t>(rules_[r].start)] = static_cast<int32_t>(r);
    std::vector<uint8_t> good = grammar.accepts;
    std::vector<size_t> open;
    for (size_t s = 0; s < good.size(); ++s)
        if (good[s] == 1) open.push_back(s);
    const auto reach = [&](const LooseEdge& loose) {
        const auto from = static_cast<size_t>(loose.from);
        const int32_t rule = loose.edge.rule;
        const bool rule_ends = rule < 0 || good[static_cast<size_t>(rules_[static_cast<size_t>(rule)].start)] == 1;
        if (good[from] == 1 || good[static_cast<size_t>(loose.edge.target)] == 0 || !rule_ends) return;
        good[from] = 1;
        open.push_back(from);
    };
    while (!open.empty()) {
        const size_t state = open.back();
        open.pop_back();
        for (const size_t edge : into[state]) reach(edges_[edge]);
        if (rule_at[state] < 0) continue;
        for (const size_t edge : calling[static_cast<size_t>(rule_at[state])]) reach(edges_[edge]);
    }
    return good;
}

void GrammarBuilder::find_leading(const Grammar& grammar) {
    std::vector<int32_t> seen(grammar.accepts.size(), -1);
    for (size_t r = 0; r < rules_.size(); ++r) {
        if (rules_[r].start < 0) continue;
        std::vector<int32_t> open = {rules_[r].start};
        while (!open.empty()) {
            const auto state = static_cast<size_t>(open.back());
            open.pop_back();
            for (int32_t e = grammar.first_edge[state]; e < grammar.first_edge[state + 1]; ++e) {
                const Grammar::Edge& edge = grammar.edges[static_cast<size_t>(e)];
                if (edge.rule >= 0) rules_[r].leading.push_back(edge.rule);
                const auto target = static_cast<size_t>(edge.target);
                if (edge.rule != Grammar::kEmpty || seen[target] == static_cast<int32_t>(r)) continue;
                seen[target] = static_cast<int32_t>(r);
                open.push_back(edge.target);
            }
        }
        std::sort(rules_[r].leading.begin(), rules_[r].leading.end());
        rules_[r].leading.erase(std::unique(rules_[r].leading.begin(), rules_[r].leading.end()),
                                rules_[r].leading.end());
    }
}

/// Callers before whom they may begin with; a circle is left recursion.
void GrammarBuilder::rank_rules(Grammar& grammar) const {
    std::vector<int32_t> callers(rules_.size(), 0);
    for (const Rule& rule : rules_)
        for (const int32_t r : rule.leading) ++callers[static_cast<size_t>(r)];
    std::vector<size_t> open;
    for (size_t r = 0; r < rules_.size(); ++r)
        if (callers[r] == 0) open.push_back(r);
    int32_t rank = 0;
    grammar.rules.resize(rules_.size());
    while (!open.empty()) {
        const size_t r = open.back();
        open.pop_back();
        grammar.rules[r] = {rules_[r].start, rank++};
        for (const int32_t next : rules_[r].leading)
            if (--callers[static_cast<size_t>(next)] == 0) open.push_back(static_cast<size_t>(next));
    }
    for (size_t r = 0; r < rules_.size(); ++r)
        if (callers[r] > 0)
            fail("grammar: rule ", printable(rules_[r].name, 60), " begins with itself (left recursion)");
}

Grammar GrammarBuilder::connected(int32_t root) {
    Grammar grammar;
    grammar.accepts = accepts_;
    const std::vector<uint8_t> good = productive_states(grammar);
    if (good[static_cast<size_t>(rules_[static_cast<size_t>(root)].start)] == 0)
        fail("grammar: no text satisfies it, expected at least one");
    std::vector<std::pair<int32_t, Grammar::Edge>> kept;
    for (const LooseEdge& loose : edges_) {
        const int32_t rule = loose.edge.rule;
        const bool rule_ends = rule < 0 || good[static_cast<size_t>(rules_[static_cast<size_t>(rule)].start)] == 1;
        if (good[static_cast<size_t>(loose.edge.target)] == 1 && rule_ends) kept.emplace_back(loose.from, loose.edge);
    }
    sort_edges(grammar, kept);
    return grammar;
}

Grammar GrammarBuilder::build(int32_t root) {
    find_nullable();
    emit_rules(root);
    Grammar grammar = connected(root);
    find_leading(grammar);
    rank_rules(grammar);
    grammar.root = root;
    grammar.accepts_nothing = rules_[static_cast<size_t>(root)].nullable;
    for (const LooseRun& loose : runs_)
        if (!nullable(loose.body)) grammar.runs.push_back(loose.run);
    std::sort(grammar.runs.begin(), grammar.runs.end(), [](const auto& a, const auto& b) { return a.base < b.base; });
    grammar.tokens = tokens_;
    return grammar;
}

}  // namespace thermocline::text
