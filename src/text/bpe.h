// Byte-level byte-pair encoding: joins the adjacent pair of lowest merge rank, leftmost first, until none is left.
// Immutable after construction, so encode may run on any thread; each caller brings its own Scratch.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace thermocline::text {

/// The bytes that a string of the byte alphabet stands for (prompt-encoding.md section 10.2); nothing if it has a
/// character outside the alphabet.
std::optional<std::string> bytes_from_alphabet(std::string_view text);

class Bpe {
public:
    /// Work memory of encode, kept between calls to save allocations.
    struct Scratch {
        struct Symbol {
            int32_t id;
            int32_t previous;  // index of the neighbours, -1 at the ends
            int32_t next;
            int32_t rank;  // of the pair (this, next); kNoRank when there is none or this symbol is gone
        };
        std::vector<Symbol> symbols;
        std::vector<uint64_t> heap;  // rank << 32 | index of the left symbol; stale entries are skipped
    };

    /// `tokens`: strings of the byte alphabet by id; empty strings and strings outside the alphabet are no part of BPE.
    /// `merges`: pairs of such strings, lowest rank first. Throws Error if a byte has no token, two ids share a string,
    /// or a merge names or makes a string that is no token.
    Bpe(const std::vector<std::string>& tokens, const std::vector<std::pair<std::string, std::string>>& merges);

    /// Appends the ids of one piece. The piece is shorter than 2^31 bytes.
    void encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const;

    /// The id of the token that stands for exactly these bytes.
    std::optional<int32_t> find(std::string_view bytes) const;

private:
    static constexpr int32_t kNoRank = -1;

    struct Merge {
        uint64_t pair = kNoPair;  // left id << 32 | right id
        int32_t rank = kNoRank;
        int32_t id = 0;
    };
    static constexpr uint64_t kNoPair = ~uint64_t{0};

    void add_tokens(const std::vector<std::string>& tokens);
    void add_merges(const std::vector<std::pair<std::string, std::string>>& merges);
    int32_t id_of_part(const std::string& part, size_t merge_index) const;
    size_t token_slot(std::string_view bytes) const;
    size_t merge_slot(uint64_t pair) const;
    const Merge& merge_of(int32_t left, int32_t right) const;
    void rank_pair(size_t left, Scratch& scratch) const;
    void merge_all(std::string_view piece, Scratch& scratch) const;

    struct Token {
        std::string bytes;
        int32_t id;
        bool encodes_to_itself;  // merging its bytes ends in this one token
    };
    std::vector<Token> tokens_;
    std::vector<int32_t> token_slots_;  // open addressing over tokens_; -1 is free. Size a power of two
    std::vector<Merge> merge_slots_;    // likewise
    std::array<int32_t, 256> byte_ids_{};
    size_t longest_token_ = 0;  // bytes
};

}  // namespace thermocline::text
