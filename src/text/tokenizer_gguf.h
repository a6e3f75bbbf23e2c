// The vocabulary of a GGUF file from its metadata values (prompt-encoding.md section 10.3). Takes plain values, so that
// this room does not know the file format. Pure function, any thread.
#pragma once

#include "src/text/tokenizer.h"

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace thermocline::text {

/// Values of the `tokenizer.ggml.*` keys; a missing key leaves the field as it is here.
struct GgufTokenizer {
    std::string model{};                 // "gpt2" is byte-level BPE
    std::string pre{};                   // which pre-tokenizer: "deepseek-v3", "joyai-llm", ...
    std::vector<std::string> tokens{};   // by id
    std::vector<int32_t> token_types{};  // by id: 1 normal, 3 control, 4 user defined, 5 unused; empty = all normal
    std::vector<std::string> merges{};   // "a b", lowest rank first
    std::optional<int64_t> bos_id{};
    std::optional<int64_t> eos_id{};
    bool add_bos = false;
};

/// Throws Error naming the key, what was found and what was expected.
TokenizerData tokenizer_from_gguf(GgufTokenizer metadata);

}  // namespace thermocline::text
