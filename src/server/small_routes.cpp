#include "src/server/small_routes.h"

#include "src/server/errors.h"
#include "src/server/fields.h"
#include "src/text/prompt_deepseek_v4.h"

#include <algorithm>

namespace thermocline::server {
namespace {

text::Prompt rendered(const Json& body, const ServedModel& model) {
    const text::Chat chat = text::chat_from_openai(body, model.revision, model.chat);
    return text::render_deepseek_v4(chat.messages, chat.options);
}

/// llama-server's dialect: {"content": ...}.
Json tokenize_content(const Fields& fields, const text::Tokenizer& tokenizer) {
    std::vector<int32_t> ids = tokenizer.encode(*fields.string("content"), fields.boolean("parse_special", true));
    if (fields.boolean("add_special", false) && tokenizer.add_bos() && tokenizer.bos_id())
        ids.insert(ids.begin(), *tokenizer.bos_id());
    if (!fields.boolean("with_pieces", false)) return {{"tokens", ids}};
    Json list = Json::array();
    for (const int32_t id : ids) {
        const std::string& bytes = tokenizer.token_bytes(id);
        const bool is_text = tokenizer.decode({&id, 1}) == bytes;
        Json piece = is_text ? Json(bytes) : Json::array();
        for (size_t i = 0; i < bytes.size() && !is_text; ++i) piece.push_back(static_cast<unsigned char>(bytes[i]));
        list.push_back({{"id", id}, {"piece", piece}});
    }
    return {{"tokens", list}};
}

}  // namespace

std::vector<int32_t> truncated(std::vector<int32_t> ids, const Call& call, int64_t max_model_len) {
    if (!call.truncate_prompt) return ids;
    const int64_t output = std::max<int64_t>(1, call.request.max_tokens);
    const int64_t keep =
        *call.truncate_prompt > 0 ? *call.truncate_prompt : std::max<int64_t>(1, max_model_len - output);
    if (static_cast<int64_t>(ids.size()) > keep) ids.erase(ids.begin(), ids.end() - keep);
    return ids;
}

Json tokenize_reply(const Json& body, const ServedModel& model, const text::Tokenizer& tokenizer) {
    const Fields fields(body);
    if (fields.has("content")) return tokenize_content(fields, tokenizer);
    std::vector<int32_t> ids;
    if (fields.has("messages")) {
        ids = tokenizer.encode(rendered(body, model).text);
    } else {
        const auto prompt = fields.string("prompt");
        if (!prompt) fields.refuse("prompt", "a string; or messages, or content");
        ids = tokenizer.encode(*prompt);
        const bool wants_bos = fields.boolean("add_special_tokens", true) && tokenizer.add_bos() && tokenizer.bos_id();
        if (wants_bos && (ids.empty() || ids.front() != *tokenizer.bos_id()))
            ids.insert(ids.begin(), *tokenizer.bos_id());
    }
    Json strings = nullptr;
    if (fields.boolean("return_token_strs", false)) {
        strings = Json::array();
        for (const int32_t id : ids) strings.push_back(tokenizer.decode({&id, 1}));
    }
    return {{"count", ids.size()}, {"max_model_len", model.max_model_len}, {"tokens", ids}, {"token_strs", strings}};
}

Json detokenize_reply(const Json& body, const text::Tokenizer& tokenizer) {
    const Fields fields(body);
    if (!fields.has("tokens")) fields.refuse("tokens", "an array of token ids");
    std::vector<int32_t> ids;
    for (const int64_t id : fields.integers("tokens", size_t{1} << 24)) {
        if (id < 0 || id >= tokenizer.vocab_size())
            fields.refuse("tokens", "token ids from 0 to " + std::to_string(tokenizer.vocab_size() - 1));
        ids.push_back(static_cast<int32_t>(id));
    }
    const std::string text = tokenizer.decode(ids);
    return {{"prompt", text}, {"content", text}};
}

Json template_reply(const Json& body, const ServedModel& model) { return {{"prompt", rendered(body, model).text}}; }

Json tokenizer_facts(const ServedModel& model, const text::Tokenizer& tokenizer) {
    const auto text_of = [&](std::optional<int32_t> id) {
        return id ? Json(tokenizer.token_bytes(*id)) : Json(nullptr);
    };
    return {{"tokenizer_class", "PreTrainedTokenizerFast"},
            {"bos_token", text_of(tokenizer.bos_id())},
            {"eos_token", text_of(tokenizer.eos_id())},
            {"pad_token", text_of(tokenizer.eos_id())},
            {"chat_template", nullptr},
            {"model_max_length", model.max_model_len}};
}

Json slot_list(const std::vector<engine::Engine::Slot>& slots, const ServedModel& model) {
    Json list = Json::array();
    for (const engine::Engine::Slot& slot : slots)
        list.push_back({{"id", list.size()},
                        {"id_task", slot.sequence},
                        {"n_ctx", model.max_model_len},
                        {"is_processing", slot.sequence >= 0},
                        {"n_prompt_tokens", slot.prompt_tokens},
                        {"n_decoded", slot.output_tokens}});
    return list;
}

Json expert_atlas(const engine::ExpertUse& use) {
    return {{"tokens", use.tokens},
            {"chosen", use.chosen},
            {"on_card", use.on_card},
            {"layers_of_cards", use.layers_of_cards},
            {"card_only_experts", use.core},
            {"choices", use.choices},
            {"hits", use.hits},
            {"moved_experts", use.moved_experts},
            {"moved_bytes", use.moved_bytes},
            {"streamed_experts", use.streamed_experts},
            {"adopted_experts", use.adopted_experts},
            {"read_bytes", {{"card", use.card_bytes()}, {"host", use.host_bytes()}, {"link", use.link_bytes()}}},
            {"cpu_seconds", use.cpu_seconds},
            {"exposed_seconds", use.exposed_seconds},
            {"link_seconds", use.link_seconds},
            {"layers_played", use.layers_played},
            {"decode", {{"uses_card", use.decode_on_card}, {"gain", use.decode_gain}}},
            {"prompts", {{"uses_card", use.prompts_on_card}, {"gain", use.prompt_gain}}},
            {"prefetch",
             {{"on", use.prefetch_on},
              {"gain", use.prefetch_gain},
              {"foretold", use.foretold},
              {"foretold_right", use.foretold_right},
              {"warmed_bytes", use.warmed_bytes},
              {"read_ahead_bytes", use.read_ahead_bytes}}}};
}

Json record_reply(const Json& body, engine::ExpertAdmin& admin) {
    const Fields fields(body);
    if (!body.contains("file")) fields.refuse("file", "the name of a new file, or null to end the recording");
    const auto file = fields.string("file");
    if (!file) return {{"recording", nullptr}, {"tokens", admin.stop_recording()}};
    admin.record(*file);
    return {{"recording", *file}};
}

Json pin_reply(const Json& body, engine::ExpertAdmin& admin) {
    const Fields fields(body);
    const auto names = [&](const char* key) {
        constexpr const char* kExpected = "an array of [layer, expert]";
        engine::ExpertAdmin::Names list;
        const Json* found = fields.find(key);
        if (found == nullptr) return list;
        if (!found->is_array()) fields.refuse(key, kExpected);
        for (const Json& pair : *found) {
            const auto number = [&](size_t at) -> int32_t {
                const auto value = pair.is_array() && pair.size() == 2 ? as_integer(pair[at]) : std::nullopt;
                if (!value || *value < 0 || *value >= 1 << 20) fields.refuse(key, kExpected);
                return static_cast<int32_t>(*value);
            };
            list.push_back({number(0), number(1)});
        }
        return list;
    };
    const auto pinned = names("pin"), released = names("release");
    Json list = Json::array();
    for (const auto& name : admin.pin(pinned, released)) list.push_back(Json::array({name.set, name.expert}));
    return {{"pinned", list}};
}

Json place_reply(const Json& body, engine::ExpertAdmin& admin) {
    const Fields fields(body);
    const auto profile = fields.string("profile"), placement = fields.string("placement");
    if (profile.has_value() == placement.has_value()) fields.refuse("profile", "a file name here or as placement");
    return {{"wanted", profile ? admin.use_profile(*profile) : admin.use_placement(*placement)}};
}

Json server_facts(const ServedModel& model, int64_t slots, const std::string& version) {
    const engine::SamplingParams& sampling = model.sampling;
    Json params = {{"temperature", sampling.temperature},
                   {"top_p", sampling.top_p},
                   {"top_k", sampling.top_k},
                   {"min_p", sampling.min_p}};
    return {{"default_generation_settings", {{"n_ctx", model.max_model_len}, {"params", params}}},
            {"total_slots", slots},
            {"model_path", model.root},
            {"model_alias", model.name},
            {"chat_template", ""},
            {"chat_encoding", std::string(text::revision_name(model.revision))},
            {"modalities", {{"vision", false}, {"audio", false}}},
            {"build_info", version},
            {"is_sleeping", false}};
}

}  // namespace thermocline::server
