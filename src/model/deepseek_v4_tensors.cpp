// What the official checkpoint holds (section 4.1), for weights that come from no file. Whatever were wrong here would
// be refused by the layers that ask for these tensors by name and shape.
#include "src/base/error.h"
#include "src/model/config_fields.h"
#include "src/model/deepseek_v4.h"

#include <cmath>

namespace thermocline::model::deepseek_v4 {

namespace {

using quant::Format;
using Values = DummyTensor::Values;

constexpr size_t kMaxTensors = size_t{1} << 20;
constexpr double kVectorSize = 0.03;  // of biases, sinks and position terms: too small to decide anything

int64_t blocks(int64_t count, int64_t block) { return (count + block - 1) / block; }

/// A matrix of this size keeps the size of what it is multiplied with.
double matrix_size(int64_t cols) { return 1.0 / std::sqrt(static_cast<double>(cols)); }

class TensorList {
public:
    std::vector<DummyTensor> tensors;

    void bf16(const std::string& name, int64_t rows, int64_t cols) {
        add({name + ".weight", Format::kBF16, {rows, cols}, Values::kNumbers, matrix_size(cols)});
    }
    void f32(const std::string& name, int64_t rows, int64_t cols) {
        add({name, Format::kF32, {rows, cols}, Values::kNumbers, matrix_size(cols)});
    }
    void vector(const std::string& name, thermocline::Shape shape) {
        add({name, Format::kF32, std::move(shape), Values::kNumbers, kVectorSize});
    }
    void gains(const std::string& name, int64_t width) {
        add({name + ".weight", Format::kBF16, {width}, Values::kGains, 1.0});
    }
    void fp8(const std::string& name, int64_t rows, int64_t cols) {
        add({name + ".weight", Format::kE4M3, {rows, cols}, Values::kCodes, 1.0});
        add({name + ".scale",
             Format::kE8M0,
             {blocks(rows, 128), blocks(cols, 128)},
             Values::kScales,
             matrix_size(cols) / kDummyE4M3Size});
    }
    void fp4(const std::string& name, int64_t rows, int64_t cols) {
        if (cols % 32 != 0) fail("config.json: ", name, " has ", cols, " columns, expected a multiple of 32 for FP4");
        add({name + ".weight", Format::kI8, {rows, cols / 2}, Values::kCodes, 1.0});
        add({name + ".scale", Format::kE8M0, {rows, cols / 32}, Values::kScales, matrix_size(cols) / kDummyE2M1Size});
    }
    void ids(const std::string& name, int64_t rows, int64_t k, int64_t limit) {
        add({name, Format::kI64, {rows, k}, Values::kIds, static_cast<double>(limit)});
    }
    void hyper(const std::string& name, int64_t mixes, int64_t width, int64_t scales) {
        f32(name + "_fn", mixes, width);
        vector(name + "_base", {mixes});
        vector(name + "_scale", {scales});
    }

private:
    void add(DummyTensor tensor) {
        if (tensors.size() == kMaxTensors) fail("config.json: asks for more than ", kMaxTensors, " tensors");
        tensors.push_back(std::move(tensor));
    }
};

void add_compressor(TensorList& list, const Shape& s, const std::string& at, const LayerShape& layer, int64_t width) {
    const int64_t wide = layer.context == Context::kSparse ? 2 * width : width;
    list.vector(at + ".ape", {layer.ratio, wide});
    list.bf16(at + ".wkv", wide, s.hidden);
    list.bf16(at + ".wgate", wide, s.hidden);
    list.gains(at + ".norm", width);
}

void add_attention(TensorList& list, const Shape& s, const std::string& at, const LayerShape& layer) {
    list.vector(at + ".attn_sink", {s.heads});
    list.fp8(at + ".wq_a", s.q_rank, s.hidden);
    list.gains(at + ".q_norm", s.q_rank);
    list.fp8(at + ".wq_b", s.heads * s.head_dim, s.q_rank);
    list.fp8(at + ".wkv", s.head_dim, s.hidden);
    list.gains(at + ".kv_norm", s.head_dim);
    list.fp8(at + ".wo_a", s.groups * s.group_rank, s.heads / s.groups * s.head_dim);
    list.fp8(at + ".wo_b", s.hidden, s.groups * s.group_rank);
    if (layer.context != Context::kWindow) add_compressor(list, s, at + ".compressor", layer, s.head_dim);
    if (layer.context != Context::kSparse) return;
    list.fp8(at + ".indexer.wq_b", s.index_heads * s.index_dim, s.q_rank);
    list.bf16(at + ".indexer.weights_proj", s.index_heads, s.hidden);
    add_compressor(list, s, at + ".indexer.compressor", layer, s.index_dim);
}

void add_expert(TensorList& list, void (TensorList::*matrix)(const std::string&, int64_t, int64_t),
                const std::string& at, int64_t hidden, int64_t intermediate) {
    (list.*matrix)(at + ".w1", intermediate, hidden);
    (list.*matrix)(at + ".w2", hidden, intermediate);
    (list.*matrix)(at + ".w3", intermediate, hidden);
}

void add_layer(TensorList& list, const Shape& s, const std::string& at, const LayerShape& layer, int64_t experts) {
    list.gains(at + ".attn_norm", s.hidden);
    list.gains(at + ".ffn_norm", s.hidden);
    const int64_t mixes = s.streams * (2 + s.streams);
    for (const char* site : {".hc_attn", ".hc_ffn"}) list.hyper(at + site, mixes, s.streams * s.hidden, 3);
    add_attention(list, s, at + ".attn", layer);
    const std::string ffn = at + ".ffn";
    list.bf16(ffn + ".gate", experts, s.hidden);
    if (layer.routed_by_token)
        list.ids(ffn + ".gate.tid2eid", s.vocab, s.top_k, experts);
    else
        list.vector(ffn + ".gate.bias", {experts});
    for (int64_t e = 0; e < experts; ++e)
        add_expert(list, &TensorList::fp4, ffn + ".experts." + std::to_string(e), s.hidden, s.intermediate);
    if (s.shared_experts > 0)
        add_expert(list, &TensorList::fp8, ffn + ".shared_experts", s.hidden, s.intermediate * s.shared_experts);
}

}  // namespace

std::vector<DummyTensor> dummy_tensors(const Json& config, int32_t layers) {
    const Shape s = read_shape(config);
    const ConfigFields fields(config, "config.json");
    const int64_t experts = fields.integer({"n_routed_experts"}, s.top_k, 1 << 16);
    if (fields.string_or({"expert_dtype"}, "fp4") != "fp4") fields.wrong("expert_dtype", "\"fp4\" for dummy weights");
    TensorList list;
    list.bf16("embed", s.vocab, s.hidden);
    list.bf16("head", s.vocab, s.hidden);
    list.gains("norm", s.hidden);
    list.hyper("hc_head", s.streams, s.streams * s.hidden, 1);
    const size_t kept = layers == 0 ? s.layers.size() : std::min(s.layers.size(), static_cast<size_t>(layers));
    for (size_t i = 0; i < kept; ++i) add_layer(list, s, "layers." + std::to_string(i), s.layers[i], experts);
    if (kept < s.layers.size() || fields.integer_or({"num_nextn_predict_layers"}, 0, 64, 0) == 0) return list.tensors;

    add_layer(list, s, "mtp.0", s.mtp, experts);
    for (const char* name : {"mtp.0.e_proj", "mtp.0.h_proj"}) list.fp8(name, s.hidden, s.hidden);
    for (const char* name : {"mtp.0.enorm", "mtp.0.hnorm", "mtp.0.norm"}) list.gains(name, s.hidden);
    list.hyper("mtp.0.hc_head", s.streams, s.streams * s.hidden, 1);
    return list.tensors;
}

}  // namespace thermocline::model::deepseek_v4
