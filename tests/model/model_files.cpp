#include "tests/model/model_files.h"

#include "src/base/check.h"
#include "src/base/error.h"
#include "src/quant/scalar.h"

#include <cstdlib>
#include <cstring>
#include <fstream>

namespace thermocline::model {

TemporaryFolder::TemporaryFolder() {
    std::string name = (std::filesystem::temp_directory_path() / "thermocline-XXXXXX").string();
    CHECK(::mkdtemp(name.data()) != nullptr);
    path_ = name;
}

TemporaryFolder::~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
}

std::filesystem::path TemporaryFolder::write(const std::string& name, std::string_view bytes) const {
    std::ofstream(path_ / name, std::ios::binary).write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return path_ / name;
}

std::string bytes_of_floats(const std::vector<float>& values) {
    return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(float)};
}

std::string bytes_of_bf16(const std::vector<float>& values) {
    std::string bytes;
    for (const float value : values) {
        const uint16_t code = quant::float_to_bf16(value);
        bytes.append(reinterpret_cast<const char*>(&code), 2);
    }
    return bytes;
}

FileTensor f32_tensor(const std::string& name, const Shape& shape, float value) {
    const auto count = static_cast<size_t>(element_count(shape).value());
    return {name, "F32", 0, shape, bytes_of_floats(std::vector<float>(count, value))};
}

std::vector<float> random_matrix(int64_t rows, int64_t cols, uint64_t seed, float size) {
    uint64_t state = seed * 0x9E3779B97F4A7C15u + 1;
    const auto uniform = [&state] {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        return static_cast<float>(state >> 40) * 0x1p-23f - 1.0f;
    };
    std::vector<float> row_size(static_cast<size_t>(rows)), col_size(static_cast<size_t>(cols));
    for (float& value : row_size) value = 1.0f + 0.5f * uniform();
    for (float& value : col_size) value = 1.0f + 0.5f * uniform();
    std::vector<float> values;
    for (int64_t n = 0; n < rows; ++n)
        for (int64_t k = 0; k < cols; ++k)
            values.push_back(size * row_size[static_cast<size_t>(n)] * col_size[static_cast<size_t>(k)] *
                             (uniform() + uniform() + uniform()));
    return values;
}

std::string safetensors_raw(const std::string& header, const std::string& data) {
    const uint64_t length = header.size();
    return std::string(reinterpret_cast<const char*>(&length), 8) + header + data;
}

std::string safetensors_file(const std::vector<FileTensor>& tensors) {
    Json header = Json::object();
    std::string data;
    for (const FileTensor& tensor : tensors) {
        Json entry = Json::object();
        entry["dtype"] = tensor.dtype;
        entry["shape"] = tensor.shape;
        entry["data_offsets"] = {data.size(), data.size() + tensor.bytes.size()};
        header[tensor.name] = std::move(entry);
        data += tensor.bytes;
    }
    return safetensors_raw(dump_json(header), data);
}

namespace {

template <typename T>
void append(std::string& text, T value) {
    text.append(reinterpret_cast<const char*>(&value), sizeof(T));
}

void append_text(std::string& text, const std::string& value) {
    append<uint64_t>(text, value.size());
    text += value;
}

}  // namespace

void GgufFile::key(const std::string& name, uint32_t type) {
    append_text(keys_, name);
    append(keys_, type);
    ++key_count_;
}

void GgufFile::u32(const std::string& name, uint32_t value) { key(name, 4), append(keys_, value); }
void GgufFile::i32(const std::string& name, int32_t value) { key(name, 5), append(keys_, value); }
void GgufFile::u16(const std::string& name, uint16_t value) { key(name, 2), append(keys_, value); }
void GgufFile::f32(const std::string& name, float value) { key(name, 6), append(keys_, value); }
void GgufFile::boolean(const std::string& name, bool value) { key(name, 7), append<uint8_t>(keys_, value); }
void GgufFile::text(const std::string& name, const std::string& value) { key(name, 8), append_text(keys_, value); }

void GgufFile::i32s(const std::string& name, const std::vector<int32_t>& values) {
    key(name, 9);
    append<uint32_t>(keys_, 5);
    append<uint64_t>(keys_, values.size());
    for (const int32_t value : values) append(keys_, value);
}

void GgufFile::f32s(const std::string& name, const std::vector<float>& values) {
    key(name, 9);
    append<uint32_t>(keys_, 6);
    append<uint64_t>(keys_, values.size());
    for (const float value : values) append(keys_, value);
}

std::string GgufFile::bytes(uint32_t alignment, uint32_t version) const {
    std::string file = "GGUF";
    append(file, version);
    append<uint64_t>(file, tensors_.size());
    append<uint64_t>(file, key_count_);
    file += keys_;
    std::string data;
    for (const FileTensor& tensor : tensors_) {
        append_text(file, tensor.name);
        append<uint32_t>(file, static_cast<uint32_t>(tensor.shape.size()));
        for (size_t i = tensor.shape.size(); i-- > 0;) append<int64_t>(file, tensor.shape[i]);
        append(file, tensor.gguf_type);
        data.resize((data.size() + alignment - 1) / alignment * alignment);
        append<uint64_t>(file, data.size());
        data += tensor.bytes;
    }
    file.resize((file.size() + alignment - 1) / alignment * alignment);
    return file + data;
}

