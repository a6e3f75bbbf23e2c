// Cuts text into the pieces that BPE works on, as the published regexes do, without a regex engine
// (prompt-encoding.md section 10.1). Ill-formed UTF-8 groups count as characters of no class and keep their bytes.
// A PieceScanner belongs to one thread; the functions are pure. Time is linear in the text.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace thermocline::text {

/// The known sets of split regexes. DeepSeek V3 and V4 share one.
enum class PreTokenizer { kDeepSeekV3 };

/// The set whose regexes are exactly these, in order (\r and \n raw or escaped), if it is known.
std::optional<PreTokenizer> pre_tokenizer_by_regexes(std::span<const std::string> regexes);

/// The set that a GGUF file calls by this `tokenizer.ggml.pre`, if it is known.
std::optional<PreTokenizer> pre_tokenizer_by_gguf_name(std::string_view name);

/// The pieces of a text for PreTokenizer::kDeepSeekV3, in order; together they are the text.
class PieceScanner {
public:
    explicit PieceScanner(std::string_view text);

    /// Writes the next piece; false at the end of the text.
    bool next(std::string_view& piece);

private:
    struct Char {
        uint8_t char_class;
        uint8_t length;  // 0 at the end of the segment
    };

    Char at(size_t pos) const;
    size_t skip(size_t pos, uint8_t classes) const;
    size_t skip_numbers(size_t pos) const;
    size_t match(size_t start) const;
    size_t match_space(size_t start) const;
    size_t match_gap(size_t start) const;

    std::string_view text_;
    const uint8_t* classes_;  // [0x110000]
    size_t pos_ = 0;
    uint8_t segment_ = 0;  // kNumber, kCjk or 0: which part of the first two splits holds the current piece
};

}  // namespace thermocline::text
