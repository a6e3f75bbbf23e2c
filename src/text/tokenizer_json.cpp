#include "src/text/tokenizer_json.h"

#include "src/base/error.h"
#include "src/base/file.h"
#include "src/base/json.h"

#include <algorithm>

namespace thermocline::text {

namespace {

std::string shown(const SortedJson& value) {
    return printable(value.dump(-1, ' ', false, SortedJson::error_handler_t::replace));
}

/// The member `key`, or null if it is absent.
const SortedJson& member(const SortedJson& object, const char* key) {
    static const SortedJson kNull;
    if (!object.is_object()) return kNull;
    const auto it = object.find(key);
    return it == object.end() ? kNull : *it;
}

const std::string& text_member(const SortedJson& object, const char* key, const char* where) {
    const SortedJson& value = member(object, key);
    if (!value.is_string()) fail(where, ".", key, " is ", shown(value), ", expected a string");
    return value.get_ref<const std::string&>();
}

bool flag_member(const SortedJson& object, const char* key, const char* where) {
    const SortedJson& value = member(object, key);
    if (!value.is_null() && !value.is_boolean())
        fail(where, ".", key, " is ", shown(value), ", expected true or false");
    return value.is_boolean() && value.get<bool>();
}

int32_t token_id_of(const SortedJson& value, const std::string& token) {
    // is_number_integer covers unsigned too; a value beyond int64 wraps to a negative and is refused with the rest.
    const int64_t id = value.is_number_integer() ? value.get<int64_t>() : -1;
    if (id < 0 || id >= kMaxVocabulary) {
        fail("token '", printable(token), "' has id ", shown(value), ", expected 0 to ", kMaxVocabulary - 1);
    }
    return static_cast<int32_t>(id);
}

/// Fields that change ids and must be off.
void check_off(const SortedJson& object, std::initializer_list<const char*> keys, const std::string& where) {
    for (const char* key : keys) {
        const SortedJson& value = member(object, key);
        const bool off = value.is_null() || value == false || value == SortedJson("") || value == 0.0;
        if (!off) fail(where, ".", key, " is ", shown(value), ", expected none");
    }
}

void read_vocabulary(const SortedJson& model, TokenizerData& data) {
    const SortedJson& vocabulary = member(model, "vocab");
    if (!vocabulary.is_object()) fail("model.vocab is ", vocabulary.type_name(), ", expected an object");
    for (const auto& [token, value] : vocabulary.items()) {
        const int32_t id = token_id_of(value, token);
        if (token.empty()) fail("token with id ", id, " is empty, expected text");
        if (static_cast<size_t>(id) >= data.tokens.size()) data.tokens.resize(id + 1);
        if (!data.tokens[id].empty()) {
            fail("id ", id, " is both '", printable(data.tokens[id]), "' and '", printable(token),
                 "', expected one token");
        }
        data.tokens[id] = token;
    }
}

void read_merges(const SortedJson& model, TokenizerData& data) {
    const SortedJson& merges = member(model, "merges");
    if (!merges.is_array()) fail("model.merges is ", merges.type_name(), ", expected an array");
    data.merges.reserve(merges.size());
    for (const SortedJson& merge : merges) {
        if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
            data.merges.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
            continue;
        }
        const std::string text = merge.is_string() ? merge.get<std::string>() : std::string();
        const size_t space = text.find(' ');
        if (space == std::string::npos) {
            fail("model.merges[", data.merges.size(), "] is ", shown(merge), ", expected \"a b\" or [\"a\", \"b\"]");
        }
        data.merges.emplace_back(text.substr(0, space), text.substr(space + 1));
    }
}

void read_model(const SortedJson& model, TokenizerData& data) {
    if (member(model, "type") != "BPE") fail("model.type is ", shown(member(model, "type")), ", expected \"BPE\"");
    check_off(
        model,
        {"dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "ignore_merges"},
        "model");
    read_vocabulary(model, data);
    read_merges(model, data);
}

void read_added_tokens(const SortedJson& added, TokenizerData& data) {
    if (added.is_null()) return;
    if (!added.is_array()) fail("added_tokens is ", added.type_name(), ", expected an array");
    for (const SortedJson& entry : added) {
        const std::string& content = text_member(entry, "content", "added_tokens");
        const int32_t id = token_id_of(member(entry, "id"), content);
        check_off(entry, {"single_word", "lstrip", "rstrip"}, "added token '" + printable(content) + "'");
        data.added_tokens.push_back({id, content, flag_member(entry, "special", "added_tokens"),
                                     flag_member(entry, "normalized", "added_tokens")});
    }
}

void check_normalizer(const SortedJson& normalizer) {
    if (normalizer.is_null()) return;
    const SortedJson& parts = member(normalizer, "normalizers");
    if (member(normalizer, "type") != "Sequence" || !parts.is_array() || !parts.empty()) {
        fail("normalizer is ", shown(normalizer), ", expected none or an empty Sequence");
    }
}

void check_byte_level(const SortedJson& part, const char* where) {
    if (member(part, "type") != "ByteLevel") fail(where, " is ", shown(part), ", expected ByteLevel");
}

/// One Split per regex and a ByteLevel at the end that splits no further.
PreTokenizer read_pre_tokenizer(const SortedJson& pre_tokenizer) {
    const SortedJson& parts = member(pre_tokenizer, "pretokenizers");
    if (member(pre_tokenizer, "type") != "Sequence" || !parts.is_array() || parts.empty()) {
        fail("pre_tokenizer is ", shown(pre_tokenizer), ", expected a Sequence of Split and ByteLevel");
    }
    check_byte_level(parts.back(), "last pre_tokenizer");
    if (member(parts.back(), "use_regex") != false || member(parts.back(), "add_prefix_space") != false) {
        fail("pre_tokenizer ByteLevel is ", shown(parts.back()), ", expected use_regex and add_prefix_space false");
    }
    std::vector<std::string> regexes;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
        const bool isolated = member(parts[i], "type") == "Split" && member(parts[i], "behavior") == "Isolated";
        if (!isolated || flag_member(parts[i], "invert", "pre_tokenizer")) {
            fail("pre_tokenizer ", i, " is ", shown(parts[i]), ", expected an Isolated Split");
        }
        regexes.push_back(text_member(member(parts[i], "pattern"), "Regex", "pre_tokenizer.pattern"));
    }
    const auto known = pre_tokenizer_by_regexes(regexes);
    if (known) return *known;
    std::string list;
    for (const std::string& regex : regexes) list += (list.empty() ? "" : "  then  ") + printable(regex, 400);
    fail("pre_tokenizer regexes are none of the known sets (deepseek-v3): ", list.empty() ? "none given" : list);
}

/// A TemplateProcessing that puts BOS in front (as re-saved checkpoints have it) sets add_bos.
void read_post_processor(const SortedJson& post, TokenizerData& data) {
    if (post.is_null()) return;
    if (member(post, "type") == "Sequence" && member(post, "processors").is_array()) {
        for (const SortedJson& part : member(post, "processors")) read_post_processor(part, data);
        return;
    }
    if (member(post, "type") != "TemplateProcessing") return check_byte_level(post, "post_processor");
    const SortedJson& single = member(post, "single");
    const bool with_bos = single.is_array() && single.size() == 2 && member(single[0], "SpecialToken").is_object();
    if (with_bos) {
        const std::string& bos = text_member(member(single[0], "SpecialToken"), "id", "post_processor.single");
        for (const AddedToken& token : data.added_tokens) {
            if (token.content == bos) data.bos_id = token.id;
        }
        data.add_bos = true;
    }
    const bool known = single.is_array() && single.size() == (with_bos ? 2u : 1u) && single.back().is_object() &&
                       single.back().contains("Sequence");
    if (!known) fail("post_processor.single is ", shown(single), ", expected at most BOS before the text");
}

/// `bos_token` and the like: a string, an object with `content`, or null.
std::optional<int32_t> config_token(const SortedJson& config, const char* key, const TokenizerData& data) {
    const SortedJson& value = member(config, key);
    if (value.is_null()) return {};
    const SortedJson& content = value.is_object() ? member(value, "content") : value;
    if (!content.is_string()) fail("tokenizer_config ", key, " is ", shown(value), ", expected a token's text");
    const auto& text = content.get_ref<const std::string&>();
    for (const AddedToken& token : data.added_tokens) {
        if (token.content == text) return token.id;
    }
    const auto it = text.empty() ? data.tokens.end() : std::find(data.tokens.begin(), data.tokens.end(), text);
    if (it == data.tokens.end()) {
        fail("tokenizer_config ", key, " is '", printable(text), "', expected a token of the vocabulary");
    }
    return static_cast<int32_t>(it - data.tokens.begin());
}

void read_config(const SortedJson& config, TokenizerData& data) {
    if (!config.is_object()) fail("tokenizer_config is ", config.type_name(), ", expected an object");
    if (const auto id = config_token(config, "bos_token", data)) data.bos_id = id;
    data.eos_id = config_token(config, "eos_token", data);
    if (!member(config, "add_bos_token").is_null()) {
        data.add_bos = flag_member(config, "add_bos_token", "tokenizer_config");
    }
}

}  // namespace

TokenizerData parse_tokenizer_json(std::string_view tokenizer, std::string_view config, const std::string& what) {
    return with_context(what, [&] {
        const SortedJson root = parse_sorted_json(tokenizer, "tokenizer.json");
        TokenizerData data;
        check_normalizer(member(root, "normalizer"));
        if (!member(root, "decoder").is_null()) check_byte_level(member(root, "decoder"), "decoder");
        data.pre_tokenizer = read_pre_tokenizer(member(root, "pre_tokenizer"));
        read_model(member(root, "model"), data);
        read_added_tokens(member(root, "added_tokens"), data);
        read_post_processor(member(root, "post_processor"), data);
        if (!config.empty()) read_config(parse_sorted_json(config, "tokenizer_config.json"), data);
        return data;
    });
}

TokenizerData load_tokenizer_json(const std::filesystem::path& directory) {
    const std::filesystem::path path = directory / "tokenizer.json";
    const std::filesystem::path config_path = directory / "tokenizer_config.json";
    std::string config;
    if (std::filesystem::exists(config_path)) config = read_text(config_path);
    return parse_tokenizer_json(read_text(path), config, path.string());
}

}  // namespace thermocline::text
