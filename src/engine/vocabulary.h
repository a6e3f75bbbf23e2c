// What lies beside the weights and belongs to text: tokenizer, chat encoding, end tokens, sampling defaults. Reads
// files; every function may be called from any thread.
#pragma once

#include "src/engine/request.h"
#include "src/model/weights.h"
#include "src/text/prompt_deepseek_v4.h"
#include "src/text/tokenizer.h"

#include <cstdint>
#include <string>
#include <vector>

namespace thermocline::engine {

/// From tokenizer.json in the directory or from GGUF metadata. Throws Error naming file and field.
text::Tokenizer load_tokenizer(const model::Checkpoint& checkpoint);

/// From tokenizer.json in a directory. Throws Error naming file and field.
text::Tokenizer load_tokenizer(const std::string& folder);

/// `flag`: "auto" or a revision (prompt-encoding.md section 1).
text::RevisionChoice chat_encoding(const model::Checkpoint& checkpoint, const std::string& flag);

/// generation_config.json of the directory: an object, empty when there is none.
Json generation_config(const model::Checkpoint& checkpoint);

/// All ids that end a sequence: of the tokenizer, the configs, in any order, each once.
std::vector<int32_t> eos_ids(const model::Checkpoint& checkpoint, const text::Tokenizer& tokenizer, int64_t vocab);

/// Sampling for requests that say nothing: temperature, top_p, top_k, min_p of generation_config.json.
SamplingParams default_sampling(const model::Checkpoint& checkpoint);

/// The name a model is served under: the last component of its path, without .gguf.
std::string model_name(const model::Checkpoint& checkpoint);

}  // namespace thermocline::engine
