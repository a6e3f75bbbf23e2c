#include "tests/model/tiny_model.h"

#include "src/base/check.h"
#include "src/base/file.h"
#include "tests/source_path.h"

#include <cmath>
#include <cstring>
#include <fstream>
#include <unistd.h>
#include <utility>

namespace thermocline::tiny {
namespace {

constexpr int64_t kVocab = 97, kHidden = 64, kIntermediate = 32, kLayers = 5, kHashLayers = 2;
constexpr int64_t kRatios[kLayers] = {0, 4, 128, 4, 128};
constexpr int64_t kHeads = 4, kWidth = 80, kQueryRank = 24, kGroups = 2, kOutputRank = 16;
constexpr int64_t kExperts = 8, kActive = 3, kIndexHeads = 16, kIndexWidth = 32, kStreams = 4;

uint64_t fnv1a(const std::string& name) {
    uint64_t hash = 0xcbf29ce484222325;
    for (const char c : name) hash = (hash ^ static_cast<uint8_t>(c)) * 0x100000001b3;
    return hash;
}

/// Number `index` of tensor `name`, uniform in [-1, 1) with 24 bits.
double unit(uint64_t hash, uint64_t index) {
    uint64_t z = hash + index + 0x9E3779B97F4A7C15;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    z ^= z >> 31;
    return static_cast<double>(z >> 40) * 0x1p-23 - 1;
}

double value_of(const std::string& name, int64_t last_dimension, double u) {
    const std::string last = name.substr(name.rfind('.') + 1);
    if (name.ends_with("norm.weight")) return 1 + 0.25 * u;
    if (last.ends_with("_fn")) return 0.15 * u;
    if (last.ends_with("_base") || last.ends_with("_scale") || last == "attn_sink" || last == "ape" ||
        name == "embed.weight")
        return u;
    if (name.ends_with("gate.bias")) return 0.3 * u;
    return 1.7 / std::sqrt(static_cast<double>(last_dimension)) * u;
}

/// Collects tensors and writes one safetensors file.
class Writer {
public:
    void add(const std::string& name, const std::vector<int64_t>& shape) {
        int64_t count = 1;
        for (const int64_t dimension : shape) count *= dimension;
        const uint64_t hash = fnv1a(name);
        std::vector<float> values;
        for (int64_t i = 0; i < count; ++i)
            values.push_back(static_cast<float>(value_of(name, shape.back(), unit(hash, static_cast<uint64_t>(i)))));
        append(name, "F32", shape, values);
    }
    void add_token_table(const std::string& name) {
        std::vector<int64_t> values;
        for (int64_t t = 0; t < kVocab; ++t)
            for (int64_t j = 0; j < kActive; ++j) values.push_back((3 * t + j * (1 + t % 2) + t * t % 5) % kExperts);
        append(name, "I64", {kVocab, kActive}, values);
    }
    void write(const std::filesystem::path& path) const {
        const std::string header = dump_json(header_);
        const uint64_t size = header.size();
        std::ofstream file(path, std::ios::binary);
        file.exceptions(std::ios::badbit | std::ios::failbit);
        file.write(reinterpret_cast<const char*>(&size), sizeof size);
        file << header << data_;
    }

private:
    template <typename T>
    void append(const std::string& name, const char* dtype, const std::vector<int64_t>& shape,
                const std::vector<T>& values) {
        const size_t begin = data_.size();
        data_.append(reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T));
        header_[name] = {{"dtype", dtype}, {"shape", shape}, {"data_offsets", {begin, data_.size()}}};
    }

