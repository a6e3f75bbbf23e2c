// Reads tokenizer.json and tokenizer_config.json (HF tokenizers format, byte-level BPE). Whatever would change ids and
// is not known here is refused, never ignored. Pure functions, any thread.
#pragma once

#include "src/text/tokenizer.h"

#include <filesystem>
#include <string>
#include <string_view>

namespace thermocline::text {

/// Reads DIRECTORY/tokenizer.json and, if it is there, DIRECTORY/tokenizer_config.json.
/// Throws Error naming the file and the field.
TokenizerData load_tokenizer_json(const std::filesystem::path& directory);

/// The same from text; `config` may be empty (then no BOS or EOS is known unless the post-processor names a BOS).
/// `what` names the tokenizer text in errors.
TokenizerData parse_tokenizer_json(std::string_view tokenizer, std::string_view config, const std::string& what);

}  // namespace thermocline::text
