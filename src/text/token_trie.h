// The tokens of a vocabulary as a tree of their bytes, in one array, a node in front of its children. Immutable, any
// thread; the tokenizer must outlive it. Added tokens are not in it (a grammar names those that it wants), nor tokens
// with the byte kTokenMark.
#pragma once

#include "src/text/tokenizer.h"

#include <cstdint>
#include <span>
#include <vector>

namespace thermocline::text {

class TokenTrie {
public:
    struct Node {
        int32_t first_token, tokens;  // that end here: a part of ids_
        uint32_t end;                 // behind the last node below this one
        uint16_t depth;               // bytes from the root, this one included
        uint8_t byte;
    };

    /// `vocab`: rows of the model's output, at least those of the tokenizer.
    TokenTrie(const Tokenizer& tokenizer, int64_t vocab);

    const Tokenizer& tokenizer() const { return tokenizer_; }
    std::span<const Node> nodes() const { return nodes_; }
    std::span<const int32_t> tokens(const Node& node) const {
        return std::span(ids_).subspan(static_cast<size_t>(node.first_token), static_cast<size_t>(node.tokens));
    }
    /// The bytes on the way to a node.
    std::string_view path(size_t node) const;
    /// Bytes of the longest token.
    int32_t longest() const { return longest_; }
    /// 64-bit words of a mask.
    size_t words() const { return words_; }

private:
    const Tokenizer& tokenizer_;
    std::vector<Node> nodes_;
    std::vector<int32_t> ids_;  // by bytes
    int32_t longest_ = 0;
    size_t words_;
};

}  // namespace thermocline::text
