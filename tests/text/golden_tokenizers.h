// The committed vocabularies that the tokenizer tests share (scripts/make_tokenizer_vectors.py says what they are).
#pragma once

#include "src/base/file.h"
#include "src/base/json.h"
#include "src/text/tokenizer.h"
#include "src/text/tokenizer_json.h"

#include <string>

namespace thermocline::text {

inline std::string golden_text(const std::string& name) {
    return read_text(std::string(THERMOCLINE_SOURCE_DIR "/tests/golden/") + name);
}

inline Json golden_json(const std::string& name) { return parse_json(golden_text(name), name); }

inline constexpr std::string_view kV4Config = R"({"add_bos_token": false,
    "bos_token": {"__type": "AddedToken", "content": "<｜begin▁of▁sentence｜>"},
    "eos_token": {"__type": "AddedToken", "content": "<｜end▁of▁sentence｜>"}})";

/// The published DeepSeek-V4 vocabulary as far as the goldens need it.
inline TokenizerData v4_data() {
    return parse_tokenizer_json(golden_text("tokenizer-deepseek-v4-subset.json"), kV4Config, "v4");
}

/// 1000 tokens, trained on the goldens' texts.
inline TokenizerData small_data() { return parse_tokenizer_json(golden_text("tokenizer-small.json"), {}, "small"); }

}  // namespace thermocline::text
