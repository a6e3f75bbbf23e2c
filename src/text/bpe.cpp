#include "src/text/bpe.h"

#include "src/base/error.h"
#include "src/text/unicode.h"

#include <algorithm>
#include <bit>
#include <functional>

namespace thermocline::text {

namespace {

/// Code point -> byte for the byte alphabet; code points from 0x144 on are not in it. -1 marks a hole below.
constexpr std::array<int16_t, 0x144> kAlphabetBytes = [] {
    std::array<int16_t, 0x144> table{};
    table.fill(-1);
    int next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
        const bool same = (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
        table[same ? byte : next++] = static_cast<int16_t>(byte);
    }
    return table;
}();

/// At least twice the entries, so that probing stays short.
size_t slots_for(size_t entries) { return std::bit_ceil(std::max<size_t>(16, entries * 2)); }

}  // namespace

std::optional<std::string> bytes_from_alphabet(std::string_view text) {
    std::string bytes;
    for (size_t pos = 0; pos < text.size();) {
        const Utf8Char c = decode_utf8(text, pos);
        if (c.status != Utf8Char::kValid || c.code_point >= kAlphabetBytes.size()) return {};
        const int byte = kAlphabetBytes[c.code_point];
        if (byte < 0) return {};
        bytes += static_cast<char>(byte);
        pos += c.length;
    }
    return bytes;
}

Bpe::Bpe(const std::vector<std::string>& tokens, const std::vector<std::pair<std::string, std::string>>& merges) {
    add_tokens(tokens);
    add_merges(merges);
    Scratch scratch;
    for (Token& token : tokens_) {
        merge_all(token.bytes, scratch);
        token.encodes_to_itself = scratch.symbols[0].next < 0 && scratch.symbols[0].id == token.id;
    }
}

void Bpe::add_tokens(const std::vector<std::string>& tokens) {
    token_slots_.assign(slots_for(tokens.size()), -1);
    for (size_t id = 0; id < tokens.size(); ++id) {
        std::optional<std::string> bytes = bytes_from_alphabet(tokens[id]);
        if (!bytes || bytes->empty()) continue;
        const size_t slot = token_slot(*bytes);
        if (token_slots_[slot] >= 0) {
            fail("tokenizer: ids ", tokens_[token_slots_[slot]].id, " and ", id, " are both '", printable(tokens[id]),
                 "', expected different tokens");
        }
        token_slots_[slot] = static_cast<int32_t>(tokens_.size());
        longest_token_ = std::max(longest_token_, bytes->size());
        tokens_.push_back({std::move(*bytes), static_cast<int32_t>(id), false});
    }
    for (int byte = 0; byte < 256; ++byte) {
        const char text = static_cast<char>(byte);
        const std::optional<int32_t> id = find({&text, 1});
        if (!id) fail("tokenizer: no token for the single byte ", byte, ", expected one for each of the 256 bytes");
        byte_ids_[byte] = *id;
    }
}

void Bpe::add_merges(const std::vector<std::pair<std::string, std::string>>& merges) {
    merge_slots_.assign(slots_for(merges.size()), Merge{});
    for (size_t i = 0; i < merges.size(); ++i) {
        const auto& [left, right] = merges[i];
        const auto left_id = static_cast<uint64_t>(id_of_part(left, i));
        const auto right_id = static_cast<uint64_t>(id_of_part(right, i));
        const uint64_t pair = left_id << 32 | right_id;
        // A pair listed twice takes its later rank, as in HF tokenizers.
        merge_slots_[merge_slot(pair)] = {pair, static_cast<int32_t>(i), id_of_part(left + right, i)};
    }
}

int32_t Bpe::id_of_part(const std::string& part, size_t merge_index) const {
    const std::optional<std::string> bytes = bytes_from_alphabet(part);
    const std::optional<int32_t> id = bytes ? find(*bytes) : std::nullopt;
    if (!id) {
        fail("tokenizer: merge ", merge_index, " needs '", printable(part),
             "', expected a token of the vocabulary in the byte alphabet");
    }
    return *id;
}

size_t Bpe::token_slot(std::string_view bytes) const {
    const size_t mask = token_slots_.size() - 1;
    size_t slot = std::hash<std::string_view>{}(bytes)&mask;
    while (token_slots_[slot] >= 0 && tokens_[token_slots_[slot]].bytes != bytes) slot = (slot + 1) & mask;
    return slot;
}

size_t Bpe::merge_slot(uint64_t pair) const {
    const size_t mask = merge_slots_.size() - 1;
    // Multiplicative hashing; the top bits of the product are the well-mixed ones.
    size_t slot = (pair * 0x9E3779B97F4A7C15u) >> 32 & mask;
    while (merge_slots_[slot].pair != pair && merge_slots_[slot].pair != kNoPair) slot = (slot + 1) & mask;
    return slot;
}

const Bpe::Merge& Bpe::merge_of(int32_t left, int32_t right) const {
    return merge_slots_[merge_slot(static_cast<uint64_t>(left) << 32 | static_cast<uint64_t>(right))];
}

std::optional<int32_t> Bpe::find(std::string_view bytes) const {
    const int32_t index = token_slots_[token_slot(bytes)];
    return index < 0 ? std::nullopt : std::optional(tokens_[index].id);
}

void Bpe::encode(std::string_view piece, Scratch& scratch, std::vector<int32_t>& ids) const {
    if (piece.empty()) return;
    if (piece.size() <= longest_token_) {
        const int32_t index = token_slots_[token_slot(piece)];
        if (index >= 0 && tokens_[index].encodes_to_itself) {
            ids.push_back(tokens_[index].id);
            return;
        }
    }
    merge_all(piece, scratch);
    for (int32_t i = 0; i >= 0; i = scratch.symbols[i].next) ids.push_back(scratch.symbols[i].id);
}

/// Looks up the merge of symbol `left` with its successor and queues it.
void Bpe::rank_pair(size_t left, Scratch& scratch) const {
    Scratch::Symbol& symbol = scratch.symbols[left];
    symbol.rank = kNoRank;
    if (symbol.next < 0) return;
    symbol.rank = merge_of(symbol.id, scratch.symbols[symbol.next].id).rank;
    if (symbol.rank == kNoRank) return;
    scratch.heap.push_back(static_cast<uint64_t>(symbol.rank) << 32 | left);
}

/// Leaves the tokens of `piece` as a linked list that starts at symbols[0]. O(n log n): a megabyte of one letter is one
/// piece, and anybody may send it.
void Bpe::merge_all(std::string_view piece, Scratch& scratch) const {
    auto& symbols = scratch.symbols;
    auto& heap = scratch.heap;
    const auto size = static_cast<int32_t>(piece.size());
    symbols.resize(piece.size());
    heap.clear();
    for (int32_t i = 0; i < size; ++i) {
        symbols[i] = {byte_ids_[static_cast<uint8_t>(piece[i])], i - 1, i + 1 < size ? i + 1 : -1, kNoRank};
    }
    for (size_t i = 0; i < symbols.size(); ++i) rank_pair(i, scratch);
    std::make_heap(heap.begin(), heap.end(), std::greater<>{});

    const auto requeue = [&](int32_t left) {
        const size_t before = heap.size();
        rank_pair(static_cast<size_t>(left), scratch);
        if (heap.size() > before) std::push_heap(heap.begin(), heap.end(), std::greater<>{});
    };
    while (!heap.empty()) {
        const uint64_t best = heap.front();
        std::pop_heap(heap.begin(), heap.end(), std::greater<>{});
        heap.pop_back();
        const auto left = static_cast<int32_t>(best & 0xFFFFFFFF);
        Scratch::Symbol& symbol = symbols[left];
        // A symbol's ids only grow, so one rank names one pair at one place: an unequal rank is a stale entry.
        if (symbol.rank != static_cast<int32_t>(best >> 32)) continue;
        Scratch::Symbol& gone = symbols[symbol.next];
        symbol.id = merge_of(symbol.id, gone.id).id;
        symbol.next = gone.next;
        gone.rank = kNoRank;
        if (symbol.next >= 0) symbols[symbol.next].previous = left;
        requeue(left);
        if (symbol.previous >= 0) requeue(symbol.previous);
    }
}

}  // namespace thermocline::text
