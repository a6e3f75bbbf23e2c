#include "src/model/names.h"

#include <array>
#include <charconv>
#include <string_view>

namespace thermocline::model {

namespace {

constexpr std::string_view kWeight = ".weight";

/// A name inside a layer (or inside the root). GGUF spellings: llama.cpp's first, then what older conversions wrote.
/// Those that end in ".bias" or ".weight" are complete, all others take ".weight".
struct NameRow {
    std::string_view official;
    std::string_view hf;
    std::array<std::string_view, 3> gguf;
};

constexpr NameRow kRootRows[] = {
    {"embed", "model.embed_tokens", {"token_embd"}},
    {"head", "lm_head", {"output"}},
    {"norm", "model.norm", {"output_norm"}},
    {"hc_head_fn", "model.hc_head.hc_fn", {"output_hc_fn", "hc_head_fn"}},
    {"hc_head_base", "model.hc_head.hc_base", {"output_hc_base", "hc_head_base"}},
    {"hc_head_scale", "model.hc_head.hc_scale", {"output_hc_scale", "hc_head_scale"}},
};

constexpr NameRow kLayerRows[] = {
    {"attn_norm", "input_layernorm", {"attn_norm"}},
    {"ffn_norm", "post_attention_layernorm", {"ffn_norm"}},
    {"hc_attn_fn", "attn_hc.fn", {"hc_attn_fn"}},
    {"hc_attn_base", "attn_hc.base", {"hc_attn_base"}},
    {"hc_attn_scale", "attn_hc.scale", {"hc_attn_scale"}},
    {"hc_ffn_fn", "ffn_hc.fn", {"hc_ffn_fn"}},
    {"hc_ffn_base", "ffn_hc.base", {"hc_ffn_base"}},
    {"hc_ffn_scale", "ffn_hc.scale", {"hc_ffn_scale"}},
    {"attn.attn_sink", "self_attn.sinks", {"attn_sinks"}},
    {"attn.wq_a", "self_attn.q_a_proj", {"attn_q_a"}},
    {"attn.q_norm", "self_attn.q_a_norm", {"attn_q_a_norm"}},
    {"attn.wq_b", "self_attn.q_b_proj", {"attn_q_b"}},
    {"attn.wkv", "self_attn.kv_proj", {"attn_kv", "attn_kv_latent", "attn_kv_a_mqa"}},
    {"attn.kv_norm", "self_attn.kv_norm", {"attn_kv_a_norm"}},
    {"attn.wo_a", "self_attn.o_a_proj", {"attn_output_a"}},
    {"attn.wo_b", "self_attn.o_b_proj", {"attn_output_b"}},
    {"attn.compressor.wkv", "self_attn.compressor.kv_proj", {"attn_compressor_kv", "attn_compress_kv"}},
    {"attn.compressor.wgate", "self_attn.compressor.gate_proj", {"attn_compressor_gate", "attn_compress_gate"}},
    {"attn.compressor.ape", "self_attn.compressor.position_bias", {"attn_compressor_ape", "attn_compress_ape"}},
    {"attn.compressor.norm", "self_attn.compressor.kv_norm", {"attn_compressor_norm", "attn_compress_norm"}},
    {"attn.indexer.wq_b", "self_attn.compressor.indexer.q_b_proj", {"indexer.attn_q_b"}},
    {"attn.indexer.weights_proj", "self_attn.compressor.indexer.scorer.weights_proj", {"indexer.proj"}},
    {"attn.indexer.compressor.wkv",
     "self_attn.compressor.indexer.kv_proj",
     {"indexer_compressor_kv", "indexer.compress_kv"}},
    {"attn.indexer.compressor.wgate",
     "self_attn.compressor.indexer.gate_proj",
     {"indexer_compressor_gate", "indexer.compress_gate"}},
    {"attn.indexer.compressor.ape",
     "self_attn.compressor.indexer.position_bias",
     {"indexer_compressor_ape", "indexer.compress_ape"}},
    {"attn.indexer.compressor.norm",
     "self_attn.compressor.indexer.kv_norm",
     {"indexer_compressor_norm", "indexer.compress_norm"}},
    {"ffn.gate", "mlp.gate", {"ffn_gate_inp"}},
    {"ffn.gate.bias", "mlp.gate.e_score_correction_bias", {"exp_probs_b.bias", "exp_probs_b.weight"}},
    {"ffn.gate.tid2eid", "mlp.gate.tid2eid", {"ffn_gate_tid2eid"}},
    {"ffn.shared_experts.w1", "mlp.shared_experts.gate_proj", {"ffn_gate_shexp"}},
    {"ffn.shared_experts.w3", "mlp.shared_experts.up_proj", {"ffn_up_shexp"}},
    {"ffn.shared_experts.w2", "mlp.shared_experts.down_proj", {"ffn_down_shexp"}},
    {"ffn.experts.w1", "", {"ffn_gate_exps"}},
    {"ffn.experts.w3", "", {"ffn_up_exps"}},
    {"ffn.experts.w2", "mlp.experts.down_proj", {"ffn_down_exps"}},
    {"ffn.experts.w13", "mlp.experts.gate_up_proj", {"ffn_gate_up_exps"}},
};

/// Only in MTP layers. HF keeps the official names there: transformers does not know the layer.
constexpr NameRow kMtpRows[] = {
    {"e_proj", "", {"nextn.e_proj", "e_proj"}},
    {"h_proj", "", {"nextn.h_proj", "h_proj"}},
    {"eh_proj", "", {"nextn.eh_proj"}},
    {"enorm", "", {"nextn.enorm", "enorm"}},
    {"hnorm", "", {"nextn.hnorm", "hnorm"}},
    {"norm", "", {"nextn.shared_head_norm", "norm"}},
    {"hc_head_fn", "", {"nextn.hc_head_fn", "hc_head_fn"}},
    {"hc_head_base", "", {"nextn.hc_head_base", "hc_head_base"}},
    {"hc_head_scale", "", {"nextn.hc_head_scale", "hc_head_scale"}},
};

template <size_t kRows>
const NameRow* find_row(const NameRow (&rows)[kRows], std::string_view official) {
    for (const NameRow& row : rows)
        if (row.official == official) return &row;
    return nullptr;
}

/// "layers.12.attn.wq_a" = section "layers", number 12, local "attn.wq_a"; root names have section "".
struct Parsed {
    std::string_view section;
    int64_t number = 0;
    std::string_view local;
};

Parsed parse(std::string_view name) {
    for (const std::string_view section : {std::string_view("layers"), std::string_view("mtp")}) {
        if (!name.starts_with(section) || name.substr(section.size(), 1) != ".") continue;
        const std::string_view rest = name.substr(section.size() + 1);
        const size_t dot = rest.find('.');
        int64_t number = 0;
        const char* end = rest.data() + std::min(dot, rest.size());
        if (dot == std::string_view::npos || std::from_chars(rest.data(), end, number).ptr != end) continue;
        return {section, number, rest.substr(dot + 1)};
    }
    return {"", 0, name};
}

const NameRow* row_of(const Parsed& name) {
    if (name.section.empty()) return find_row(kRootRows, name.local);
    const NameRow* row = find_row(kLayerRows, name.local);
    return row || name.section != "mtp" ? row : find_row(kMtpRows, name.local);
}

/// "ffn.experts.7.w1" -> "mlp.experts.7.gate_proj"; other names -> "".
std::string hf_expert(std::string_view local) {
    constexpr std::string_view kExperts = "ffn.experts.";
    if (!local.starts_with(kExperts)) return "";
    const size_t dot = local.rfind('.');
    const std::string_view projection = local.substr(dot + 1);
    const std::string_view hf = projection == "w1" ? "gate_proj" : projection == "w3" ? "up_proj" : "down_proj";
    return "mlp.experts." + std::string(local.substr(kExperts.size(), dot + 1 - kExperts.size())) + std::string(hf);
}

std::string hf_module(const std::string& official) {
    const Parsed name = parse(official);
    if (name.section == "mtp") return official;
    const NameRow* row = row_of(name);
    const std::string local = row ? std::string(row->hf) : hf_expert(name.local);
    if (local.empty()) return official;
    return name.section.empty() ? local : "model.layers." + std::to_string(name.number) + "." + local;
}

/// Every spelling a safetensors checkpoint may use. save_pretrained of transformers 5.23 undoes the renamings of
/// loading in part: "model." stays before official names ("model.layers.0.attn.wq_a", but "head"), and every kv_norm
/// becomes "norm", also under names that are otherwise HF's ("model.layers.0.self_attn.norm") or official.
std::vector<std::string> safetensors_modules(const std::string& official, Naming naming) {
    std::vector<std::string> names = {official};
    if (naming == Naming::kHf) names = {hf_module(official), "model." + official, official};
    constexpr std::string_view kKvNorm = "kv_norm";
    for (size_t i = 0, count = names.size(); i < count; ++i)
        if (names[i].ends_with(kKvNorm)) names.push_back(names[i].substr(0, names[i].size() - kKvNorm.size()) + "norm");
    return names;
}

std::vector<std::string> gguf_modules(const std::string& official, int64_t trunk_layers) {
    const Parsed name = parse(official);
    const NameRow* row = row_of(name);
    if (!row) return {};
    std::vector<std::string> prefixes = {""};
    if (name.section == "layers") prefixes = {"blk." + std::to_string(name.number) + "."};
    if (name.section == "mtp")
        prefixes = {"blk." + std::to_string(trunk_layers + name.number) + ".",
                    "mtp." + std::to_string(name.number) + "."};
    std::vector<std::string> names;
    for (const std::string& prefix : prefixes)
        for (const std::string_view spelling : row->gguf)
            if (!spelling.empty()) names.push_back(prefix + std::string(spelling));
    return names;
}

}  // namespace

const char* naming_text(Naming naming) {
    switch (naming) {
        case Naming::kOfficial:
            return "official";
        case Naming::kHf:
            return "HF transformers";
        case Naming::kGguf:
            return "GGUF";
    }
    return "";
}

Naming recognise_naming(const Checkpoint& checkpoint) {
    if (checkpoint.container == "gguf") return Naming::kGguf;
    const auto first = checkpoint.weights.tensors.lower_bound("model.");
    const bool hf = first != checkpoint.weights.tensors.end() && first->first.starts_with("model.");
    return hf ? Naming::kHf : Naming::kOfficial;
}

std::vector<std::string> NameTable::modules(const std::string& official) const {
    return naming_ == Naming::kGguf ? gguf_modules(official, trunk_layers_) : safetensors_modules(official, naming_);
}

std::vector<std::string> NameTable::tensors(const std::string& official) const {
    const bool is_weight = official.ends_with(kWeight);
    std::vector<std::string> names =
        modules(is_weight ? official.substr(0, official.size() - kWeight.size()) : official);
    for (std::string& name : names) {
        const bool complete = name.ends_with(".bias") || name.ends_with(kWeight);
        if (naming_ == Naming::kGguf ? !complete : is_weight) name += kWeight;
    }
    return names;
}

}  // namespace thermocline::model
