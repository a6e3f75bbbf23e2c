#include "src/server/openai.h"

#include "src/server/errors.h"
#include "src/server/fields.h"

#include <algorithm>
#include <charconv>
#include <limits>
#include <random>

namespace thermocline::server {
namespace {

void read_penalties(const Fields& fields, engine::SamplingParams& params) {
    const auto read = [&](const char* key, float& value, double least, double most) {
        if (const auto given = fields.number(key, least, most)) value = static_cast<float>(*given);
    };
    read("temperature", params.temperature, 0, 2);
    read("top_p", params.top_p, 0, 1);
    if (params.top_p <= 0) fields.refuse("top_p", "a number over 0, at most 1");
    read("min_p", params.min_p, 0, 1);
    if (const auto k = fields.integer("top_k", -1, INT32_MAX)) params.top_k = static_cast<int32_t>(*k);
    read("presence_penalty", params.presence_penalty, -2, 2);
    read("frequency_penalty", params.frequency_penalty, -2, 2);
    for (const char* key : {"repeat_penalty", "repetition_penalty"}) {
        read(key, params.repetition_penalty, 0, 1e6);
        if (!(params.repetition_penalty >= 1e-6f)) fields.refuse(key, "a number over 0");
    }
}

void read_logit_bias(const Fields& fields, int64_t vocab, engine::SamplingParams& params) {
    const Json* map = fields.find("logit_bias");
    if (map == nullptr) return;
    if (!map->is_object()) fields.refuse("logit_bias", "an object from token ids to numbers");
    for (const auto& [key, value] : map->items()) {
        int32_t id = -1;
        const auto [end, error] = std::from_chars(key.data(), key.data() + key.size(), id);
        const bool is_id = error == std::errc() && end == key.data() + key.size() && id >= 0 && id < vocab;
        if (!is_id || !value.is_number()) {
            throw RequestError(400,
                               "logit_bias has \"" + printable(key, 40) + "\": " + printable(dump_json(value), 40) +
                                   ", expected a token id from 0 to " + std::to_string(vocab - 1) + " and a number",
                               "logit_bias");
        }
        params.logit_bias.emplace_back(id, static_cast<float>(std::clamp(value.get<double>(), -100.0, 100.0)));
    }
}

/// True when the request gave a seed; -1 asks for a random one.
bool read_seed(const Fields& fields, engine::SamplingParams& params) {
    const auto seed = fields.integer("seed", INT64_MIN);
    const bool given = seed && *seed != -1;
    if (given) {
        params.seed = static_cast<uint64_t>(*seed);
    } else {
        std::random_device device;
        params.seed = uint64_t{device()} << 32 | device();
    }
    return given;
}

void read_stops(const Fields& fields, int64_t vocab, Call& call) {
    const std::string expected =
        "a string or an array of at most " + std::to_string(kMaxStops) + " strings, none empty";
    if (const Json* stop = fields.find("stop")) {
        if (stop->is_string()) {
            call.stop.push_back(stop->get<std::string>());
        } else if (stop->is_array() && stop->size() <= kMaxStops) {
            for (const Json& item : *stop) {
                if (!item.is_string()) fields.refuse("stop", expected);
                call.stop.push_back(item.get<std::string>());
            }
        } else {
            fields.refuse("stop", expected);
        }
        if (std::find(call.stop.begin(), call.stop.end(), "") != call.stop.end()) fields.refuse("stop", expected);
    }
    for (const int64_t id : fields.integers("stop_token_ids", 1024)) {
        if (id < 0 || id >= vocab) fields.refuse("stop_token_ids", "token ids from 0 to " + std::to_string(vocab - 1));
        call.request.stop_tokens.push_back(static_cast<int32_t>(id));
    }
}

void read_stream(const Fields& fields, Call& call) {
    call.stream = fields.boolean("stream", false);
    if (const Json* options = fields.find("stream_options")) {
        if (!call.stream) throw RequestError(400, "stream_options is given, but stream is not true", "stream_options");
        if (!options->is_object()) fields.refuse("stream_options", "an object");
        const Fields inner(*options, "stream_options.");
        call.include_usage = inner.boolean("include_usage", false);
        call.continuous_usage = inner.boolean("continuous_usage_stats", false);
    }
    call.return_progress = fields.boolean("return_progress", false);
    call.ping_seconds = fields.integer("sse_ping_interval", -1, 86400);
}

void read_scheduling(const Fields& fields, Call& call) {
    call.request.reuse_prefix = fields.boolean("cache_prompt", true);
    if (const auto salt = fields.string("cache_salt")) {
        if (salt->empty()) fields.refuse("cache_salt", "a string that is not empty");
        call.request.cache_salt = *salt;
    }
    constexpr int64_t kMostPriority = std::numeric_limits<int32_t>::max();
    call.request.priority = static_cast<int32_t>(fields.integer("priority", -kMostPriority, kMostPriority).value_or(0));
    call.truncate_prompt = fields.integer("truncate_prompt_tokens", -1);
    if (call.truncate_prompt && *call.truncate_prompt == 0) fields.refuse("truncate_prompt_tokens", "-1 or at least 1");
    if (const auto side = fields.string("truncation_side"); side && *side != "left")
        fields.refuse("truncation_side", "\"left\"");
}

void read_common(const Fields& fields, const ServedModel& model, Call& call) {
    call.answer_rule = answer_rule(fields);
    call.request.sampling = model.sampling;
    read_penalties(fields, call.request.sampling);
    read_logit_bias(fields, model.vocab, call.request.sampling);
    call.random_seed = !read_seed(fields, call.request.sampling);
    read_stops(fields, model.vocab, call);
    read_stream(fields, call);
    read_scheduling(fields, call);
    call.choices = static_cast<int32_t>(fields.integer("n", 1, kMaxChoices).value_or(1));
    call.include_stop = fields.boolean("include_stop_str_in_output", false);
    call.skip_special_tokens = fields.boolean("skip_special_tokens", true);
    call.request.ignore_eos = fields.boolean("ignore_eos", false);
    call.return_token_ids = fields.boolean("return_token_ids", false);
    call.tokens_as_ids = fields.boolean("return_tokens_as_token_ids", false);
    call.request.min_tokens = fields.integer("min_tokens", 0).value_or(0);
    call.request.processed_logprobs = model.processed_logprobs;
    if (const auto most = fields.integer("prompt_logprobs", -1, model.max_logprobs)) {
        if (call.stream)
            throw RequestError(400, "prompt_logprobs is given together with stream: true", "prompt_logprobs");
        call.prompt_logprobs = static_cast<int32_t>(*most < 0 ? model.vocab : *most);
    }
    call.request.prompt_logprobs = call.prompt_logprobs;
}

void check_min_tokens(const Fields& fields, const Call& call) {
    const int64_t most = call.request.max_tokens;
    if (most >= 0 && call.request.min_tokens > most)
        fields.refuse("min_tokens", "at most max_tokens, " + std::to_string(most));
}

void refuse_old_functions(const Fields& fields) {
    if (const Json* functions = fields.find("functions"); functions != nullptr && !functions->empty())
        throw RequestError(400, "functions is not supported, expected tools", "functions");
    if (const Json* modalities = fields.find("modalities"); modalities != nullptr && modalities->is_array()) {
        for (const Json& item : *modalities)
            if (item == "audio")
                throw RequestError(400, "modalities has audio, not supported by this model", "modalities");
    }
}

PromptInput token_prompt(const Json& ids, int64_t vocab) {
    std::vector<int32_t> out;
    for (const Json& item : ids) {
        const auto id = as_integer(item);
        if (!id)
            throw RequestError(400, "prompt has " + printable(dump_json(item), 40) + ", expected a token id", "prompt");
        if (*id < 0 || *id >= vocab) {
            throw RequestError(400,
                               "prompt token " + std::to_string(*id) + " is out of vocabulary, expected 0 to " +
                                   std::to_string(vocab - 1),
                               "prompt");
        }
        out.push_back(static_cast<int32_t>(*id));
    }
    return out;
}

std::vector<PromptInput> read_prompts(const Fields& fields, int64_t vocab) {
    const std::string expected =
        "a string, an array of strings, an array of token ids or an array of such arrays, none empty";
    const Json* prompt = fields.find("prompt");
    if (prompt == nullptr || prompt->empty()) fields.refuse("prompt", expected);
    const auto read_one = [&](const Json& item) -> PromptInput {
        if (item.is_string() && !item.get_ref<const std::string&>().empty()) return item.get<std::string>();
        if (!item.is_array() || item.empty()) fields.refuse("prompt", expected);
        return token_prompt(item, vocab);
    };
    if (prompt->is_string() || (prompt->is_array() && prompt->front().is_number())) return {read_one(*prompt)};
    if (!prompt->is_array()) fields.refuse("prompt", expected);
    if (prompt->size() > kMaxPrompts) fields.refuse("prompt", "at most " + std::to_string(kMaxPrompts) + " prompts");
    std::vector<PromptInput> prompts;
    for (const Json& item : *prompt) prompts.push_back(read_one(item));
    return prompts;
}

}  // namespace

Json parse_body(std::string_view body) {
    Json json = parse_client_json(body, "request body");
    if (!json.is_object()) throw RequestError(400, "request body is not a JSON object");
    return json;
}

void check_model_name(const Json& body, const ServedModel& model) {
    const auto name = Fields(body).string("model");
    if (!name || *name == model.name) return;
    for (const std::string& alias : model.aliases)
        if (alias == "*" || alias == *name) return;
    throw RequestError(404, "The model `" + printable(*name, 200) + "` does not exist.", "model");
}

ChatCall chat_call(const Json& body, const ServedModel& model) {
    const Fields fields(body);
    check_model_name(body, model);
    ChatCall call;
    read_common(fields, model, call);
    refuse_old_functions(fields);
    if (const Json* tools = fields.find("tools"); tools != nullptr && tools->is_array() && tools->size() > kMaxTools)
        fields.refuse("tools", "an array of at most " + std::to_string(kMaxTools) + " tools");

    const auto most = fields.integer("max_tokens", -1);
    if (most && *most == 0) fields.refuse("max_tokens", "an integer >= 1");
    const auto wins = fields.integer("max_completion_tokens", 1);
    call.request.max_tokens = wins ? *wins : most.value_or(-1);
    check_min_tokens(fields, call);

    const bool logprobs = fields.boolean("logprobs", false);
    const auto top = fields.integer("top_logprobs", 0, model.max_logprobs).value_or(0);
    if (top > 0 && !logprobs) fields.refuse("top_logprobs", "logprobs: true with it");
    call.request.logprobs = logprobs ? static_cast<int32_t>(top) : -1;

    call.chat = text::chat_from_openai(body, model.revision, model.chat);
    // What is continued or followed is said again where the last message is of the role that answers.
    const text::Message& last = call.chat.messages.back();
    if (fields.boolean("echo", false) && last.role == text::Role::kAssistant) call.echo = last.content;
    call.thinking_budget = fields.integer("thinking_token_budget", 0);
    call.include_reasoning = fields.boolean("include_reasoning", true);
    const std::string format = fields.string("reasoning_format").value_or("deepseek");
    if (format != "none" && format != "deepseek" && format != "auto")
        fields.refuse("reasoning_format", "none, deepseek or auto");
    call.split_reasoning = format != "none";
    return call;
}

CompletionCall completion_call(const Json& body, const ServedModel& model) {
    const Fields fields(body);
    check_model_name(body, model);
    CompletionCall call;
    read_common(fields, model, call);
    call.prompts = read_prompts(fields, model.vocab);
    call.echo = fields.boolean("echo", false);
    call.add_special_tokens = fields.boolean("add_special_tokens", true);
    if (const auto suffix = fields.string("suffix"); suffix && !suffix->empty()) call.suffix = suffix;
    for (const auto& [key, is_given] :
         {std::pair{"echo", call.echo}, std::pair{"truncate_prompt_tokens", call.truncate_prompt.has_value()}})
        if (call.suffix && is_given)
            throw RequestError(400, std::string(key) + " is given together with suffix, expected one of them", key);
    call.request.max_tokens = fields.integer("max_tokens", -1).value_or(16);
    if (call.request.max_tokens == 0 && !call.echo)
        fields.refuse("max_tokens", "an integer >= 1, or echo: true with 0");
    check_min_tokens(fields, call);
    if (const auto best = fields.integer("best_of", 1); best && *best != call.choices)
        fields.refuse("best_of", "the same as n, " + std::to_string(call.choices));

    const Json* logprobs = fields.find("logprobs");
    if (logprobs != nullptr && logprobs->is_boolean()) {
        call.request.logprobs = logprobs->get<bool>() ? 1 : -1;
    } else {
        call.request.logprobs = static_cast<int32_t>(fields.integer("logprobs", 0, model.max_logprobs).value_or(-1));
    }
    if (call.echo) call.request.prompt_logprobs = std::max(call.request.logprobs, call.prompt_logprobs);
    return call;
}

}  // namespace thermocline::server