    Json header_ = Json::object();
    std::string data_;
};

void add_compressor(Writer& w, const std::string& prefix, int64_t ratio, int64_t width) {
    const int64_t wide = ratio == 4 ? 2 * width : width;
    w.add(prefix + "ape", {ratio, wide});
    w.add(prefix + "wkv.weight", {wide, kHidden});
    w.add(prefix + "wgate.weight", {wide, kHidden});
    w.add(prefix + "norm.weight", {width});
}

void add_attention(Writer& w, const std::string& prefix, int64_t ratio) {
    w.add(prefix + "attn_sink", {kHeads});
    w.add(prefix + "wq_a.weight", {kQueryRank, kHidden});
    w.add(prefix + "q_norm.weight", {kQueryRank});
    w.add(prefix + "wq_b.weight", {kHeads * kWidth, kQueryRank});
    w.add(prefix + "wkv.weight", {kWidth, kHidden});
    w.add(prefix + "kv_norm.weight", {kWidth});
    w.add(prefix + "wo_a.weight", {kGroups * kOutputRank, kHeads * kWidth / kGroups});
    w.add(prefix + "wo_b.weight", {kHidden, kGroups * kOutputRank});
    if (ratio != 0) add_compressor(w, prefix + "compressor.", ratio, kWidth);
    if (ratio == 4) {
        w.add(prefix + "indexer.wq_b.weight", {kIndexHeads * kIndexWidth, kQueryRank});
        w.add(prefix + "indexer.weights_proj.weight", {kIndexHeads, kHidden});
        add_compressor(w, prefix + "indexer.compressor.", 4, kIndexWidth);
    }
}

void add_layer(Writer& w, const std::string& prefix, int64_t ratio, bool hashed) {
    add_attention(w, prefix + "attn.", ratio);
    w.add(prefix + "ffn.gate.weight", {kExperts, kHidden});
    if (hashed)
        w.add_token_table(prefix + "ffn.gate.tid2eid");
    else
        w.add(prefix + "ffn.gate.bias", {kExperts});
    for (int64_t e = 0; e <= kExperts; ++e) {
        const std::string expert = e == kExperts ? "shared_experts" : "experts." + std::to_string(e);
        w.add(prefix + "ffn." + expert + ".w1.weight", {kIntermediate, kHidden});
        w.add(prefix + "ffn." + expert + ".w2.weight", {kHidden, kIntermediate});
        w.add(prefix + "ffn." + expert + ".w3.weight", {kIntermediate, kHidden});
    }
    for (const char* site : {"attn", "ffn"}) {
        w.add(prefix + site + "_norm.weight", {kHidden});
        w.add(prefix + "hc_" + site + "_fn", {(2 + kStreams) * kStreams, kStreams * kHidden});
        w.add(prefix + "hc_" + site + "_base", {(2 + kStreams) * kStreams});
        w.add(prefix + "hc_" + site + "_scale", {3});
    }
}

void add_head(Writer& w, const std::string& prefix) {
    w.add(prefix + "hc_head_fn", {kStreams, kStreams * kHidden});
    w.add(prefix + "hc_head_base", {kStreams});
    w.add(prefix + "hc_head_scale", {1});
    w.add(prefix + "norm.weight", {kHidden});
}

constexpr const char* kConfig = R"({
  "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "torch_dtype": "float32",
  "vocab_size": 97, "hidden_size": 64, "moe_intermediate_size": 32, "num_hidden_layers": 5,
  "num_attention_heads": 4, "num_key_value_heads": 1, "head_dim": 80, "qk_rope_head_dim": 16, "q_lora_rank": 24,
  "o_groups": 2, "o_lora_rank": 16, "sliding_window": 16, "compress_ratios": [0, 4, 128, 4, 128, 0],
  "rope_theta": 10000.0, "compress_rope_theta": 160000.0,
  "rope_scaling": {"type": "yarn", "factor": 16, "original_max_position_embeddings": 64, "beta_fast": 32,
                   "beta_slow": 1},
  "max_position_embeddings": 1024, "index_n_heads": 16, "index_head_dim": 32, "index_topk": 6,
  "hc_mult": 4, "hc_sinkhorn_iters": 20, "hc_eps": 1e-6, "rms_norm_eps": 1e-6,
  "n_routed_experts": 8, "n_shared_experts": 1, "num_experts_per_tok": 3, "scoring_func": "sqrtsoftplus",
  "topk_method": "noaux_tc", "norm_topk_prob": true, "routed_scaling_factor": 1.5, "num_hash_layers": 2,
  "swiglu_limit": 0.75, "num_nextn_predict_layers": 1, "hidden_act": "silu", "attention_bias": false,
  "tie_word_embeddings": false, "bos_token_id": 0, "eos_token_id": 1
}
)";

/// A directory that goes away with the process.
struct TemporaryModel {
    std::string path = (std::filesystem::temp_directory_path() / "thermocline-tiny-XXXXXX").string();
    TemporaryModel() {
        CHECK(mkdtemp(path.data()) != nullptr);
        write_model(path);
    }
    ~TemporaryModel() {
        std::error_code ignored;
        std::filesystem::remove_all(path, ignored);
    }
};

}  // namespace

void write_model(const std::filesystem::path& directory) {
    Writer w;
    w.add("embed.weight", {kVocab, kHidden});
    w.add("head.weight", {kVocab, kHidden});
    add_head(w, "");
    for (int64_t i = 0; i < kLayers; ++i)
        add_layer(w, "layers." + std::to_string(i) + ".", kRatios[i], i < kHashLayers);
    add_layer(w, "mtp.0.", 0, false);
    add_head(w, "mtp.0.");
    for (const char* name : {"e_proj", "h_proj"}) w.add(std::string("mtp.0.") + name + ".weight", {kHidden, kHidden});
    for (const char* name : {"enorm", "hnorm"}) w.add(std::string("mtp.0.") + name + ".weight", {kHidden});

    std::filesystem::create_directories(directory);
    std::ofstream(directory / "config.json") << kConfig;
    w.write(directory / "model.safetensors");
}

const std::string& model_path() {
    static const TemporaryModel model;
    return model.path;
}

std::vector<int32_t> tokens(int64_t count) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>((7 * i * i + 3 * i + 11) % kVocab));
    return ids;
}

const Json& golden() {
    static const Json values = parse_json(read_text(source_path("tests/golden/dsv4-tiny.json")), "dsv4-tiny.json");
    return values;
}

}  // namespace thermocline::tiny
