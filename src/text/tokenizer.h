// Text <-> token ids: added tokens matched literally, the rest cut into pieces and byte-pair encoded
// (prompt-encoding.md section 10). A Tokenizer is immutable; const methods may run on any thread at once.
#pragma once

#include "src/text/bpe.h"
#include "src/text/pre_tokenizer.h"

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace thermocline::text {

struct AddedToken {
    int32_t id;
    std::string content;
    bool special;     // left out by decode(skip_special)
    bool normalized;  // HF matches these only where no other added token matched
};

/// A vocabulary as read from a file. Built by tokenizer_json.h or tokenizer_gguf.h.
struct TokenizerData {
    std::vector<std::string> tokens;                          // by id, in the byte alphabet; "" where no token is
    std::vector<std::pair<std::string, std::string>> merges;  // in rank order, in the byte alphabet
    std::vector<AddedToken> added_tokens;                     // literal UTF-8; may repeat ids of `tokens`
    PreTokenizer pre_tokenizer = PreTokenizer::kDeepSeekV3;
    std::optional<int32_t> bos_id;
    std::optional<int32_t> eos_id;
    bool add_bos = false;  // for raw text; a chat prompt brings its own BOS
};

/// No file may name an id from here on (the largest published vocabularies have 262144).
inline constexpr int32_t kMaxVocabulary = 1 << 20;

/// Finds added tokens in text.
class AddedTokenMatcher {
public:
    struct Match {
        size_t length;  // bytes
        int32_t id;
    };

    explicit AddedTokenMatcher(std::vector<std::pair<std::string, int32_t>> tokens);

    /// The longest token that starts at `pos`.
    std::optional<Match> match_at(std::string_view text, size_t pos) const;

private:
    std::vector<std::pair<std::string, int32_t>> tokens_;  // sorted by text: used as a trie
    std::array<uint32_t, 257> first_byte_{};               // tokens_[first_byte_[b], first_byte_[b + 1]) start with b
};

class Tokenizer {
public:
    /// Throws Error if the data is no usable vocabulary.
    explicit Tokenizer(TokenizerData data);

    /// Ids of `text`; no BOS is added. With `parse_special` false, added tokens in the text are ordinary text.
    /// Any bytes are accepted: ill-formed UTF-8 is kept byte for byte. Throws Error on 2 GiB or more.
    std::vector<int32_t> encode(std::string_view text, bool parse_special = true) const;

    /// Valid UTF-8 text, U+FFFD for ill-formed groups. Ids without a token add nothing.
    std::string decode(std::span<const int32_t> ids, bool skip_special = false) const;

    /// The exact bytes of a token; empty for an id without a token (models may have more rows than tokens).
    const std::string& token_bytes(int32_t id) const;

    /// The id of the token that is exactly `text`; added tokens first.
    std::optional<int32_t> token_id(std::string_view text) const;

    /// Largest id + 1.
    int32_t vocab_size() const { return static_cast<int32_t>(bytes_.size()); }

    /// Marked special (GGUF: control) in the file. DeepSeek-V4's tokenizer.json marks <｜User｜> or <think> as not
    /// special, its GGUF files do: use is_added or the id itself where that matters.
    bool is_special(int32_t id) const { return has(id) && kinds_[id] == kSpecial; }
    bool is_added(int32_t id) const { return has(id) && kinds_[id] != kModel; }

    std::optional<int32_t> bos_id() const { return bos_id_; }
    std::optional<int32_t> eos_id() const { return eos_id_; }
    bool add_bos() const { return add_bos_; }

private:
    enum Kind : uint8_t { kModel, kAdded, kSpecial };

    bool has(int32_t id) const { return id >= 0 && id < vocab_size(); }
    void set_bytes(const TokenizerData& data);
    void encode_plain(std::string_view text, Bpe::Scratch& scratch, std::vector<int32_t>& ids) const;

    Bpe bpe_;
    AddedTokenMatcher literal_tokens_;     // tried first
    AddedTokenMatcher normalized_tokens_;  // then these, in the text between
    std::vector<std::string> bytes_;       // by id
    std::vector<Kind> kinds_;              // by id
    std::optional<int32_t> bos_id_;
    std::optional<int32_t> eos_id_;
    bool add_bos_;
};

}  // namespace thermocline::text
