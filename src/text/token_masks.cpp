#include "src/text/token_masks.h"

#include "src/base/error.h"

#include <algorithm>
#include <set>

namespace thermocline::text {

namespace {

/// Ways outwards that are followed for one mask; grammars that need more are ambiguous beyond use.
constexpr int kMostWays = 256;

constexpr size_t kMostWhole = 256;  // masks kept whole
constexpr size_t kTimesKept = 4;    // what is kept may grow to this many times its bound within one walk

void set_bit(std::span<uint64_t> mask, int32_t id) {
    mask[static_cast<size_t>(id) / 64] |= uint64_t{1} << static_cast<size_t>(id) % 64;
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
    whole_.clear();
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
    mask_bytes_ += sizeof(Kept) + kept->bits.size() * sizeof(uint64_t);
    return kept;
}

void TokenMasks::check_work() const {
    if (work() > work_allowed_ || machine_.size_bytes() > kTimesKept * std::max(kept_bytes_, kKeptBytes))
        fail("grammar: takes too long to follow: expected smaller counts, and fewer ways to read the same text");
}

/// Judges the tokens at [begin, end), the nodes below one; way_ and left_ hold the way to it.
void TokenMasks::walk(uint32_t begin, uint32_t end, Kept& out) {
    const std::span<const TokenTrie::Node> nodes = trie_->nodes();
    for (uint32_t i = begin; i < end;) {
        const TokenTrie::Node& node = nodes[i];
        while (!left_.empty() && left_.back() >= node.depth) left_.pop_back();
        ++nodes_walked_;
        check_work();
        const int32_t parent = way_[node.depth - 1u];
        const int32_t config = parent == GrammarMachine::kDead ? parent : machine_.step(parent, node.byte);
        if (config == GrammarMachine::kDead) {
            for (const uint16_t depth : left_) out.open.push_back({i, depth});
            i = node.end;
            continue;
        }
        way_[node.depth] = config;
        for (const int32_t id : trie_->tokens(node)) set_bit(out.bits, id);
        if (machine_.has_left(config)) left_.push_back(node.depth);
        ++i;
    }
}

TokenMasks::Kept& TokenMasks::inside(int32_t set) {
    set = machine_.like(set, trie_->longest());
    if (const auto known = inside_.find(set); known != inside_.end()) return *known->second;
    auto kept = new_kept();
    way_[0] = machine_.local(set, false);
    left_.clear();
    if (way_[0] != GrammarMachine::kDead) walk(0, static_cast<uint32_t>(trie_->nodes().size()), *kept);
    mask_bytes_ += kept->open.size() * sizeof(OpenEnd);
    return *(inside_[set] = std::move(kept));  // not before: a walk may be given up
}

TokenMasks::Kept& TokenMasks::behind(Kept& kept, int32_t set) {
    set = machine_.like(set, trie_->longest());
    for (const auto& [known, next] : kept.behind)
        if (known == set) return *next;
    auto made = new_kept();
    Kept& out = *made;
    out.bits = kept.bits;
    const int32_t begin = machine_.local(set, true);
    for (const OpenEnd& end : kept.open) {
        if (begin == GrammarMachine::kDead) break;
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
        walk(end.node, node.end, out);
    }
    mask_bytes_ += out.open.size() * sizeof(OpenEnd);
    kept.behind.emplace_back(set, std::move(made));
    return out;
}

/// Adds what may follow in `kept` when the frame's callers go on; false if there are too many ways.
bool TokenMasks::combine(Kept& kept, int32_t frame, std::span<uint64_t> mask, int& budget) {
    if (--budget < 0) return false;
    if (kept.open.empty() || frame == GrammarMachine::kBottom) {
        for (size_t i = 0; i < mask.size(); ++i) mask[i] |= kept.bits[i];
        return true;
    }
    for (const GrammarMachine::Item& item : machine_.returns(frame))
        if (!combine(behind(kept, item.set), item.frame, mask, budget)) return false;
    return true;
}

void TokenMasks::fill_slowly(int32_t config, std::span<uint64_t> mask) {
    const auto kept = new_kept();
    way_[0] = config;
    left_.clear();
    walk(0, static_cast<uint32_t>(trie_->nodes().size()), *kept);
    std::copy(kept->bits.begin(), kept->bits.end(), mask.begin());
    mask_bytes_ -= sizeof(Kept) + kept->bits.size() * sizeof(uint64_t);
}

void TokenMasks::fill(int32_t config, std::span<uint64_t> mask) {
    int budget = kMostWays;
    const std::span<const GrammarMachine::Item> items = machine_.items(config);
    bool is_done = true;
    for (size_t i = 0; i < items.size() && is_done; ++i)
        is_done = combine(inside(items[i].set), items[i].frame, mask, budget);
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
    const size_t size = trie_->words() * sizeof(uint64_t);
    if (whole_.size() >= kMostWhole) {
        mask_bytes_ -= whole_.size() * size;
        whole_.clear();
    }
    std::vector<uint64_t> made(trie_->words());
    fill(config, made);
    mask_bytes_ += size;
    return whole_[config] = std::move(made);
}

void TokenMasks::prepare() {
    const int64_t end = work() + kPreparingWork;
    // One of all that differ in nothing but what lies around them, or in how often something may still be repeated.
    std::set<std::vector<int32_t>> met;
    const auto is_new = [&](int32_t config) {
        std::vector<int32_t> sets;
        for (const GrammarMachine::Item& item : machine_.items(config))
            sets.push_back(machine_.like(item.set, trie_->longest()));
        return met.insert(std::move(sets)).second;
    };
    std::vector<int32_t> configs = {machine_.start()};
    for (size_t i = 0; i < configs.size() && work() < end && whole_.size() < kMostWhole / 2; ++i) {
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
