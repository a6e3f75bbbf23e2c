#include "src/text/token_trie.h"

#include "src/base/check.h"
#include "src/text/grammar.h"

#include <algorithm>

namespace thermocline::text {

namespace {

constexpr size_t kLongest = 1024;  // longer tokens are left out: none is known

}  // namespace

TokenTrie::TokenTrie(const Tokenizer& tokenizer, int64_t vocab)
    : tokenizer_(tokenizer), words_(static_cast<size_t>((vocab + 63) / 64)) {
    CHECK(vocab >= tokenizer.vocab_size());
    for (int32_t id = 0; id < tokenizer.vocab_size(); ++id) {
        const std::string& bytes = tokenizer.token_bytes(id);
        const bool fits = !bytes.empty() && bytes.size() <= kLongest;
        if (fits && !tokenizer.is_added(id) && bytes.find(static_cast<char>(kTokenMark)) == std::string::npos)
            ids_.push_back(id);
    }
    std::sort(ids_.begin(), ids_.end(), [&](int32_t a, int32_t b) {
        const std::string &x = tokenizer.token_bytes(a), &y = tokenizer.token_bytes(b);
        return x != y ? x < y : a < b;
    });
    std::vector<size_t> way;  // nodes from the root to the last token
    const auto close_below = [&](size_t depth) {
        for (; way.size() > depth; way.pop_back()) nodes_[way.back()].end = static_cast<uint32_t>(nodes_.size());
    };
    for (size_t i = 0; i < ids_.size(); ++i) {
        const std::string& bytes = tokenizer.token_bytes(ids_[i]);
        size_t common = 0;
        while (common < std::min(way.size(), bytes.size()) &&
               nodes_[way[common]].byte == static_cast<uint8_t>(bytes[common]))
            ++common;
        close_below(common);
        for (; common < bytes.size(); ++common) {
            way.push_back(nodes_.size());
            nodes_.push_back({static_cast<int32_t>(i), 0, 0, static_cast<uint16_t>(common + 1),
                              static_cast<uint8_t>(bytes[common])});
        }
        ++nodes_[way.back()].tokens;
        longest_ = std::max(longest_, static_cast<int32_t>(bytes.size()));
    }
    close_below(0);
}

/// Every node begins its token list with the first token at or below it.
std::string_view TokenTrie::path(size_t node) const {
    const std::string& bytes = tokenizer_.token_bytes(ids_[static_cast<size_t>(nodes_[node].first_token)]);
    return std::string_view(bytes).substr(0, nodes_[node].depth);
}

}  // namespace thermocline::text
