#include "src/text/grammar_machine.h"

#include <algorithm>
#include <map>
#include <utility>

namespace thermocline::text {

namespace {

constexpr int32_t kNotKnown = -2;
constexpr int64_t kNewThing = 30;  // work on a step or a set that was not known

/// Work on the steps of a run's copies: for 1024 rows at most ([ab]*a[ab]{25}c has 2^26).
constexpr int64_t kRow = 256, kMostCopyWork = 1024 * kRow;

/// Ways to read one text that are followed: a grammar with more loses some of its texts, every step stays short.
constexpr size_t kMostWays = 256;

using Item = GrammarMachine::Item;

/// In one order, each once.
void tidy(std::vector<Item>& items) {
    std::sort(items.begin(), items.end(),
              [](const Item& a, const Item& b) { return a.frame != b.frame ? a.frame < b.frame : a.set < b.set; });
    const auto same = [](const Item& a, const Item& b) { return a.frame == b.frame && a.set == b.set; };
    items.erase(std::unique(items.begin(), items.end(), same), items.end());
}

}  // namespace

size_t ListNumbers::Hash::operator()(const List& list) const {
    uint64_t hash = list.size();
    for (const int32_t value : list) {
        hash = (hash ^ static_cast<uint32_t>(value)) * 0x9E3779B97F4A7C15u;
        hash ^= hash >> 32;
    }
    return hash;
}

std::pair<int32_t, bool> ListNumbers::number(const List& list) {
    const auto [entry, is_new] = numbers_.try_emplace(list, static_cast<int32_t>(lists_.size()));
    if (is_new) {
        lists_.push_back(&entry->first);
        bytes_ += list.size() * sizeof(int32_t) + 80;
    }
    return {entry->second, is_new};
}

void ListNumbers::clear() {
    numbers_.clear();
    lists_.clear();
    bytes_ = 0;
}

GrammarMachine::GrammarMachine(std::shared_ptr<const Grammar> grammar)
    : grammar_(std::move(grammar)), met_(grammar_->accepts.size(), 0) {
    const auto edges = [this](int32_t state) {
        return grammar_->first_edge[static_cast<size_t>(state) + 1] - grammar_->first_edge[static_cast<size_t>(state)];
    };
    for (size_t i = 0; i < grammar_->runs.size(); ++i) {
        const Grammar::Run& run = grammar_->runs[i];
        if (run.exit >= 0 && edges(run.begin) == edges(run.base)) run_begins_[run.begin] = static_cast<int32_t>(i);
    }
    clear();
}

void GrammarMachine::clear() {
    set_numbers_.clear();
    frame_numbers_.clear();
    config_numbers_.clear();
    sets_.clear();
    configs_.clear();
    table_bytes_ = edge_bytes_ = 0;
    // Lists that no frame has: returns come in pairs.
    frame_numbers_.number({kBottom});
    frame_numbers_.number({kUnknown});
}

size_t GrammarMachine::size_bytes() const {
    return set_numbers_.size_bytes() + frame_numbers_.size_bytes() + config_numbers_.size_bytes() + table_bytes_ +
           edge_bytes_ + sets_.size() * sizeof(Set) + configs_.size() * sizeof(Config);
}

void GrammarMachine::begin_search() {
    if (++search_ != 0) return;
    std::fill(met_.begin(), met_.end(), 0);  // it went round
    search_ = 1;
}

int32_t GrammarMachine::set_of(std::vector<int32_t> kernel) {
    std::sort(kernel.begin(), kernel.end());
    kernel.erase(std::unique(kernel.begin(), kernel.end()), kernel.end());
    const auto [id, is_new] = set_numbers_.number(kernel);
    work_ += std::ssize(kernel);
    if (!is_new) return id;
    work_ += kNewThing;
    sets_.emplace_back();
    const Grammar& grammar = *grammar_;
    begin_search();
    for (const int32_t state : kernel) met_[static_cast<size_t>(state)] = search_;
    std::vector<int32_t> open = kernel;             // through empty edges
    std::map<int32_t, std::vector<int32_t>> calls;  // rule -> states behind it
    Set set;
    while (!open.empty()) {
        const auto state = static_cast<size_t>(open.back());
        open.pop_back();
        if (grammar.accepts[state] == 1) set.accepts = true;
        work_ += 1 + grammar.first_edge[state + 1] - grammar.first_edge[state];
        for (int32_t e = grammar.first_edge[state]; e < grammar.first_edge[state + 1]; ++e) {
            const Grammar::Edge& edge = grammar.edges[static_cast<size_t>(e)];
            if (edge.rule == Grammar::kBytes) set.bytes.push_back(edge);
            if (edge.rule >= 0) calls[edge.rule].push_back(edge.target);
            if (edge.rule != Grammar::kEmpty) continue;
            if (std::exchange(met_[static_cast<size_t>(edge.target)], search_) != search_) open.push_back(edge.target);
        }
    }
    set.only_accepts = set.accepts && set.bytes.empty() && calls.empty();
    for (auto& [rule, targets] : calls) {
        edge_bytes_ += sizeof(Call) + targets.size() * sizeof(int32_t);
        set.calls.push_back({rule, std::move(targets)});
    }
    edge_bytes_ += set.bytes.size() * sizeof(Grammar::Edge);
    sets_[static_cast<size_t>(id)] = std::move(set);
    return id;
}

int32_t GrammarMachine::frame_of(const std::vector<Item>& returns) {
    std::vector<int32_t> list;
    for (const Item& item : returns) list.insert(list.end(), {item.set, item.frame});
    return frame_numbers_.number(list).first;
}

std::vector<GrammarMachine::Item> GrammarMachine::returns(int32_t frame) const {
    const ListNumbers::List& list = frame_numbers_.list(frame);
    std::vector<Item> items;
    for (size_t i = 0; i + 1 < list.size(); i += 2) items.push_back({list[i], list[i + 1]});
    return items;
}

int32_t GrammarMachine::start() {
    const auto root = static_cast<size_t>(grammar_->root);
    Config config;
    config.complete = grammar_->accepts_nothing;
    config.items = {{set_of({grammar_->rules[root].start}), kBottom}};
    enter_rules(config.items);
    return number(std::move(config));
}

int32_t GrammarMachine::local(int32_t set, bool leaves) {
    std::vector<Place> places;
    for (const int32_t state : set_numbers_.list(set)) places.push_back({kUnknown, state});
    return settle(std::move(places), leaves);
}

int32_t GrammarMachine::step(int32_t config, uint8_t byte) {
    Config& from = configs_[static_cast<size_t>(config)];
    if (from.table != nullptr && (*from.table)[byte] != kNotKnown) return (*from.table)[byte];
    if (from.table == nullptr)
        for (size_t i = 0; i < from.known; ++i)
            if (from.bytes[i] == byte) return from.targets[i];
    const int32_t target = compute_step(from, byte);  // a deque: `from` stays where it is
    remember(from, byte, target);
    return target;
}

void GrammarMachine::remember(Config& config, uint8_t byte, int32_t target) {
    if (config.table == nullptr && config.known < config.bytes.size()) {
        config.bytes[config.known] = byte;
        config.targets[config.known++] = target;
        return;
    }
    if (config.table == nullptr) {
        config.table = std::make_unique<std::array<int32_t, 256>>();
        config.table->fill(kNotKnown);
        table_bytes_ += sizeof(*config.table);
        for (size_t i = 0; i < config.known; ++i) (*config.table)[config.bytes[i]] = config.targets[i];
    }
    (*config.table)[byte] = target;
}

int32_t GrammarMachine::compute_step(const Config& from, uint8_t byte) {
    std::vector<Place> places;
    work_ += kNewThing;
    for (const Item& item : from.items) work_ += std::ssize(sets_[static_cast<size_t>(item.set)].bytes);
    for (const Item& item : from.items)
        for (const Grammar::Edge& edge : sets_[static_cast<size_t>(item.set)].bytes)
            if (edge.low <= byte && byte <= edge.high) places.push_back({item.frame, edge.target});
    return places.empty() ? kDead : settle(std::move(places), true);
}

/// The configuration of these places with all that is reached from them without a byte.
int32_t GrammarMachine::settle(std::vector<Place> places, bool leaves) {
    Config config;
    std::vector<Item> items = grouped(places);
    if (leaves)
        while (leave_rules(items, places, config)) items = grouped(places);
    enter_rules(items);
    config.items = std::move(items);
    return number(std::move(config));
}

/// States of one frame become one set.
std::vector<GrammarMachine::Item> GrammarMachine::grouped(std::vector<Place>& places) {
    std::sort(places.begin(), places.end());
    places.erase(std::unique(places.begin(), places.end()), places.end());
    std::vector<Item> items;
    for (size_t i = 0; i < places.size();) {
        const int32_t frame = places[i].frame;
        std::vector<int32_t> kernel;
        for (; i < places.size() && places[i].frame == frame; ++i) kernel.push_back(places[i].state);
        items.push_back({set_of(std::move(kernel)), frame});
    }
    return items;
}

/// Adds the places behind rules that may be done; true if there were new ones.
bool GrammarMachine::leave_rules(std::vector<Item>& items, std::vector<Place>& places, Config& config) {
    const size_t before = places.size();
    for (size_t i = 0; i < items.size(); ++i) {
        const Item item = items[i];
        if (!sets_[static_cast<size_t>(item.set)].accepts) continue;
        if (item.frame == kBottom) config.complete = true;
        if (item.frame == kUnknown) config.left = true;
        for (const Item& next : returns(item.frame))
            for (const int32_t state : set_numbers_.list(next.set)) places.push_back({next.frame, state});
    }
    std::sort(places.begin(), places.end());
    places.erase(std::unique(places.begin(), places.end()), places.end());
    return places.size() > before;
}

/// Adds the beginnings of the rules that may be called. No rule begins with itself and none is done before its first
/// byte (whoever calls one that may be empty has an empty edge beside), so one pass by rank knows all callers of a
/// rule.
void GrammarMachine::enter_rules(std::vector<Item>& items) {
    std::map<int32_t, std::pair<int32_t, std::vector<Item>>> called;  // rank -> rule, returns
    const auto add_calls = [&](const Item& item) {
        for (const Call& call : sets_[static_cast<size_t>(item.set)].calls) {
            auto& [rule, back] = called[grammar_->rules[static_cast<size_t>(call.rule)].rank];
            rule = call.rule;
            const int32_t behind = set_of(call.behind);
            // Behind a last call there is nothing to come back for.
            const bool is_last = sets_[static_cast<size_t>(behind)].only_accepts && item.frame > kUnknown;
            if (is_last)
                for (const Item& next : returns(item.frame)) back.push_back(next);
            else
                back.push_back({behind, item.frame});
        }
    };
    for (const Item& item : items) add_calls(item);
    while (!called.empty()) {
        auto [rule, back] = std::move(called.begin()->second);
        called.erase(called.begin());
        tidy(back);
        const Item begin{set_of({grammar_->rules[static_cast<size_t>(rule)].start}), frame_of(back)};
        items.push_back(begin);
        add_calls(begin);
    }
}

int32_t GrammarMachine::number(Config config) {
    std::erase_if(config.items,
                  [this](const Item& item) { return sets_[static_cast<size_t>(item.set)].bytes.empty(); });
    if (config.items.empty() && !config.complete && !config.left) return kDead;
    tidy(config.items);
    if (config.items.size() > kMostWays) config.items.resize(kMostWays);
    std::vector<int32_t> list = {config.complete ? 1 : 0, config.left ? 1 : 0};
    for (const Item& item : config.items) list.insert(list.end(), {item.set, item.frame});
    const auto [id, is_new] = config_numbers_.number(list);
    if (is_new) configs_.push_back(std::move(config));
    return id;
}

int32_t GrammarMachine::run_of(int32_t state) const {
    const auto& runs = grammar_->runs;
    const auto behind =
        std::upper_bound(runs.begin(), runs.end(), state, [](int32_t s, const Grammar::Run& r) { return s < r.base; });
    if (behind == runs.begin()) return -1;
    const Grammar::Run& run = *(behind - 1);
    return state < run.base + run.stride * run.count ? static_cast<int32_t>(behind - runs.begin()) - 1 : -1;
}

int32_t GrammarMachine::like(int32_t set, int32_t length) {
    const ListNumbers::List& kernel = set_numbers_.list(set);
    const int32_t at = kernel.size() == 1 ? run_of(kernel[0]) : -1;
    if (at < 0) return set;
    const Grammar::Run& run = grammar_->runs[static_cast<size_t>(at)];
    const int32_t state = kernel[0], copy = (state - run.base) / run.stride;
    const int32_t far = run.count - 1 - (length + 1);  // the last copy that is that far from the end
    return copy >= far ? set : set_of({state + (far - copy) * run.stride});
}

std::optional<GrammarMachine::InRun> GrammarMachine::place_in_run(int32_t state) const {
    if (const auto begins = run_begins_.find(state); begins != run_begins_.end())
        return InRun{begins->second, 0, grammar_->runs[static_cast<size_t>(begins->second)].count};
    const int32_t at = run_of(state);
    if (at < 0 || grammar_->runs[static_cast<size_t>(at)].exit < 0) return std::nullopt;
    const Grammar::Run& run = grammar_->runs[static_cast<size_t>(at)];
    const int32_t place = state - run.base;
    return InRun{at, place % run.stride, run.count - 1 - place / run.stride};
}

std::optional<GrammarMachine::InRun> GrammarMachine::in_run(int32_t set) const {
    const ListNumbers::List& kernel = set_numbers_.list(set);
    return kernel.size() == 1 ? place_in_run(kernel[0]) : std::nullopt;
}

std::vector<int32_t> GrammarMachine::parts(int32_t set) {
    const ListNumbers::List kernel = set_numbers_.list(set);
    std::vector<int32_t> out;
    const bool is_apart = kernel.size() > 1 && std::any_of(kernel.begin(), kernel.end(), [&](int32_t state) {
                              return place_in_run(state).has_value();
                          });
    if (!is_apart) return {set};
    for (const int32_t state : kernel) out.push_back(set_of({state}));
    return out;
}

GrammarMachine::CopySteps GrammarMachine::copy_steps(int32_t run, int32_t state) {
    const Grammar::Run& of = grammar_->runs[static_cast<size_t>(run)];
    // The second copy lies between the ends of the first and the second, which is state 0 of the next stride.
    const int32_t begin = of.base, end = of.base + of.stride;
    using States = std::vector<int32_t>;
    const States at_end = {begin};
    const int64_t most_work = work_ + kMostCopyWork;
    std::map<States, int32_t> numbers = {{at_end, 0}};
    std::vector<States> open = {at_end};
    const auto number = [&](States states) {
        const auto [known, is_new] = numbers.try_emplace(states, static_cast<int32_t>(open.size()));
        if (is_new) {
            open.push_back(std::move(states));
            work_ += kRow;
        }
        return known->second;
    };
    CopySteps out;
    out.start = state == 0 ? 0 : number({end + state});
    for (size_t row = 0; row < open.size(); ++row) {
        std::array<States, 256> targets;
        States states = open[row];  // and what is reached from them through empty edges
        begin_search();
        for (const int32_t known : states) met_[static_cast<size_t>(known)] = search_;
        for (size_t i = 0; i < states.size(); ++i) {
            const auto at = static_cast<size_t>(states[i]);
            if (++work_ > most_work) return {};
            for (int32_t e = grammar_->first_edge[at]; e < grammar_->first_edge[at + 1]; ++e) {
                const Grammar::Edge& edge = grammar_->edges[static_cast<size_t>(e)];
                if (edge.rule == Grammar::kEmpty && states[i] == begin && edge.target == of.exit) continue;
                const int32_t target = edge.target == end ? begin : edge.target;
                if (edge.rule >= 0 || edge.target < end || edge.target >= end + of.stride) return {};
                if (edge.rule == Grammar::kEmpty) {
                    if (std::exchange(met_[static_cast<size_t>(target)], search_) != search_) states.push_back(target);
                    continue;
                }
                for (int byte = edge.low; byte <= edge.high; ++byte)
                    targets[static_cast<size_t>(byte)].push_back(target);
                work_ += edge.high - edge.low + 1;
            }
        }
        // One may be at the end of a copy, or inside one: not both at once.
        if (row > 0 && met_[static_cast<size_t>(begin)] == search_) return {};
        out.rows.emplace_back().fill(kDead);
        for (size_t byte = 0; byte < targets.size(); ++byte) {
            States& to = targets[byte];
            if (to.empty()) continue;
            std::sort(to.begin(), to.end());
            to.erase(std::unique(to.begin(), to.end()), to.end());
            if (to.size() > 1 && to.front() == begin) return {};
            out.rows.back()[byte] = number(std::move(to));
        }
    }
    return out;
}

}  // namespace thermocline::text
