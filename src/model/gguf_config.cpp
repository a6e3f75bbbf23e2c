#include "src/model/gguf_config.h"

#include "src/base/error.h"
#include "src/model/gguf.h"

#include <optional>
#include <string>

namespace thermocline::model {

namespace {

const std::string kPrefix = "deepseek4.";
constexpr int64_t kMaxLayers = 4096;  // only guards the expansion of a scalar to one number per layer

struct KeyPair {
    const char* gguf;
    const char* config;
};

constexpr KeyPair kIntegers[] = {
    {"embedding_length", "hidden_size"},
    {"attention.head_count", "num_attention_heads"},
    {"attention.head_count_kv", "num_key_value_heads"},
    {"attention.key_length", "head_dim"},
    {"rope.dimension_count", "qk_rope_head_dim"},
    {"attention.q_lora_rank", "q_lora_rank"},
    {"attention.output_group_count", "o_groups"},
    {"attention.output_lora_rank", "o_lora_rank"},
    {"attention.sliding_window", "sliding_window"},
    {"context_length", "max_position_embeddings"},
    {"attention.indexer.head_count", "index_n_heads"},
    {"attention.indexer.key_length", "index_head_dim"},
    {"attention.indexer.top_k", "index_topk"},
    {"hyper_connection.count", "hc_mult"},
    {"hyper_connection.sinkhorn_iterations", "hc_sinkhorn_iters"},
    {"expert_count", "n_routed_experts"},
    {"expert_shared_count", "n_shared_experts"},
    {"expert_used_count", "num_experts_per_tok"},
    {"expert_feed_forward_length", "moe_intermediate_size"},
    {"hash_layer_count", "num_hash_layers"},
};

constexpr KeyPair kNumbers[] = {
    {"attention.compress_rope_freq_base", "compress_rope_theta"},
    {"rope.freq_base", "rope_theta"},
    {"hyper_connection.epsilon", "hc_eps"},
    {"attention.layer_norm_rms_epsilon", "rms_norm_eps"},
    {"expert_weights_scale", "routed_scaling_factor"},
};

const Json* find(const Metadata& metadata, const std::string& key) {
    const auto found = metadata.find(kPrefix + key);
    return found == metadata.end() ? nullptr : &found->second;
}

std::string key_text(const std::string& key, const Json& value) {
    return "GGUF key " + kPrefix + key + " is " + printable(dump_json(value));
}

/// Some writers give one number per layer where all layers agree: the number, or the array if they do not (REAP).
Json uniform(const Json& value) {
    if (!value.is_array() || value.empty()) return value;
    for (const Json& element : value)
        if (element != value.front()) return value;
    return value.front();
}

bool integers(const Json& value) {
    if (!value.is_array()) return value.is_number_integer();
    for (const Json& element : value)
        if (!element.is_number_integer()) return false;
    return true;
}

bool numbers(const Json& value) {
    if (!value.is_array()) return value.is_number();
    for (const Json& element : value)
        if (!element.is_number()) return false;
    return true;
}

/// Layers of the trunk and of the MTP part. Some files claim MTP layers that they do not hold (deepseek-v4.md 5.2).
struct Layers {
    int64_t trunk;
    int64_t mtp;
};

Layers count_layers(const Metadata& metadata, const WeightDirectory& weights) {
    const std::optional<int64_t> blocks = metadata_integer(metadata, kPrefix + "block_count");
    if (!blocks) fail("GGUF key ", kPrefix, "block_count is missing");
    if (*blocks < 1 || *blocks > kMaxLayers)
        fail("GGUF key ", kPrefix, "block_count is ", *blocks, ", expected 1 to ", kMaxLayers);
    const int64_t claimed = metadata_integer(metadata, kPrefix + "nextn_predict_layers").value_or(0);
    if (claimed > 0 && claimed < *blocks) {
        const std::string first = "blk." + std::to_string(*blocks - claimed) + ".nextn.";
        if (weights.find(first + "eh_proj.weight") || weights.find(first + "e_proj.weight"))
            return {*blocks - claimed, claimed};
    }
    int64_t own = 0;
    while (weights.find("mtp." + std::to_string(own) + ".e_proj.weight")) ++own;
    return {*blocks, own};
}

Json compress_ratios(const Metadata& metadata, const Layers& layers) {
    const std::string key = "attention.compress_ratios";
    const Json* value = find(metadata, key);
    if (!value) fail("GGUF key ", kPrefix, key, " is missing");
    if (!integers(*value)) fail(key_text(key, *value), ", expected integers");
    if (!value->is_array()) return Json(Json::array_t(static_cast<size_t>(layers.trunk + layers.mtp), *value));
    return *value;
}

/// One clamp for all experts; files may repeat it per layer, and separately for the shared expert.
std::optional<Json> swiglu_limit(const Metadata& metadata, const Layers& layers) {
    std::optional<Json> limit;
    for (const char* key : {"swiglu_clamp_exp", "swiglu_clamp_shexp"}) {
        const Json* value = find(metadata, key);
        if (!value) continue;
        if (!numbers(*value)) fail(key_text(key, *value), ", expected numbers");
        Json trunk = *value;
        if (trunk.is_array()) {
            if (static_cast<int64_t>(trunk.size()) < layers.trunk)
                fail(key_text(key, *value), ", expected one number for each of ", layers.trunk, " layers");
            trunk.erase(trunk.begin() + static_cast<std::ptrdiff_t>(layers.trunk), trunk.end());
            trunk = uniform(trunk);
        }
        if (trunk.is_array() || (limit && trunk != *limit))
            fail(key_text(key, *value),
                 ", clamps that differ between layers or for the shared expert are not supported");
        limit = trunk;
    }
    return limit;
}

Json rope_scaling(const Metadata& metadata) {
    constexpr KeyPair kKeys[] = {
        {"rope.scaling.factor", "factor"},
        {"rope.scaling.original_context_length", "original_max_position_embeddings"},
        {"rope.scaling.yarn_beta_fast", "beta_fast"},
        {"rope.scaling.yarn_beta_slow", "beta_slow"},
    };
    Json scaling = Json::object();
    const Json* type = find(metadata, "rope.scaling.type");
    scaling["type"] = type ? *type : Json("yarn");
    for (const KeyPair& key : kKeys) {
        const Json* value = find(metadata, key.gguf);
        if (!value) continue;
        if (!value->is_number()) fail(key_text(key.gguf, *value), ", expected a number");
        scaling[key.config] = *value;
    }
    return scaling;
}

void add_constants(Json& config, const Metadata& metadata) {
    const std::optional<int64_t> gating = metadata_integer(metadata, kPrefix + "expert_gating_func");
    constexpr int64_t kSqrtSoftplus = 4;
    if (gating && *gating != kSqrtSoftplus)
        fail("GGUF key ", kPrefix, "expert_gating_func is ", *gating, ", expected 4 (sqrtsoftplus)");
    config["scoring_func"] = "sqrtsoftplus";
    config["topk_method"] = "noaux_tc";
    config["norm_topk_prob"] = metadata_integer(metadata, kPrefix + "expert_weights_norm").value_or(1) != 0;
    config["hidden_act"] = "silu";
    config["tie_word_embeddings"] = false;
    for (const auto& [gguf, name] : {std::pair{"bos", "bos_token_id"}, std::pair{"eos", "eos_token_id"}})
        if (const auto id = metadata_integer(metadata, std::string("tokenizer.ggml.") + gguf + "_token_id"))
            config[name] = *id;
}

int64_t vocabulary_size(const Metadata& metadata, const WeightDirectory& weights) {
    if (const auto size = metadata_integer(metadata, kPrefix + "vocab_size")) return *size;
    const TensorEntry* embedding = weights.find("token_embd.weight");
    if (!embedding || embedding->shape.size() != 2) fail("GGUF key ", kPrefix, "vocab_size is missing");
    return embedding->shape[0];
}

}  // namespace

Json config_from_gguf(const Metadata& metadata, const WeightDirectory& weights) {
    const auto found = metadata.find("general.architecture");
    if (found == metadata.end() || !found->second.is_string())
        fail("GGUF key general.architecture is missing or no string");
    const auto architecture = found->second.get<std::string>();
    Json config = Json::object();
    if (architecture != "deepseek4") {
        config["architectures"] = Json::array({architecture});
        config["model_type"] = architecture;
        return config;
    }
    config["architectures"] = Json::array({"DeepseekV4ForCausalLM"});
    config["model_type"] = "deepseek_v4";
    const Layers layers = count_layers(metadata, weights);
    config["num_hidden_layers"] = layers.trunk;
    config["num_nextn_predict_layers"] = layers.mtp;
    config["vocab_size"] = vocabulary_size(metadata, weights);
    for (const KeyPair& key : kIntegers) {
        const Json* value = find(metadata, key.gguf);
        if (!value) continue;
        if (!integers(*value)) fail(key_text(key.gguf, *value), ", expected an integer");
        config[key.config] = uniform(*value);
    }
    for (const KeyPair& key : kNumbers) {
        const Json* value = find(metadata, key.gguf);
        if (!value) continue;
        if (!numbers(*value)) fail(key_text(key.gguf, *value), ", expected a number");
        config[key.config] = uniform(*value);
    }
    config["compress_ratios"] = compress_ratios(metadata, layers);
    config["rope_scaling"] = rope_scaling(metadata);
    if (const auto limit = swiglu_limit(metadata, layers)) config["swiglu_limit"] = *limit;
    add_constants(config, metadata);
    return config;
}

}  // namespace thermocline::model
