// Remembers states of sequences by the tokens that led to them, so that a sequence that begins with the same tokens can
// go on from there (hybrid-engine.md 5.3, deepseek-v4.md 6.5). What it keeps are bytes; whoever asks makes and
// understands them. A tree over tokens in blocks of kBlockTokens: a block carries the entries that its tokens complete,
// once for all sequences that begin so; a mark on it is a position at which a sequence can go on, and carries the rest:
// the tokens after the block's end, their entries, and the tail (window rings and compressor states).
//
// Marks are dropped when there are too many bytes: first the one with the most bytes times the longest time without
// use. Blocks that lead to no mark go with it. Bytes that were handed out live on as long as they are held. One thread.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace thermocline::memory {

using SharedBytes = std::shared_ptr<const std::vector<std::byte>>;

/// A state: the entries of tokens [0, position) in order, in pieces, and the tail at position.
struct StoredState {
    int64_t position = 0;  // 0: none
    std::vector<SharedBytes> entries;
    SharedBytes tail;
};

class PrefixTree {
public:
    static constexpr int64_t kBlockTokens = 128;

    /// Holds at most `budget` bytes; 0: nothing at all.
    explicit PrefixTree(int64_t budget);
    PrefixTree(const PrefixTree&) = delete;
    PrefixTree& operator=(const PrefixTree&) = delete;
    ~PrefixTree();

    /// The longest state of a prefix of at most `limit` of the tokens, stored with the same salt.
    StoredState find(const std::string& salt, std::span<const int32_t> tokens, int64_t limit);

    /// How the bytes of a new state are made.
    struct Source {
        std::function<SharedBytes(int64_t begin, int64_t end)> entries;  // of tokens [begin, end)
        std::function<SharedBytes()> tail;                               // at the last token
    };
    /// Stores the state after all the tokens, unless it is there already, or is larger than the budget.
    void put(const std::string& salt, std::span<const int32_t> tokens, const Source& source);
    /// Drops all states of prefixes of the tokens.
    void forget(const std::string& salt, std::span<const int32_t> tokens);
    void clear();

    int64_t bytes() const { return bytes_; }
    int64_t marks() const { return static_cast<int64_t>(marks_.size()); }

private:
    struct Mark;
    struct Block;
    using BlockTokens = std::array<int32_t, kBlockTokens>;
    static BlockTokens block_tokens(std::span<const int32_t> tokens, int64_t block);

    Mark* find_mark(const std::string& salt, std::span<const int32_t> tokens, int64_t limit);
    void grow(Block*& at, std::span<const int32_t> tokens, const Source& source);
    int64_t freed_by(const Mark& mark) const;
    void drop(Mark& mark);
    void prune(Block* block);
    void make_room(const Mark& kept);

    const int64_t budget_;
    int64_t bytes_ = 0;
    uint64_t uses_ = 0;                                    // the clock of recency
    std::map<std::string, std::unique_ptr<Block>> roots_;  // by salt
    std::vector<Mark*> marks_;                             // all
};

}  // namespace thermocline::memory
