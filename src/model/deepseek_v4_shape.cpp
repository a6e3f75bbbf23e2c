// config.json -> Shape.
#include "src/base/error.h"
#include "src/model/config_fields.h"
#include "src/model/deepseek_v4.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace thermocline::model::deepseek_v4 {

namespace {

constexpr int64_t kMaxWidth = 1 << 20;  // of any vector: keeps every product of two inside int64
constexpr int64_t kMaxLayers = 1024;
constexpr int64_t kMaxRatio = 512;        // pooled tokens per entry fit the compressor's scratch
constexpr int64_t kMaxContext = 1 << 24;  // positions are exact in float32

RopeShape yarn_rope(const ConfigFields& fields, double theta) {
    RopeShape rope;
    rope.theta = theta;
    const std::string type = fields.string_or({"type", "rope_type"}, "default");
    if (type == "default") return rope;
    if (type != "yarn") fields.wrong(fields.has({"type"}) ? "type" : "rope_type", "\"yarn\" or \"default\"");
    rope.yarn = true;
    rope.factor = fields.number({"factor", "rope_factor"}, 1.0, 1e6);
    rope.original_context = fields.number({"original_max_position_embeddings", "original_seq_len"}, 1.0, 1e9);
    rope.beta_fast = fields.number_or({"beta_fast"}, 1e-3, 1e6, 32.0);
    rope.beta_slow = fields.number_or({"beta_slow"}, 1e-3, 1e6, 1.0);
    if (fields.number_or({"attention_factor"}, 0.0, 1e3, 1.0) != 1.0)
        fields.wrong("attention_factor", "1 (the model has no magnitude scale)");
    return rope;
}

/// Flat: rope_theta, compress_rope_theta, rope_scaling. Nested (HF >= 5): rope_parameters {main, compress}.
void read_ropes(const ConfigFields& fields, Shape& shape) {
    if (const auto nested = fields.object({"rope_parameters"}); nested && nested->object({"main"})) {
        const auto main = *nested->object({"main"});
        const auto compress = nested->object({"compress"});
        if (!compress) nested->wrong("compress", "an object");
        shape.window_rope.theta = main.number({"rope_theta"}, 1.0, 1e12);
        shape.context_rope = yarn_rope(*compress, compress->number({"rope_theta"}, 1.0, 1e12));
        return;
    }
    shape.window_rope.theta = fields.number({"rope_theta"}, 1.0, 1e12);
    const double theta = fields.number_or({"compress_rope_theta"}, 1.0, 1e12, shape.window_rope.theta);
    shape.context_rope.theta = theta;
    if (const auto scaling = fields.object({"rope_scaling"}))
        shape.context_rope = yarn_rope(*scaling, theta);
    else if (fields.has({"original_seq_len"}) && fields.number({"original_seq_len"}, 0, 1e9) > 0) {
        shape.context_rope.yarn = true;  // the reference's own inference/config.json
        shape.context_rope.factor = fields.number({"rope_factor"}, 1.0, 1e6);
        shape.context_rope.original_context = fields.number({"original_seq_len"}, 1.0, 1e9);
        shape.context_rope.beta_fast = fields.number_or({"beta_fast"}, 1e-3, 1e6, 32.0);
        shape.context_rope.beta_slow = fields.number_or({"beta_slow"}, 1e-3, 1e6, 1.0);
    }
}

/// HF's spelling of the schedule: one name per layer, ratios by name.
std::vector<LayerShape> layers_by_name(const ConfigFields& fields, size_t count) {
    const auto names = fields.strings({"layer_types"}, count);
    const auto rates = fields.object({"compress_rates"});
    const auto rate = [&](const char* name, int64_t fallback) {
        return static_cast<int32_t>(rates ? rates->integer_or({name}, 1, kMaxRatio, fallback) : fallback);
    };
    std::vector<LayerShape> layers;
    for (size_t i = 0; i < count; ++i) {
        if (names[i] == "sliding_attention")
            layers.push_back({});
        else if (names[i] == "compressed_sparse_attention")
            layers.push_back({Context::kSparse, rate(names[i].c_str(), 4)});
        else if (names[i] == "heavily_compressed_attention")
            layers.push_back({Context::kHeavy, rate(names[i].c_str(), 128)});
        else
            fields.wrong("layer_types",
                         "sliding_attention, compressed_sparse_attention or heavily_compressed_attention");
    }
    return layers;
}

/// DeepSeek's spelling: one ratio per layer, MTP layers after the trunk. Only ratio 4 overlaps and has an indexer.
LayerShape layer_of(int64_t ratio) {
    if (ratio == 0) return {};
    return {ratio == 4 ? Context::kSparse : Context::kHeavy, static_cast<int32_t>(ratio)};
}

void read_layers(const ConfigFields& fields, Shape& shape) {
    const auto count = static_cast<size_t>(fields.integer({"num_hidden_layers", "n_layers"}, 1, kMaxLayers));
    if (fields.has({"compress_ratios"})) {
        const auto ratios = fields.integers({"compress_ratios"}, count, 0, kMaxRatio);
        for (size_t i = 0; i < count; ++i) shape.layers.push_back(layer_of(ratios[i]));
        if (ratios.size() > count) shape.mtp = layer_of(ratios[count]);
    } else {
        shape.layers = layers_by_name(fields, count);
    }
    if (fields.has({"mlp_layer_types"})) {
        const auto types = fields.strings({"mlp_layer_types"}, count);
        for (size_t i = 0; i < count; ++i) {
            if (types[i] != "hash_moe" && types[i] != "moe") fields.wrong("mlp_layer_types", "hash_moe or moe");
            shape.layers[i].routed_by_token = types[i] == "hash_moe";
        }
    } else {
        const int64_t hashed = fields.integer_or({"num_hash_layers", "n_hash_layers"}, 0, kMaxLayers, 0);
        for (size_t i = 0; i < count; ++i) shape.layers[i].routed_by_token = static_cast<int64_t>(i) < hashed;
    }
}

/// HF may give the rotary part as a fraction of the head.
int64_t read_rope_dim(const ConfigFields& fields, int64_t head_dim) {
    if (fields.has({"qk_rope_head_dim", "rope_head_dim"}))
        return fields.integer({"qk_rope_head_dim", "rope_head_dim"}, 2, head_dim);
    double part = 0.0;
    if (fields.has({"partial_rotary_factor"})) {
        part = fields.number({"partial_rotary_factor"}, 0.0, 1.0);
    } else if (const auto nested = fields.object({"rope_parameters"}); nested && nested->object({"main"})) {
        part = nested->object({"main"})->number({"partial_rotary_factor"}, 0.0, 1.0);
    } else {
        fields.wrong("qk_rope_head_dim", "a number from 2 to " + std::to_string(head_dim));
    }
    return std::llround(part * static_cast<double>(head_dim));
}

void check(const ConfigFields& fields, const Shape& s) {
    if (s.rope_dim < 2 || s.rope_dim % 2 != 0) fields.wrong("qk_rope_head_dim", "an even number of at least 2");
    if (s.heads % s.groups != 0)
        fields.wrong("o_groups", "a divisor of num_attention_heads = " + std::to_string(s.heads));
    if (fields.integer_or({"num_key_value_heads"}, 1, kMaxWidth, 1) != 1) fields.wrong("num_key_value_heads", "1");
    if (fields.string_or({"scoring_func", "score_func"}, "sqrtsoftplus") != "sqrtsoftplus")
        fields.wrong("scoring_func", "\"sqrtsoftplus\"");
    if (fields.string_or({"hidden_act"}, "silu") != "silu") fields.wrong("hidden_act", "\"silu\"");
    if (fields.boolean_or({"attention_bias"}, false)) fields.wrong("attention_bias", "false");
    const bool sparse = std::any_of(s.layers.begin(), s.layers.end(),
                                    [](const LayerShape& layer) { return layer.context == Context::kSparse; });
    if (sparse && s.index_dim < s.rope_dim)
        fields.wrong("index_head_dim", "at least qk_rope_head_dim = " + std::to_string(s.rope_dim));
}

}  // namespace

