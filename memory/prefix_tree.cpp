#include "memory/prefix_tree.h"

#include "src/base/check.h"

#include <algorithm>
#include <utility>

namespace thermocline::memory {
namespace {

/// What a block or a mark takes besides its bytes and tokens, about.
constexpr int64_t kOverhead = 512;

int64_t size_of(const SharedBytes& bytes) { return bytes ? std::ssize(*bytes) : 0; }

}  // namespace

struct PrefixTree::Mark {
    Block* block;
    std::vector<int32_t> rest;  // tokens after the block's last, fewer than kBlockTokens
    SharedBytes entries;        // of the rest
    SharedBytes tail;
    uint64_t last_use;

    int64_t bytes() const { return size_of(entries) + size_of(tail) + 4 * std::ssize(rest) + kOverhead; }
};

struct PrefixTree::Block {
    Block* parent = nullptr;              // null: a root, which has no tokens
    const BlockTokens* tokens = nullptr;  // the key that it has in its parent
    int64_t end = 0;                      // position after its last token
    SharedBytes entries;
    std::map<BlockTokens, std::unique_ptr<Block>> children;
    std::vector<std::unique_ptr<Mark>> marks;

    int64_t bytes() const { return parent == nullptr ? 0 : size_of(entries) + 4 * kBlockTokens + kOverhead; }
};

PrefixTree::PrefixTree(int64_t budget) : budget_(budget) {}

PrefixTree::~PrefixTree() = default;

PrefixTree::BlockTokens PrefixTree::block_tokens(std::span<const int32_t> tokens, int64_t block) {
    BlockTokens out;
    std::copy_n(tokens.begin() + block * kBlockTokens, kBlockTokens, out.begin());
    return out;
}

/// The mark with the longest prefix of at most `limit` tokens.
PrefixTree::Mark* PrefixTree::find_mark(const std::string& salt, std::span<const int32_t> tokens, int64_t limit) {
    const auto root = roots_.find(salt);
    if (root == roots_.end()) return nullptr;
    tokens = tokens.first(static_cast<size_t>(std::min(limit, std::ssize(tokens))));
    Mark* best = nullptr;
    for (Block* block = root->second.get(); block != nullptr;) {
        const std::span<const int32_t> rest = tokens.subspan(static_cast<size_t>(block->end));
        for (const auto& mark : block->marks) {
            if (mark->rest.size() > rest.size() || !std::equal(mark->rest.begin(), mark->rest.end(), rest.begin()))
                continue;
            if (best == nullptr || best->block != block || best->rest.size() < mark->rest.size()) best = mark.get();
        }
        if (std::ssize(rest) < kBlockTokens) break;
        const auto child = block->children.find(block_tokens(rest, 0));
        block = child == block->children.end() ? nullptr : child->second.get();
    }
    return best;
}

StoredState PrefixTree::find(const std::string& salt, std::span<const int32_t> tokens, int64_t limit) {
    StoredState state;
    Mark* mark = find_mark(salt, tokens, limit);
    if (mark == nullptr) return state;
    mark->last_use = ++uses_;
    state.position = mark->block->end + std::ssize(mark->rest);
    if (mark->entries) state.entries.push_back(mark->entries);
    for (const Block* block = mark->block; block->parent != nullptr; block = block->parent)
        state.entries.push_back(block->entries);
    std::reverse(state.entries.begin(), state.entries.end());
    state.tail = mark->tail;
    return state;
}

void PrefixTree::put(const std::string& salt, std::span<const int32_t> tokens, const Source& source) {
    if (budget_ == 0 || tokens.empty()) return;
    Mark* known = find_mark(salt, tokens, std::ssize(tokens));
    if (known != nullptr && known->block->end + std::ssize(known->rest) == std::ssize(tokens)) {
        known->last_use = ++uses_;
        return;
    }
    std::unique_ptr<Block>& root = roots_[salt];
    if (!root) root = std::make_unique<Block>();
    Block* block = root.get();
    try {
        grow(block, tokens, source);
        const std::span<const int32_t> rest = tokens.subspan(static_cast<size_t>(block->end));
        auto mark = std::make_unique<Mark>(Mark{block, {rest.begin(), rest.end()}, nullptr, source.tail(), ++uses_});
        if (!rest.empty()) mark->entries = source.entries(block->end, std::ssize(tokens));
        marks_.reserve(marks_.size() + 1);
        block->marks.push_back(std::move(mark));
    } catch (...) {  // out of memory
        prune(block);
        throw;
    }
    Mark* added = block->marks.back().get();
    marks_.push_back(added);
    bytes_ += added->bytes();
    int64_t whole = added->bytes();
    for (const Block* at = block; at != nullptr; at = at->parent) whole += at->bytes();
    if (whole > budget_)
        drop(*added);
    else
        make_room(*added);
}

/// Moves `at` from the root to the last whole block of the tokens; makes what is missing. If the source throws, `at` is
/// the last block that is there.
void PrefixTree::grow(Block*& at, std::span<const int32_t> tokens, const Source& source) {
    for (int64_t i = 0; i < std::ssize(tokens) / kBlockTokens; ++i) {
        const BlockTokens key = block_tokens(tokens, i);
        if (const auto child = at->children.find(key); child != at->children.end()) {
            at = child->second.get();
            continue;
        }
        auto added = std::make_unique<Block>();
        added->parent = at;
        added->end = at->end + kBlockTokens;
        added->entries = source.entries(at->end, added->end);
        Block* next = added.get();
        next->tokens = &at->children.emplace(key, std::move(added)).first->first;
        bytes_ += next->bytes();
        at = next;
    }
}

void PrefixTree::forget(const std::string& salt, std::span<const int32_t> tokens) {
    while (Mark* mark = find_mark(salt, tokens, std::ssize(tokens))) drop(*mark);
}

void PrefixTree::clear() {
    marks_.clear();
    roots_.clear();
    bytes_ = 0;
}

/// Bytes of a mark and of the blocks that lead to nothing else.
int64_t PrefixTree::freed_by(const Mark& mark) const {
    int64_t bytes = mark.bytes();
    const Block* block = mark.block;
    if (block->marks.size() > 1 || !block->children.empty()) return bytes;
    for (; block->parent != nullptr; block = block->parent) {
        bytes += block->bytes();
        if (block->parent->children.size() > 1 || !block->parent->marks.empty()) break;
    }
    return bytes;
}

void PrefixTree::drop(Mark& mark) {
    Block* block = mark.block;
    bytes_ -= mark.bytes();
    std::erase(marks_, &mark);
    std::erase_if(block->marks, [&](const auto& one) { return one.get() == &mark; });
    prune(block);
}

/// Drops a block, and those above it, that lead to no mark.
void PrefixTree::prune(Block* block) {
    while (block->marks.empty() && block->children.empty()) {
        Block* parent = block->parent;
        if (parent == nullptr) {
            std::erase_if(roots_, [&](const auto& root) { return root.second.get() == block; });
            return;
        }
        bytes_ -= block->bytes();
        parent->children.erase(parent->children.find(*block->tokens));
        block = parent;
    }
}

/// Drops marks other than `kept` until the budget is kept.
void PrefixTree::make_room(const Mark& kept) {
    while (bytes_ > budget_) {
        Mark* victim = nullptr;
        double most = 0.0;
        for (Mark* mark : marks_) {
            if (mark == &kept) continue;
            const double gain = static_cast<double>(freed_by(*mark)) * static_cast<double>(uses_ - mark->last_use + 1);
            if (gain <= most) continue;
            most = gain;
            victim = mark;
        }
        CHECK(victim != nullptr);  // `kept` alone is within the budget
        drop(*victim);
    }
}

}  // namespace thermocline::memory
