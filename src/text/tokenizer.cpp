#include "src/text/tokenizer.h"

#include "src/base/error.h"
#include "src/text/unicode.h"

#include <algorithm>
#include <limits>

namespace thermocline::text {

namespace {

std::vector<std::pair<std::string, int32_t>> matchable(const TokenizerData& data, bool normalized) {
    std::vector<std::pair<std::string, int32_t>> tokens;
    for (const AddedToken& token : data.added_tokens) {
        if (token.normalized == normalized && !token.content.empty()) tokens.emplace_back(token.content, token.id);
    }
    return tokens;
}

/// Calls `matched(id)` for each added token, leftmost and longest first, and `between(text)` for what lies between.
template <typename Matched, typename Between>
void split(const AddedTokenMatcher& tokens, std::string_view text, Matched&& matched, Between&& between) {
    size_t start = 0;
    for (size_t pos = 0; pos < text.size();) {
        const auto match = tokens.match_at(text, pos);
        if (!match) {
            ++pos;
            continue;
        }
        if (pos > start) between(text.substr(start, pos - start));
        matched(match->id);
        pos += match->length;
        start = pos;
    }
    if (start < text.size()) between(text.substr(start));
}

void check_id(std::optional<int32_t> id, const char* what, int32_t vocab_size) {
    if (id && (*id < 0 || *id >= vocab_size)) {
        fail("tokenizer: ", what, " id is ", *id, ", expected 0 to ", vocab_size - 1);
    }
}

}  // namespace

AddedTokenMatcher::AddedTokenMatcher(std::vector<std::pair<std::string, int32_t>> tokens) : tokens_(std::move(tokens)) {
    std::sort(tokens_.begin(), tokens_.end());
    for (size_t i = 1; i < tokens_.size(); ++i) {
        if (tokens_[i].first == tokens_[i - 1].first) {
            fail("tokenizer: ids ", tokens_[i - 1].second, " and ", tokens_[i].second, " are both the added token '",
                 printable(tokens_[i].first), "', expected different tokens");
        }
    }
    for (const auto& [text, id] : tokens_) ++first_byte_[static_cast<uint8_t>(text[0]) + 1];
    for (size_t b = 1; b < first_byte_.size(); ++b) first_byte_[b] += first_byte_[b - 1];
}

std::optional<AddedTokenMatcher::Match> AddedTokenMatcher::match_at(std::string_view text, size_t pos) const {
    const auto first = static_cast<uint8_t>(text[pos]);
    auto low = tokens_.begin() + first_byte_[first];
    auto high = tokens_.begin() + first_byte_[first + 1];
    std::optional<Match> longest;
    // [low, high) are the tokens that begin with text[pos, pos + depth); one that ends there sorts first.
    for (size_t depth = 1; low != high; ++depth) {
        if (low->first.size() == depth) {
            longest = Match{depth, low->second};
            ++low;
        }
        if (pos + depth >= text.size()) break;
        const auto next = static_cast<uint8_t>(text[pos + depth]);
        const auto byte_at = [&](const auto& token) { return static_cast<uint8_t>(token.first[depth]); };
        low = std::partition_point(low, high, [&](const auto& token) { return byte_at(token) < next; });
        high = std::partition_point(low, high, [&](const auto& token) { return byte_at(token) == next; });
    }
    return longest;
}

Tokenizer::Tokenizer(TokenizerData data)
    : bpe_(data.tokens, data.merges),
      literal_tokens_(matchable(data, false)),
      normalized_tokens_(matchable(data, true)),
      bos_id_(data.bos_id),
      eos_id_(data.eos_id),
      add_bos_(data.add_bos) {
    set_bytes(data);
    check_id(bos_id_, "BOS", vocab_size());
    check_id(eos_id_, "EOS", vocab_size());
    if (add_bos_ && !bos_id_) fail("tokenizer: add_bos is true but there is no BOS token");
}

void Tokenizer::set_bytes(const TokenizerData& data) {
    size_t size = data.tokens.size();
    for (const AddedToken& token : data.added_tokens) {
        if (token.id < 0 || token.id >= kMaxVocabulary) {
            fail("tokenizer: added token '", printable(token.content), "' has id ", token.id, ", expected 0 to ",
                 kMaxVocabulary - 1);
        }
        size = std::max(size, static_cast<size_t>(token.id) + 1);
    }
    if (size > kMaxVocabulary) fail("tokenizer: ", size, " tokens, expected at most ", kMaxVocabulary);
    bytes_.resize(size);
    kinds_.assign(size, kModel);
    for (size_t id = 0; id < data.tokens.size(); ++id) {
        // A token outside the byte alphabet stands for its own text.
        bytes_[id] = bytes_from_alphabet(data.tokens[id]).value_or(data.tokens[id]);
    }
    for (const AddedToken& token : data.added_tokens) {
        if (!bytes_[token.id].empty() && bytes_[token.id] != token.content) {
            fail("tokenizer: id ", token.id, " is both '", printable(bytes_[token.id]), "' and the added token '",
                 printable(token.content), "', expected one token");
        }
        bytes_[token.id] = token.content;
        kinds_[token.id] = token.special ? kSpecial : kAdded;
    }
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool parse_special) const {
    if (text.size() > static_cast<size_t>(std::numeric_limits<int32_t>::max())) {
        fail("text of ", text.size(), " bytes, expected less than 2 GiB");
    }
    std::vector<int32_t> ids;
    ids.reserve(text.size() / 4 + 8);
    Bpe::Scratch scratch;
    const auto plain = [&](std::string_view part) { encode_plain(part, scratch, ids); };
    const auto matched = [&](int32_t id) { ids.push_back(id); };
    if (!parse_special) {
        plain(text);
        return ids;
    }
    split(literal_tokens_, text, matched,
          [&](std::string_view part) { split(normalized_tokens_, part, matched, plain); });
    return ids;
}

void Tokenizer::encode_plain(std::string_view text, Bpe::Scratch& scratch, std::vector<int32_t>& ids) const {
    PieceScanner pieces(text);
    std::string_view piece;
    while (pieces.next(piece)) bpe_.encode(piece, scratch, ids);
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special) const {
    std::string bytes;
    for (const int32_t id : ids) {
        if (!(skip_special && is_special(id))) bytes += token_bytes(id);
    }
    return to_valid_utf8(bytes);
}

const std::string& Tokenizer::token_bytes(int32_t id) const {
    static const std::string kNone;
    return has(id) ? bytes_[id] : kNone;
}

std::optional<int32_t> Tokenizer::token_id(std::string_view text) const {
    if (text.empty()) return {};
    for (const AddedTokenMatcher* tokens : {&literal_tokens_, &normalized_tokens_}) {
        const auto match = tokens->match_at(text, 0);
        if (match && match->length == text.size()) return match->id;
    }
    return bpe_.find(text);
}

}  // namespace thermocline::text
