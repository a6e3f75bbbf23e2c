#include "src/text/token_masks.h"

#include "src/base/error.h"

#include <algorithm>
#include <bit>
#include <set>
#include <tuple>
#include <utility>

namespace thermocline::text {

namespace {

/// Ways outwards that are followed for one mask; grammars that need more are ambiguous beyond use.
constexpr int kMostWays = 256;

constexpr size_t kMostWhole = 256;  // masks kept whole
constexpr size_t kTimesKept = 4;    // what is kept may grow to this many times its bound within one walk

void set_bit(std::span<uint64_t> mask, int32_t id) {
    mask[static_cast<size_t>(id) / 64] |= uint64_t{1} << static_cast<size_t>(id) % 64;
}

void clear_bit(std::span<uint64_t> mask, int32_t id) {
    mask[static_cast<size_t>(id) / 64] &= ~(uint64_t{1} << static_cast<size_t>(id) % 64);
}

bool has_bit(std::span<const uint64_t> mask, int32_t id) {
    return (mask[static_cast<size_t>(id) / 64] >> static_cast<size_t>(id) % 64 & 1) != 0;
}

}  // namespace

TokenMasks::TokenMasks(std::shared_ptr<const Grammar> grammar, std::shared_ptr<const TokenTrie> trie, size_t kept_bytes)
    : trie_(std::move(trie)), machine_(std::move(grammar)), kept_bytes_(kept_bytes) {
    for (const std::string& text : machine_.grammar().tokens) {
        const auto id = trie_->tokenizer().token_id(text);
        if (!id || !trie_->tokenizer().is_added(*id))
            fail("the vocabulary has no token '", printable(text, 60), "', which the output must contain");
        named_.push_back(*id);
    }
    way_.resize(static_cast<size_t>(trie_->longest()) + 1);
}

void TokenMasks::make_room() {
    if (machine_.size_bytes() + mask_bytes_ <= kept_bytes_) return;
    inside_.clear();
    inside_runs_.clear();
    whole_.clear();
    whole_order_.clear();
    oldest_ = 0;
    mask_bytes_ = 0;
    machine_.clear();
    ++epoch_;
}

std::optional<std::string> TokenMasks::bytes(int32_t id) const {
    for (size_t k = 0; k < named_.size(); ++k)
        if (named_[k] == id) return std::string{static_cast<char>(kTokenMark), static_cast<char>(k)};
    const std::string& bytes = trie_->tokenizer().token_bytes(id);
    const bool has_mark = bytes.find(static_cast<char>(kTokenMark)) != std::string::npos;
    if (bytes.empty() || has_mark || trie_->tokenizer().is_added(id)) return std::nullopt;
    return bytes;
}

std::unique_ptr<TokenMasks::Kept> TokenMasks::new_kept() {
    auto kept = std::make_unique<Kept>();
    kept->bits.resize(trie_->words());
    mask_bytes_ += new_kept_bytes();
    return kept;
}

void TokenMasks::check_work() const {
    if (work() > work_allowed_ || machine_.size_bytes() > kTimesKept * std::max(kept_bytes_, kKeptBytes))
        fail("grammar: takes too long to follow: expected smaller counts, and fewer ways to read the same text");
}

/// Tokens that begin so many copies, if not fewer in another way.
void TokenMasks::count(Kept& kept, std::span<const int32_t> tokens, uint16_t copies) {
    for (const int32_t id : tokens) {
        uint16_t& known = token_copies_[static_cast<size_t>(id)];
        known = has_bit(kept.bits, id) ? std::min(known, copies) : copies;
        set_bit(kept.bits, id);
    }
}

/// Judges the tokens at [begin, end), the nodes below one; way_ and left_ hold the way to it. `copies`: what all of
/// them begin, where that is counted.
void TokenMasks::walk(uint32_t begin, uint32_t end, Kept& out, std::optional<uint16_t> copies) {
    const std::span<const TokenTrie::Node> nodes = trie_->nodes();
    for (uint32_t i = begin; i < end;) {
        const TokenTrie::Node& node = nodes[i];
        while (!left_.empty() && left_.back() >= node.depth) left_.pop_back();
        ++nodes_walked_;
        check_work();
        const int32_t parent = way_[node.depth - 1u];
        const int32_t config = parent == GrammarMachine::kDead ? parent : machine_.step(parent, node.byte);
        if (config == GrammarMachine::kDead) {
            for (const uint16_t depth : left_) {
                out.open.push_back({i, depth});
                if (copies) out.open_copies.push_back(*copies);
            }
            i = node.end;
            continue;
        }
        way_[node.depth] = config;
        if (copies)
            count(out, trie_->tokens(node), *copies);
        else
            for (const int32_t id : trie_->tokens(node)) set_bit(out.bits, id);
        if (machine_.has_left(config)) left_.push_back(node.depth);
        ++i;
    }
}

/// Judges all tokens from a place in a run, and counts the copies that they begin: the way through the copies is
/// followed apart from those that go on behind one of them. False if that cannot be done.
bool TokenMasks::walk_run(const GrammarMachine::InRun& place, Kept& out) {
    const GrammarMachine::CopySteps steps = machine_.copy_steps(place.run, place.state);
    const int32_t behind = machine_.behind_copies(place.run);
    if (steps.rows.empty() || behind == GrammarMachine::kDead || machine_.has_left(behind)) return false;
    struct Way {
        int32_t config;
        uint16_t copies;
    };
    struct Left {
        uint16_t depth, copies;
    };
    struct Depth {
        int32_t state = GrammarMachine::kDead;  // inside the run: a row of the steps
        uint16_t copies = 0;
        size_t ways_begin = 0, ways_end = 0;  // behind it
    };
    std::vector<Depth> depths(static_cast<size_t>(trie_->longest()) + 1);
    std::vector<Way> ways;
    std::vector<Left> left;
    depths[0].state = steps.start;
    const std::span<const TokenTrie::Node> nodes = trie_->nodes();
    for (uint32_t i = 0; i < nodes.size();) {
        const TokenTrie::Node& node = nodes[i];
        while (!left.empty() && left.back().depth >= node.depth) left.pop_back();
        ++nodes_walked_;
        check_work();
        const Depth& above = depths[node.depth - 1u];
        Depth& here = depths[node.depth];
        ways.resize(above.ways_end);
        here = {GrammarMachine::kDead, above.copies, ways.size(), ways.size()};
        uint16_t fewest = UINT16_MAX;
        const auto go = [&](int32_t config, uint16_t copies) {
            const int32_t next = machine_.step(config, node.byte);
            if (next == GrammarMachine::kDead) return;
            ways.push_back({next, copies});
            fewest = std::min(fewest, copies);
        };
        for (size_t w = above.ways_begin; w < above.ways_end; ++w) go(ways[w].config, ways[w].copies);
        if (above.state == 0) go(behind, above.copies);
        here.ways_end = ways.size();
        if (above.state >= 0) here.state = steps.rows[static_cast<size_t>(above.state)][node.byte];
        if (here.state >= 0) {
            if (above.state == 0) ++here.copies;
            fewest = std::min(fewest, here.copies);
        }
        if (fewest == UINT16_MAX) {
            for (const Left& ended : left) {
                out.open.push_back({i, ended.depth});
                out.open_copies.push_back(ended.copies);
            }
            i = node.end;
            continue;
        }
        for (const Left& ended : left)
            if (ended.copies < fewest) return false;  // behind the rule it may be had for less
        count(out, trie_->tokens(node), fewest);
        for (size_t w = here.ways_begin; w < here.ways_end; ++w)
            if (machine_.has_left(ways[w].config)) left.push_back({node.depth, ways[w].copies});
        ++i;
    }
    return true;
}

/// After a walk that counted.
void TokenMasks::sort_tokens(Kept& kept) {
    kept.within.assign(1, 0);
    const auto each = [&](auto body) {
        for (size_t word = 0; word < kept.bits.size(); ++word)
            for (uint64_t bits = kept.bits[word]; bits != 0; bits &= bits - 1)
                body(word * 64 + static_cast<size_t>(std::countr_zero(bits)));
    };
    each([&](size_t id) {
        if (token_copies_[id] >= kept.within.size()) kept.within.resize(token_copies_[id] + size_t{1});
        ++kept.within[token_copies_[id]];
    });
    std::vector<size_t> next(kept.within.size());
    for (size_t copies = 1; copies < kept.within.size(); ++copies) {
        next[copies] = kept.within[copies - 1];
        kept.within[copies] += kept.within[copies - 1];
    }
    kept.tokens.resize(kept.within.back());
    each([&](size_t id) { kept.tokens[next[token_copies_[id]]++] = static_cast<int32_t>(id); });
    mask_bytes_ += kept.tokens.size() * sizeof(int32_t) + kept.open_copies.size() * sizeof(uint16_t);
}

TokenMasks::Kept& TokenMasks::inside(int32_t set) {
    set = machine_.like(set, trie_->longest());
    if (const auto known = inside_.find(set); known != inside_.end()) return *known->second;
    auto kept = new_kept();
    way_[0] = machine_.local(set, false);
    left_.clear();
    if (way_[0] != GrammarMachine::kDead) walk(0, static_cast<uint32_t>(trie_->nodes().size()), *kept, std::nullopt);
    mask_bytes_ += kept->open.size() * sizeof(OpenEnd);
    return *(inside_[set] = std::move(kept));  // not before: a walk may be given up
}

/// For this state of all copies of a run; null if copies cannot be counted.
TokenMasks::Kept* TokenMasks::inside_run(const GrammarMachine::InRun& place) {
    const std::pair key(place.run, place.state);
    if (const auto known = inside_runs_.find(key); known != inside_runs_.end()) return known->second.get();
    auto kept = new_kept();
    token_copies_.resize(trie_->words() * 64);
    if (walk_run(place, *kept)) {
        sort_tokens(*kept);
        mask_bytes_ += kept->open.size() * sizeof(OpenEnd);
    } else {
        kept.reset();
        mask_bytes_ -= new_kept_bytes();
    }
    return (inside_runs_[key] = std::move(kept)).get();
}

TokenMasks::Kept& TokenMasks::behind(Kept& kept, int32_t set) {
    set = machine_.like(set, trie_->longest());
    for (const auto& [known, next] : kept.behind)
        if (known == set) return *next;
    auto made = new_kept();
    Kept& out = *made;
    out.bits = kept.bits;
    for (size_t copies = 0, i = 0; i < kept.tokens.size(); ++i) {
        while (i >= kept.within[copies]) ++copies;
        token_copies_[static_cast<size_t>(kept.tokens[i])] = static_cast<uint16_t>(copies);
    }
    const int32_t begin = machine_.local(set, true);
    for (size_t e = 0; e < kept.open.size() && begin != GrammarMachine::kDead; ++e) {
        const OpenEnd& end = kept.open[e];
        const TokenTrie::Node& node = trie_->nodes()[end.node];
        const std::string_view path = trie_->path(end.node);
        left_.clear();
        way_[end.depth] = begin;
        for (uint16_t depth = end.depth; depth < node.depth; ++depth) {
            const int32_t config = way_[depth];
            if (config != GrammarMachine::kDead && machine_.has_left(config)) left_.push_back(depth);
            if (depth + 1 == node.depth) break;
            way_[depth + 1u] =
                config == GrammarMachine::kDead ? config : machine_.step(config, static_cast<uint8_t>(path[depth]));
        }
        walk(end.node, node.end, out, kept.counts() ? std::optional(kept.open_copies[e]) : std::nullopt);
    }
    if (kept.counts()) sort_tokens(out);
    mask_bytes_ += out.open.size() * sizeof(OpenEnd);
    kept.behind.emplace_back(set, std::move(made));
    return out;
}

/// Adds the tokens that begin at most `left` copies, where they are counted.
void TokenMasks::add(const Kept& kept, int32_t left, std::span<uint64_t> mask) {
    const auto most = static_cast<size_t>(left);
    std::span<const uint64_t> bits = kept.bits;
    if (kept.counts() && most + 1 < kept.within.size()) {
        const std::span<const int32_t> tokens = kept.tokens;
        const size_t few = kept.within[most];
        if (few < tokens.size() - few) {
            for (const int32_t id : tokens.first(few)) set_bit(mask, id);
            return;
        }
        few_.assign(bits.begin(), bits.end());
        for (const int32_t id : tokens.subspan(few)) clear_bit(few_, id);
        bits = few_;
    }
    for (size_t i = 0; i < mask.size(); ++i) mask[i] |= bits[i];
}

/// Adds what may follow in `kept` when the frame's callers go on; false if there are too many ways.
bool TokenMasks::combine(Kept& kept, int32_t left, int32_t frame, std::span<uint64_t> mask, int& budget) {
    if (--budget < 0) return false;
    if (kept.open.empty() || frame == GrammarMachine::kBottom) {
        add(kept, left, mask);
        return true;
    }
    for (const GrammarMachine::Item& item : machine_.returns(frame))
        if (!combine(behind(kept, item.set), left, item.frame, mask, budget)) return false;
    return true;
}

void TokenMasks::fill_slowly(int32_t config, std::span<uint64_t> mask) {
    const auto kept = new_kept();
    way_[0] = config;
    left_.clear();
    walk(0, static_cast<uint32_t>(trie_->nodes().size()), *kept, std::nullopt);
    std::copy(kept->bits.begin(), kept->bits.end(), mask.begin());
    mask_bytes_ -= new_kept_bytes();
}

void TokenMasks::fill(int32_t config, std::span<uint64_t> mask) {
    int budget = kMostWays;
    const std::span<const GrammarMachine::Item> items = machine_.items(config);
    bool is_done = true;
    for (size_t i = 0; i < items.size() && is_done; ++i) {
        const auto [set, frame] = items[i];
        for (const int32_t part : machine_.parts(set)) {
            const auto run = machine_.in_run(part);
            Kept* counted = run ? inside_run(*run) : nullptr;
            is_done = is_done &&
                      combine(counted != nullptr ? *counted : inside(part), run ? run->left : 0, frame, mask, budget);
        }
    }
    if (!is_done) fill_slowly(config, mask);
    for (size_t k = 0; k < named_.size(); ++k) {
        const int32_t marked = machine_.step(config, kTokenMark);
        if (marked == GrammarMachine::kDead) break;
        if (machine_.step(marked, static_cast<uint8_t>(k)) != GrammarMachine::kDead) set_bit(mask, named_[k]);
    }
}

std::span<const uint64_t> TokenMasks::mask(int32_t config) {
    work_allowed_ = std::min(work_allowed_ + kWorkPerMask, work() + kWorkAtOnce);
    if (const auto known = whole_.find(config); known != whole_.end()) return known->second;
    spare_.assign(trie_->words(), 0);
    fill(config, spare_);
    if (whole_.size() < kMostWhole) {
        mask_bytes_ += spare_.size() * sizeof(uint64_t);
        whole_order_.push_back(config);
        return whole_[config] = std::move(spare_);
    }
    auto node = whole_.extract(std::exchange(whole_order_[oldest_], config));
    oldest_ = (oldest_ + 1) % kMostWhole;
    node.key() = config;
    node.mapped().swap(spare_);
    return whole_.insert(std::move(node)).position->second;
}

void TokenMasks::prepare() {
    const int64_t end = work() + kPreparingWork;
    // One of all that differ in nothing but what lies around them, or in how often something may still be repeated.
    std::set<std::vector<std::tuple<int32_t, int32_t>>> met;
    const auto place = [this](int32_t set) {
        const auto run = machine_.in_run(set);
        return run ? std::tuple(-1 - run->run, run->state) : std::tuple(machine_.like(set, trie_->longest()), 0);
    };
    const auto is_new = [&](int32_t config) {
        std::vector<std::tuple<int32_t, int32_t>> sets;
        for (const GrammarMachine::Item& item : machine_.items(config))
            for (const int32_t part : machine_.parts(item.set)) sets.push_back(place(part));
        return met.insert(std::move(sets)).second;
    };
    std::vector<int32_t> configs = {machine_.start()};
    for (size_t i = 0; i < configs.size() && work() < end; ++i) {
        mask(configs[i]);
        for (int byte = 0; byte < 256; ++byte) {
            const int32_t next = machine_.step(configs[i], static_cast<uint8_t>(byte));
            if (next != GrammarMachine::kDead && is_new(next)) configs.push_back(next);
        }
    }
    work_allowed_ = std::max(work_allowed_, work() + kWorkAtOnce);
}

GrammarMatcher::GrammarMatcher(std::shared_ptr<TokenMasks> masks) : masks_(std::move(masks)) {}

/// Where the text stands, after forgetting if it is time to.
int32_t GrammarMatcher::config() {
    masks_->make_room();
    if (epoch_ == masks_->epoch()) return config_;
    GrammarMachine& machine = masks_->machine();
    config_ = machine.start();
    for (const char byte : text_) config_ = machine.step(config_, static_cast<uint8_t>(byte));
    epoch_ = masks_->epoch();
    return config_;
}

std::span<const uint64_t> GrammarMatcher::mask() { return masks_->mask(config()); }

bool GrammarMatcher::accept(int32_t id) {
    const auto bytes = masks_->bytes(id);
    if (!bytes) return false;
    int32_t next = config();
    for (const char byte : *bytes) {
        next = masks_->machine().step(next, static_cast<uint8_t>(byte));
        if (next == GrammarMachine::kDead) return false;
    }
    sizes_.push_back(text_.size());
    text_ += *bytes;
    config_ = next;
    return true;
}

void GrammarMatcher::roll_back(size_t tokens) {
    if (tokens == 0) return;
    text_.resize(sizes_[sizes_.size() - tokens]);
    sizes_.resize(sizes_.size() - tokens);
    epoch_ = kLost;
}

bool GrammarMatcher::is_complete() { return masks_->machine().is_complete(config()); }

bool GrammarMatcher::goes_on() { return masks_->machine().goes_on(config()); }

}  // namespace thermocline::text