namespace {

/// The dimensions that shapes are made of.
struct Dimensions {
    explicit Dimensions(const Json& config) : config_(config) {}
    int64_t operator[](const char* key) const { return config_.at(key).get<int64_t>(); }

private:
    const Json& config_;
};

int64_t resolve_attention(MatrixFinder& finder, const Dimensions& d, const std::string& attn, int64_t ratio) {
    const int64_t hidden = d["hidden_size"], heads = d["num_attention_heads"], width = d["head_dim"];
    const int64_t rank = d["q_lora_rank"], groups = d["o_groups"], out = d["o_lora_rank"];
    finder.vector(attn + "attn_sink", {heads});
    finder.vector(attn + "q_norm.weight", {rank});
    finder.vector(attn + "kv_norm.weight", {width});
    finder.matrix(attn + "wq_a", rank, hidden);
    finder.matrix(attn + "wq_b", heads * width, rank);
    finder.matrix(attn + "wkv", width, hidden);
    finder.matrix(attn + "wo_a", groups * out, heads * width / groups);
    finder.matrix(attn + "wo_b", hidden, groups * out);
    if (ratio == 0) return 5;
    const int64_t overlap = ratio == 4 ? 2 : 1;
    finder.vector(attn + "compressor.ape", {ratio, overlap * width});
    finder.vector(attn + "compressor.norm.weight", {width});
    finder.matrix(attn + "compressor.wkv", overlap * width, hidden);
    finder.matrix(attn + "compressor.wgate", overlap * width, hidden);
    if (ratio != 4) return 7;
    const int64_t index_heads = d["index_n_heads"], index_width = d["index_head_dim"];
    finder.matrix(attn + "indexer.wq_b", index_heads * index_width, rank);
    finder.matrix(attn + "indexer.weights_proj", index_heads, hidden);
    finder.vector(attn + "indexer.compressor.ape", {ratio, overlap * index_width});
    finder.vector(attn + "indexer.compressor.norm.weight", {index_width});
    finder.matrix(attn + "indexer.compressor.wkv", overlap * index_width, hidden);
    finder.matrix(attn + "indexer.compressor.wgate", overlap * index_width, hidden);
    return 11;
}

int64_t resolve_layer(MatrixFinder& finder, const Dimensions& d, const std::string& layer, int64_t ratio, bool hashed) {
    const int64_t hidden = d["hidden_size"], width = d["moe_intermediate_size"], streams = d["hc_mult"];
    finder.vector(layer + "attn_norm.weight", {hidden});
    finder.vector(layer + "ffn_norm.weight", {hidden});
    const int64_t mixes = streams * (streams + 2);
    for (const char* site : {"hc_attn_", "hc_ffn_"}) {
        finder.vector(layer + site + "fn", {mixes, streams * hidden});
        finder.vector(layer + site + "base", {mixes});
        finder.vector(layer + site + "scale", {3});
    }
    int64_t count = resolve_attention(finder, d, layer + "attn.", ratio);
    const int64_t experts = finder.expert_count(layer + "ffn.gate");
    finder.matrix(layer + "ffn.gate", experts, hidden);
    if (hashed)
        finder.table(layer + "ffn.gate.tid2eid", {d["vocab_size"], d["num_experts_per_tok"]}, experts);
    else
        finder.vector(layer + "ffn.gate.bias", {experts});
    for (const char* projection : {"w1", "w3"}) {
        count += static_cast<int64_t>(finder.experts(layer + "ffn.experts", projection, experts, width, hidden).size());
        finder.matrix(layer + "ffn.shared_experts." + projection, width, hidden);
    }
    count += static_cast<int64_t>(finder.experts(layer + "ffn.experts", "w2", experts, hidden, width).size());
    finder.matrix(layer + "ffn.shared_experts.w2", hidden, width);
    return count + 4;
}

void resolve_head(MatrixFinder& finder, const Dimensions& d, const std::string& prefix) {
    const int64_t hidden = d["hidden_size"], streams = d["hc_mult"];
    finder.vector(prefix + "norm.weight", {hidden});
    finder.vector(prefix + "hc_head_fn", {streams, streams * hidden});
    finder.vector(prefix + "hc_head_base", {streams});
    finder.vector(prefix + "hc_head_scale", {1});
}

}  // namespace

int64_t resolve_all(MatrixFinder& finder, const Json& config) {
    const Dimensions d(config);
    const int64_t hidden = d["hidden_size"];
    finder.matrix("embed", d["vocab_size"], hidden);
    finder.matrix("head", d["vocab_size"], hidden);
    resolve_head(finder, d, "");
    int64_t count = 2;
    for (int64_t i = 0; i < d["num_hidden_layers"]; ++i)
        count += resolve_layer(finder, d, "layers." + std::to_string(i) + ".",
                               config.at("compress_ratios").at(static_cast<size_t>(i)).get<int64_t>(),
                               i < d["num_hash_layers"]);
    for (int64_t i = 0; i < d["num_nextn_predict_layers"]; ++i) {
        const std::string mtp = "mtp." + std::to_string(i) + ".";
        count += resolve_layer(finder, d, mtp, 0, false);
        resolve_head(finder, d, mtp);
        finder.matrix(mtp + "e_proj", hidden, hidden);
        finder.matrix(mtp + "h_proj", hidden, hidden);
        finder.vector(mtp + "enorm.weight", {hidden});
        finder.vector(mtp + "hnorm.weight", {hidden});
        count += 2;
    }
    return count;
}

std::string golden_model(const std::string& name) {
    return std::string(THERMOCLINE_SOURCE_DIR) + "/tests/golden/models/" + name;
}

}  // namespace thermocline::model
