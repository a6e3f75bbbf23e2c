#include "src/text/tokenizer_gguf.h"

#include "src/base/error.h"

namespace thermocline::text {

namespace {

constexpr int32_t kControlToken = 3;
constexpr int32_t kUserDefinedToken = 4;

std::optional<int32_t> checked_id(std::optional<int64_t> id, const char* key, size_t vocab_size) {
    if (!id) return {};
    if (*id < 0 || static_cast<uint64_t>(*id) >= vocab_size) {
        fail("tokenizer.ggml.", key, " is ", *id, ", expected 0 to ", vocab_size - 1);
    }
    return static_cast<int32_t>(*id);
}

}  // namespace

TokenizerData tokenizer_from_gguf(GgufTokenizer metadata) {
    if (metadata.model != "gpt2") {
        fail("tokenizer.ggml.model is '", printable(metadata.model), "', expected 'gpt2' (byte-level BPE)");
    }
    const auto pre = pre_tokenizer_by_gguf_name(metadata.pre);
    if (!pre) {
        fail("tokenizer.ggml.pre is '", printable(metadata.pre),
             "', expected a known pre-tokenizer (deepseek-v3, joyai-llm, hunyuan-dense)");
    }
    const size_t size = metadata.tokens.size();
    if (size == 0 || size > kMaxVocabulary) {
        fail("tokenizer.ggml.tokens has ", size, " entries, expected 1 to ", kMaxVocabulary);
    }
    if (!metadata.token_types.empty() && metadata.token_types.size() != size) {
        fail("tokenizer.ggml.token_type has ", metadata.token_types.size(), " entries, expected ", size);
    }
    TokenizerData data;
    data.pre_tokenizer = *pre;
    data.merges.reserve(metadata.merges.size());
    for (const std::string& merge : metadata.merges) {
        const size_t space = merge.find(' ');
        if (space == std::string::npos) {
            fail("tokenizer.ggml.merges[", data.merges.size(), "] is '", printable(merge), "', expected 'a b'");
        }
        data.merges.emplace_back(merge.substr(0, space), merge.substr(space + 1));
    }
    for (size_t id = 0; id < metadata.token_types.size(); ++id) {
        const int32_t type = metadata.token_types[id];
        if (type != kControlToken && type != kUserDefinedToken) continue;
        data.added_tokens.push_back({static_cast<int32_t>(id), metadata.tokens[id], type == kControlToken, false});
    }
    data.tokens = std::move(metadata.tokens);
    data.bos_id = checked_id(metadata.bos_id, "bos_token_id", size);
    data.eos_id = checked_id(metadata.eos_id, "eos_token_id", size);
    data.add_bos = metadata.add_bos;
    return data;
}

}  // namespace thermocline::text