Shape read_shape(const Json& config) {
    const ConfigFields root(config, "config.json");
    const auto text = root.object({"text_config"});
    const ConfigFields& f = text ? *text : root;
    Shape s{};
    s.vocab = f.integer({"vocab_size"}, 1, int64_t{1} << 24);
    s.hidden = f.integer({"hidden_size", "dim"}, 1, kMaxWidth);
    s.heads = static_cast<int32_t>(f.integer({"num_attention_heads", "n_heads"}, 1, 4096));
    s.head_dim = f.integer({"head_dim"}, 2, 16384);
    s.rope_dim = read_rope_dim(f, s.head_dim);
    s.q_rank = f.integer({"q_lora_rank"}, 1, kMaxWidth);
    s.groups = static_cast<int32_t>(f.integer({"o_groups"}, 1, 4096));
    s.group_rank = f.integer({"o_lora_rank"}, 1, kMaxWidth);
    s.window = static_cast<int32_t>(f.integer({"sliding_window", "window_size"}, 1, kMaxWidth));
    s.index_heads = static_cast<int32_t>(f.integer_or({"index_n_heads"}, 1, 4096, 1));
    s.index_dim = f.integer_or({"index_head_dim"}, 1, 16384, 128);
    s.index_top_k = static_cast<int32_t>(f.integer_or({"index_topk"}, 1, kMaxWidth, 512));
    s.streams = static_cast<int32_t>(f.integer({"hc_mult"}, 1, 16));
    s.sinkhorn_iterations = static_cast<int32_t>(f.integer({"hc_sinkhorn_iters"}, 1, 1000));
    s.hyper_eps = static_cast<float>(f.number({"hc_eps"}, 0.0, 1.0));
    s.norm_eps = static_cast<float>(f.number({"rms_norm_eps", "norm_eps"}, 0.0, 1.0));
    s.top_k = static_cast<int32_t>(f.integer({"num_experts_per_tok", "n_activated_experts"}, 1, 256));
    s.intermediate = f.integer({"moe_intermediate_size", "moe_inter_dim"}, 1, kMaxWidth);
    s.shared_experts = f.integer_or({"n_shared_experts"}, 0, 64, 1);
    s.routed_scale = static_cast<float>(f.number_or({"routed_scaling_factor", "route_scale"}, 0.0, 1e6, 1.0));
    s.normalise_weights = f.boolean_or({"norm_topk_prob"}, true);
    s.swiglu_limit = static_cast<float>(f.number({"swiglu_limit"}, 1e-6, 1e30));
    s.max_context = f.integer_or({"max_position_embeddings", "max_seq_len"}, 1, kMaxContext, 65536);
    read_ropes(f, s);
    read_layers(f, s);
    check(f, s);
    return s;
}

std::vector<float> rope_frequencies(const RopeShape& rope, int64_t dims) {
    const auto width = static_cast<double>(dims);
    // The pair whose wavelength makes `turns` turns within the original context.
    const auto pair_of = [&](double turns) {
        return width * std::log(rope.original_context / (turns * 2.0 * std::numbers::pi)) /
               (2.0 * std::log(rope.theta));
    };
    const double low = std::max(std::floor(pair_of(rope.beta_fast)), 0.0);
    double high = std::min(std::ceil(pair_of(rope.beta_slow)), width - 1.0);
    if (high == low) high += 0.001;
    std::vector<float> frequencies;
    for (int64_t i = 0; i < dims / 2; ++i) {
        const double plain = std::pow(rope.theta, -2.0 * static_cast<double>(i) / width);
        const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
        frequencies.push_back(
            static_cast<float>(rope.yarn ? plain * (1.0 - ramp) + plain / rope.factor * ramp : plain));
    }
    return frequencies;
}

}  // namespace thermocline::model::deepseek_v4
