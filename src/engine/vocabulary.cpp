#include "src/engine/vocabulary.h"

#include "src/base/error.h"
#include "src/base/file.h"
#include "src/model/gguf.h"
#include "src/text/tokenizer_gguf.h"
#include "src/text/tokenizer_json.h"

#include <algorithm>
#include <filesystem>
#include <utility>

namespace thermocline::engine {
namespace {

/// Whether text is described by GGUF metadata.
bool is_gguf(const model::Checkpoint& checkpoint) { return checkpoint.source_container() == "gguf"; }

/// The last component of a path, without .gguf.
std::string name_of(const std::string& given) {
    std::error_code error;
    auto path = std::filesystem::absolute(given, error).lexically_normal();
    if (!path.has_filename()) path = path.parent_path();
    return path.extension() == ".gguf" ? path.stem().string() : path.filename().string();
}

/// Takes a GGUF metadata value of JSON type T; `absent` when there is none.
template <typename T>
T metadata_value(const model::Metadata& metadata, const std::string& key, T absent) {
    const auto found = metadata.find(key);
    if (found == metadata.end()) return absent;
    try {
        return found->second.get<T>();
    } catch (const Json::exception&) {
        fail("GGUF metadata ", key, " is ", printable(dump_json(found->second), 60), ", which is of another type");
    }
}

text::GgufTokenizer gguf_tokenizer(const model::Metadata& metadata) {
    const std::string prefix = "tokenizer.ggml.";
    text::GgufTokenizer out;
    out.model = metadata_value(metadata, prefix + "model", std::string());
    out.pre = metadata_value(metadata, prefix + "pre", std::string());
    out.tokens = metadata_value(metadata, prefix + "tokens", std::vector<std::string>());
    out.token_types = metadata_value(metadata, prefix + "token_type", std::vector<int32_t>());
    out.merges = metadata_value(metadata, prefix + "merges", std::vector<std::string>());
    out.bos_id = model::metadata_integer(metadata, prefix + "bos_token_id");
    out.eos_id = model::metadata_integer(metadata, prefix + "eos_token_id");
    out.add_bos = metadata_value(metadata, prefix + "add_bos_token", false);
    return out;
}

/// Adds an id, or every id of a list.
void add_ids(const Json& value, std::vector<int32_t>& ids) {
    if (value.is_array())
        for (const Json& item : value) add_ids(item, ids);
    if (value.is_number_integer() && value >= 0 && value <= INT32_MAX) ids.push_back(value.get<int32_t>());
}

}  // namespace

text::Tokenizer load_tokenizer(const model::Checkpoint& checkpoint) {
    if (is_gguf(checkpoint)) return text::Tokenizer(text::tokenizer_from_gguf(gguf_tokenizer(checkpoint.metadata)));
    const auto folder = std::filesystem::path(checkpoint.path);
    std::error_code error;
    if (checkpoint.container == "dummy" && !std::filesystem::exists(folder / "tokenizer.json", error))
        fail(checkpoint.path, ": a config without a tokenizer, which only bench and score can run");
    return load_tokenizer(checkpoint.path);
}

text::Tokenizer load_tokenizer(const std::string& folder) { return text::Tokenizer(text::load_tokenizer_json(folder)); }

text::RevisionChoice chat_encoding(const model::Checkpoint& checkpoint, const std::string& flag) {
    // Who converts a model may call it what he likes.
    const std::string name = name_of(checkpoint.source.path.empty() ? checkpoint.path : checkpoint.source.path);
    if (!is_gguf(checkpoint)) return text::detect_prompt_revision(flag, checkpoint.path, "", name);
    const auto chat_template = metadata_value(checkpoint.metadata, "tokenizer.chat_template", std::string());
    return text::detect_prompt_revision(flag, {}, chat_template, name);
}

Json generation_config(const model::Checkpoint& checkpoint) {
    const auto path = std::filesystem::path(checkpoint.path) / "generation_config.json";
    std::error_code error;
    if (is_gguf(checkpoint) || !std::filesystem::is_regular_file(path, error)) return Json::object();
    Json config = parse_json(read_text(path, 1 << 20), path.string());
    if (!config.is_object()) fail(path.string(), ": not a JSON object");
    return config;
}

std::vector<int32_t> eos_ids(const model::Checkpoint& checkpoint, const text::Tokenizer& tokenizer, int64_t vocab) {
    std::vector<int32_t> ids;
    if (tokenizer.eos_id()) ids.push_back(*tokenizer.eos_id());
    add_ids(checkpoint.config.value("eos_token_id", Json()), ids);
    add_ids(generation_config(checkpoint).value("eos_token_id", Json()), ids);
    std::sort(ids.begin(), ids.end());
    ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
    std::erase_if(ids, [&](int32_t id) { return id >= vocab; });
    return ids;
}

SamplingParams default_sampling(const model::Checkpoint& checkpoint) {
    const Json config = generation_config(checkpoint);
    SamplingParams params;
    const auto read = [&](const char* key, double least, double most, double absent) {
        const Json value = config.value(key, Json());
        if (value.is_null()) return absent;
        if (!value.is_number() || !(value.get<double>() >= least && value.get<double>() <= most))
            fail("generation_config.json: ", key, " is ", printable(dump_json(value), 40), ", expected a number from ",
                 least, " to ", most);
        return value.get<double>();
    };
    params.temperature = static_cast<float>(read("temperature", 0, 2, 1));
    params.top_p = static_cast<float>(read("top_p", 1e-6, 1, 1));
    params.top_k = static_cast<int32_t>(read("top_k", -1, 1 << 30, 0));
    params.min_p = static_cast<float>(read("min_p", 0, 1, 0));
    return params;
}

std::string model_name(const model::Checkpoint& checkpoint) { return name_of(checkpoint.path); }

}  // namespace thermocline::engine
