// From names to matrices: every naming scheme, every quantisation scheme of weight-formats.md section 10, and the
// refusals. Matrices are decoded by the reference decoder and compared with what was written.
#include "src/model/matrices.h"

#include "src/model/gguf.h"
#include "src/model/safetensors.h"
#include "src/quant/scalar.h"
#include "tests/model/model_files.h"

#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <regex>

namespace thermocline::model {
namespace {

using quant::EncodedMatrix;
using quant::Format;
using quant::Matrix;

std::string text(const std::vector<std::byte>& bytes) {
    return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

Checkpoint checkpoint_of(const std::vector<FileTensor>& tensors, const std::string& config = "{}") {
    Checkpoint checkpoint;
    checkpoint.container = "safetensors";
    checkpoint.config = parse_config(config);
    read_safetensors(MappedFile::from_bytes(safetensors_file(tensors), "model.safetensors"), checkpoint.weights);
    return checkpoint;
}

Checkpoint checkpoint_of(const GgufFile& file, const std::string& config = "{}") {
    Checkpoint checkpoint;
    checkpoint.container = "gguf";
    checkpoint.config = parse_config(config);
    read_gguf(MappedFile::from_bytes(file.bytes(), "model.gguf"), checkpoint.weights, checkpoint.metadata);
    return checkpoint;
}

const char* dtype_of(Format format) {
    return format == Format::kE8M0   ? "F8_E8M0"
           : format == Format::kE4M3 ? "F8_E4M3"
           : format == Format::kBF16 ? "BF16"
                                     : "F32";
}

/// One linear in a checkpoint of its own, and what its numbers should be.
struct OneLinear {
    std::vector<FileTensor> tensors;
    std::vector<float> expected;
    int64_t rows = 0, cols = 0;
    std::string config = "{}";

    std::vector<float> read() const {
        const Checkpoint checkpoint = checkpoint_of(tensors, config);
        MatrixFinder finder(checkpoint);
        const Matrix matrix = finder.matrix("layers.0.attn.wq_a", rows, cols);
        const MappedFile& file = *checkpoint.weights.files.front();
        EXPECT_GE(matrix.data, file.bytes().data()) << "copied";
        EXPECT_LT(matrix.data, file.bytes().data() + file.size()) << "copied";
        EXPECT_TRUE(finder.unused().empty()) << finder.unused().front();
        return quant::decode_matrix(matrix);
    }
    std::string refusal() const {
        return error_of([&] { read(); });
    }
    FileTensor& operator[](const std::string& suffix) {
        for (FileTensor& tensor : tensors)
            if (tensor.name == "layers.0.attn.wq_a" + suffix) return tensor;
        tensors.push_back({"layers.0.attn.wq_a" + suffix, "F32", 0, {}, ""});
        return tensors.back();
    }
    void drop(const std::string& suffix) {
        std::erase_if(tensors, [&](const FileTensor& tensor) { return tensor.name == "layers.0.attn.wq_a" + suffix; });
    }
};

OneLinear encoded(const quant::Recipe& recipe, int64_t rows, int64_t cols, const std::string& weight,
                  const std::string& dtype, Shape shape, const std::string& scale, Shape scale_shape) {
    OneLinear linear;
    linear.rows = rows;
    linear.cols = cols;
    const EncodedMatrix matrix = quant::encode_matrix(recipe, random_matrix(rows, cols, 5).data(), rows, cols);
    linear.expected = quant::decode_matrix(matrix.view());
    linear[weight] = {"layers.0.attn.wq_a" + weight, dtype, 0, std::move(shape), text(matrix.codes)};
    linear[scale] = {"layers.0.attn.wq_a" + scale, dtype_of(recipe.scale_format), 0, std::move(scale_shape),
                     text(matrix.scales)};
    if (!matrix.zero_points.empty())
        linear[".weight_zero_point"] = {"layers.0.attn.wq_a.weight_zero_point",
                                        "I32",
                                        0,
                                        {(rows + 7) / 8, linear[scale].shape[1]},
                                        text(matrix.zero_points)};
    if (recipe.scale_format == Format::kE4M3) {
        const float multiplier = matrix.shape.multiplier;
        linear[".weight_scale_2"] = {"layers.0.attn.wq_a.weight_scale_2", "F32", 0, {}, bytes_of_floats({multiplier})};
    }
    return linear;
}

OneLinear fp8(const std::string& suffix = ".scale") {
    return encoded(quant::kFp8Blocks, 200, 320, ".weight", "F8_E4M3", {200, 320}, suffix, {2, 3});
}
OneLinear mxfp4() { return encoded(quant::kMxfp4, 24, 96, ".weight", "I8", {24, 48}, ".scale", {24, 3}); }
OneLinear nvfp4() { return encoded(quant::kNvfp4, 24, 96, ".weight", "U8", {24, 48}, ".weight_scale", {24, 6}); }
OneLinear int4(bool zero_points = false) {
    quant::Recipe recipe = quant::kInt4Group128;
    recipe.zero_points = zero_points;
    OneLinear linear = encoded(recipe, 20, 256, ".weight_packed", "I32", {20, 32}, ".weight_scale", {20, 2});
    const int64_t shape[2] = {20, 256};
    linear[".weight_shape"] = {
        "layers.0.attn.wq_a.weight_shape", "I64", 0, {2}, std::string(reinterpret_cast<const char*>(shape), 16)};
    return linear;
}

void expect_mentions(const std::string& message, const std::vector<std::string>& parts) {
    for (const std::string& part : parts) EXPECT_NE(message.find(part), std::string::npos) << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
}

TEST(Linear, PlainFormats) {
    for (const char* dtype : {"F32", "BF16"}) {
        OneLinear linear;
        linear.rows = 3, linear.cols = 5;
        linear.expected = random_matrix(3, 5, 1);
        if (dtype == std::string("BF16"))
            for (float& value : linear.expected) value = quant::round_bf16(value);
        const std::string bytes =
            dtype == std::string("BF16") ? bytes_of_bf16(linear.expected) : bytes_of_floats(linear.expected);
        linear[".weight"] = {"layers.0.attn.wq_a.weight", dtype, 0, {3, 5}, bytes};
        EXPECT_EQ(linear.read(), linear.expected);
        linear.cols = 6;
        expect_mentions(linear.refusal(), {"layers.0.attn.wq_a.weight", "[3, 5]", "[3, 6]"});
    }
}

TEST(Linear, EmptyMatricesAreRefused) {
    for (const auto& [rows, cols] : {std::pair<int64_t, int64_t>{int64_t{1} << 40, 0}, {0, 5}}) {
        OneLinear linear;
        linear.rows = rows, linear.cols = cols;
        linear[".weight"] = {"layers.0.attn.wq_a.weight", "F32", 0, {rows, cols}, ""};
        expect_mentions(linear.refusal(), {"layers.0.attn.wq_a.weight", "at least one row and one column"});
    }
}

TEST(Linear, Fp8UnderEverySuffixAndGranularity) {
    for (const char* suffix : {".scale", ".weight_scale", ".weight_scale_inv"}) {
        const OneLinear linear = fp8(suffix);
        EXPECT_EQ(linear.read(), linear.expected) << suffix;
    }
    using quant::kWhole;
    const quant::Recipe per_tensor = {Format::kE4M3, Format::kF32, kWhole, kWhole, false};
    const quant::Recipe per_row = {Format::kE4M3, Format::kBF16, 1, kWhole, false};
    const quant::Recipe mxfp8 = {Format::kE4M3, Format::kE8M0, 1, 32, false};
    const quant::Recipe blocks = {Format::kE4M3, Format::kBF16, 128, 128, false};
    for (const OneLinear& linear :
         {encoded(per_tensor, 150, 160, ".weight", "F8_E4M3", {150, 160}, ".weight_scale", {1}),
          encoded(per_tensor, 150, 160, ".weight", "F8_E4M3", {150, 160}, ".weight_scale", {}),
          encoded(per_row, 150, 160, ".weight", "F8_E4M3", {150, 160}, ".weight_scale", {150, 1}),
          encoded(mxfp8, 150, 160, ".weight", "F8_E4M3", {150, 160}, ".weight_scale", {150, 5}),
          encoded(blocks, 150, 160, ".weight", "F8_E4M3", {150, 160}, ".weight_scale", {2, 2})})
        EXPECT_EQ(linear.read(), linear.expected) << to_string(linear.tensors[1].shape);
}

TEST(Linear, Fp8Refusals) {
    OneLinear linear = fp8();
    linear[".scale"].bytes[4] = '\xff';
    expect_mentions(linear.refusal(), {"layers.0.attn.wq_a.scale", "NaN", "[1, 1]"});
    linear = fp8();
    linear[".weight"].bytes[1000] = '\x7f';
    expect_mentions(linear.refusal(), {"layers.0.attn.wq_a.weight", "NaN code", "[3, 40]"});
    linear = fp8();
    linear.drop(".scale");
    expect_mentions(linear.refusal(), {"layers.0.attn.wq_a", "no known quantisation", ".weight F8_E4M3"});
    linear = fp8();
    FileTensor second = linear[".scale"];
    second.name = "layers.0.attn.wq_a.weight_scale";
    linear.tensors.push_back(second);
    expect_mentions(linear.refusal(), {"no known quantisation", ".scale", ".weight_scale"});
    linear = fp8();
    linear[".scale"].shape = {3, 2};
    expect_mentions(linear.refusal(), {"layers.0.attn.wq_a.scale", "[3, 2]", "[200, 320]"});
    linear = fp8();
    linear[".scale"].dtype = "U8";
    expect_mentions(linear.refusal(), {"layers.0.attn.wq_a.scale", "U8", "ue8m0"});
    linear.config = R"({"quantization_config":{"scale_fmt":"ue8m0"}})";
    EXPECT_EQ(linear.read(), linear.expected);
    linear = fp8();
    linear.drop(".weight");
    expect_mentions(linear.refusal(), {"layers.0.attn.wq_a.weight is missing", "[200, 320]"});
    for (const float bad : {0.0f, -1.0f, INFINITY, NAN}) {
        linear = encoded({Format::kE4M3, Format::kF32, 128, 128, false}, 200, 320, ".weight", "F8_E4M3", {200, 320},
                         ".scale", {2, 3});
        std::memcpy(linear[".scale"].bytes.data() + 8, &bad, 4);
        expect_mentions(linear.refusal(), {"layers.0.attn.wq_a.scale", "[0, 2]"});
    }
}

TEST(Linear, Mxfp4) {
    OneLinear linear = mxfp4();
    EXPECT_EQ(linear.read(), linear.expected);
    linear[".scale"].dtype = "U8";
    EXPECT_EQ(linear.read(), linear.expected);
    linear = mxfp4();
    linear[".weight"].dtype = "F4";
    linear[".weight"].shape = {24, 96};
    EXPECT_EQ(linear.read(), linear.expected);
    linear = encoded(quant::kMxfp4, 24, 96, ".weight_packed", "U8", {24, 48}, ".weight_scale", {24, 3});
    EXPECT_EQ(linear.read(), linear.expected);
    linear[".weight_scale"].shape = {8, 9};
    expect_mentions(linear.refusal(), {"layers.0.attn.wq_a.weight_scale", "[8, 9]", "[24, 3]"});
    linear = mxfp4();
    linear[".scale"].bytes[7] = '\xff';
    expect_mentions(linear.refusal(), {"layers.0.attn.wq_a.scale", "NaN", "[2, 1]"});
}

TEST(Linear, Nvfp4InBothConventions) {
    OneLinear linear = nvfp4();
    EXPECT_EQ(linear.read(), linear.expected);
    float multiplier = 0;
    std::memcpy(&multiplier, linear[".weight_scale_2"].bytes.data(), 4);
    linear[".input_scale"] = f32_tensor("layers.0.attn.wq_a.input_scale", {}, 1.0f);
    EXPECT_EQ(linear.read(), linear.expected);

    OneLinear divisor = encoded(quant::kNvfp4, 24, 96, ".weight_packed", "U8", {24, 48}, ".weight_scale", {24, 6});
    divisor.drop(".weight_scale_2");
    divisor[".weight_global_scale"] = f32_tensor("layers.0.attn.wq_a.weight_global_scale", {1}, 1.0f / multiplier);
    divisor[".input_global_scale"] = f32_tensor("layers.0.attn.wq_a.input_global_scale", {1}, 3.0f);
    const std::vector<float> values = divisor.read();
    for (size_t i = 0; i < values.size(); ++i) EXPECT_NEAR(values[i], linear.expected[i], 1e-6f);

    divisor[".weight_global_scale"] = f32_tensor("layers.0.attn.wq_a.weight_global_scale", {1}, multiplier);
    expect_mentions(divisor.refusal(), {"layers.0.attn.wq_a.weight_global_scale", "global scale convention"});
    linear[".weight_scale_2"] = f32_tensor("layers.0.attn.wq_a.weight_scale_2", {}, 1.0f / multiplier);
    expect_mentions(linear.refusal(), {"layers.0.attn.wq_a.weight_scale_2", "global scale convention"});
}

TEST(Linear, Nvfp4Refusals) {
    OneLinear linear = nvfp4();
    linear[".weight_scale"].bytes[13] = '\x7f';
    expect_mentions(linear.refusal(), {"layers.0.attn.wq_a.weight_scale", "NaN", "[2, 1]"});
    linear[".weight_scale"].bytes[13] = '\x81';
    expect_mentions(linear.refusal(), {"layers.0.attn.wq_a.weight_scale", "negative", "[2, 1]"});
    linear = nvfp4();
    linear[".weight_scale"] = {"layers.0.attn.wq_a.weight_scale", "U8", 0, {128 * 8}, std::string(128 * 8, '\x30')};
    expect_mentions(linear.refusal(), {"layers.0.attn.wq_a.weight_scale", "swizzled"});
    linear[".weight_scale"] = {"layers.0.attn.wq_a.weight_scale", "F8_E4M3", 0, {24, 3}, std::string(72, '\x30')};
    expect_mentions(linear.refusal(), {"layers.0.attn.wq_a.weight_scale", "half of the block scales"});
    linear = nvfp4();
    linear.drop(".weight_scale_2");
    expect_mentions(linear.refusal(), {"no known quantisation", ".weight U8"});
    for (const float bad : {0.0f, -1.0f, NAN, 1e30f, 1e-30f}) {
        linear = nvfp4();
        linear[".weight_scale_2"] = f32_tensor("layers.0.attn.wq_a.weight_scale_2", {}, bad);
        expect_mentions(linear.refusal(), {"layers.0.attn.wq_a.weight_scale_2"});
    }
}

TEST(Linear, Int4) {
    OneLinear linear = int4();
    EXPECT_EQ(linear.read(), linear.expected);
    linear = int4(true);
    EXPECT_EQ(linear.read(), linear.expected);
    std::vector<int32_t> groups(256);
    for (size_t k = 0; k < 256; ++k) groups[k] = static_cast<int32_t>(k / 128);
    const auto index = [&] { return std::string(reinterpret_cast<const char*>(groups.data()), 1024); };
    linear[".weight_g_idx"] = {"layers.0.attn.wq_a.weight_g_idx", "I32", 0, {256}, index()};
    EXPECT_EQ(linear.read(), linear.expected) << "a trivial g_idx says nothing";
    std::swap(groups[0], groups[200]);
    linear[".weight_g_idx"].bytes = index();
    expect_mentions(linear.refusal(), {"weight_g_idx", "column 0 into group 1", "actorder"});
}

TEST(Linear, Int4Refusals) {
    OneLinear linear = int4();
    linear[".weight_shape"].bytes[8] = '\1';
    expect_mentions(linear.refusal(), {"weight_shape", "holds [20, 257]", "expected [20, 256]"});
    linear = int4();
    linear[".weight_scale"].shape = {20, 1, 2};
    expect_mentions(linear.refusal(), {"layers.0.attn.wq_a.weight_scale", "[20, 1, 2]"});
    linear = int4(true);
    linear[".weight_zero_point"].shape = {2, 3};
    expect_mentions(linear.refusal(), {"weight_zero_point", "[2, 3]", "[3, 2]"});
    linear = int4();
    linear[".weight_packed"] = {"layers.0.attn.wq_a.weight_packed", "I32", 0, {20, 64}, std::string(20 * 64 * 4, '\0')};
    expect_mentions(linear.refusal(), {"weight_packed", "8-bit"});
}

TEST(Linear, UnknownSchemesAreRefusedWithWhatWasFound) {
    OneLinear linear;
    linear.rows = linear.cols = 8;
    linear[".weight"] = {"layers.0.attn.wq_a.weight", "I64", 0, {8, 8}, std::string(512, '\0')};
    expect_mentions(linear.refusal(), {"no known quantisation", ".weight I64 [8, 8]"});
    linear[".weight"] = {"layers.0.attn.wq_a.weight", "BF16", 0, {8, 8}, std::string(128, '\0')};
    linear[".weight_scale"] = f32_tensor("layers.0.attn.wq_a.weight_scale", {1}, 1.0f);
    expect_mentions(linear.refusal(), {"no known quantisation", ".weight BF16", ".weight_scale F32"});
}

// ---- whole models ---------------------------------------------------------------------------------------------

constexpr const char* kTinyConfig =
    R"({"model_type":"deepseek_v4","vocab_size":40,"hidden_size":64,"num_hidden_layers":3,
    "num_attention_heads":2,"head_dim":32,"q_lora_rank":32,"o_groups":2,"o_lora_rank":32,"compress_ratios":[0,4,128,0],
    "index_n_heads":2,"index_head_dim":16,"hc_mult":4,"moe_intermediate_size":32,"num_experts_per_tok":2,
    "num_hash_layers":1,"num_nextn_predict_layers":1})";

/// Local official name, HF name, GGUF name and shape of the tensors of a layer, as deepseek-v4.md 4.3 and 5.2 list
/// them.
struct Row {
    std::string official, hf, gguf;
    Shape shape;
};

std::vector<Row> layer_rows(int64_t ratio, bool hashed) {
    const int64_t o = ratio == 4 ? 2 : 1;
    std::vector<Row> rows = {
        {"attn_norm.weight", "input_layernorm.weight", "attn_norm.weight", {64}},
        {"ffn_norm.weight", "post_attention_layernorm.weight", "ffn_norm.weight", {64}},
        {"hc_attn_fn", "attn_hc.fn", "hc_attn_fn.weight", {24, 256}},
        {"hc_attn_base", "attn_hc.base", "hc_attn_base.weight", {24}},
        {"hc_attn_scale", "attn_hc.scale", "hc_attn_scale.weight", {3}},
        {"hc_ffn_fn", "ffn_hc.fn", "hc_ffn_fn.weight", {24, 256}},
        {"hc_ffn_base", "ffn_hc.base", "hc_ffn_base.weight", {24}},
        {"hc_ffn_scale", "ffn_hc.scale", "hc_ffn_scale.weight", {3}},
        {"attn.attn_sink", "self_attn.sinks", "attn_sinks.weight", {2}},
        {"attn.wq_a.weight", "self_attn.q_a_proj.weight", "attn_q_a.weight", {32, 64}},
        {"attn.q_norm.weight", "self_attn.q_a_norm.weight", "attn_q_a_norm.weight", {32}},
        {"attn.wq_b.weight", "self_attn.q_b_proj.weight", "attn_q_b.weight", {64, 32}},
        {"attn.wkv.weight", "self_attn.kv_proj.weight", "attn_kv.weight", {32, 64}},
        {"attn.kv_norm.weight", "self_attn.kv_norm.weight", "attn_kv_a_norm.weight", {32}},
        {"attn.wo_a.weight", "self_attn.o_a_proj.weight", "attn_output_a.weight", {64, 32}},
        {"attn.wo_b.weight", "self_attn.o_b_proj.weight", "attn_output_b.weight", {64, 64}},
        {"ffn.gate.weight", "mlp.gate.weight", "ffn_gate_inp.weight", {3, 64}},
        {"ffn.shared_experts.w1.weight", "mlp.shared_experts.gate_proj.weight", "ffn_gate_shexp.weight", {32, 64}},
        {"ffn.shared_experts.w3.weight", "mlp.shared_experts.up_proj.weight", "ffn_up_shexp.weight", {32, 64}},
        {"ffn.shared_experts.w2.weight", "mlp.shared_experts.down_proj.weight", "ffn_down_shexp.weight", {64, 32}},
    };
    if (!hashed) rows.push_back({"ffn.gate.bias", "mlp.gate.e_score_correction_bias", "exp_probs_b.bias", {3}});
    if (ratio == 0) return rows;
    rows.push_back(
        {"attn.compressor.ape", "self_attn.compressor.position_bias", "attn_compressor_ape.weight", {ratio, o * 32}});
    rows.push_back({"attn.compressor.wkv.weight",
                    "self_attn.compressor.kv_proj.weight",
                    "attn_compressor_kv.weight",
                    {o * 32, 64}});
    rows.push_back({"attn.compressor.wgate.weight",
                    "self_attn.compressor.gate_proj.weight",
                    "attn_compressor_gate.weight",
                    {o * 32, 64}});
    rows.push_back(
        {"attn.compressor.norm.weight", "self_attn.compressor.kv_norm.weight", "attn_compressor_norm.weight", {32}});
    if (ratio != 4) return rows;
    const std::string hf = "self_attn.compressor.indexer.";
    rows.push_back({"attn.indexer.wq_b.weight", hf + "q_b_proj.weight", "indexer.attn_q_b.weight", {32, 32}});
    rows.push_back(
        {"attn.indexer.weights_proj.weight", hf + "scorer.weights_proj.weight", "indexer.proj.weight", {2, 64}});
    rows.push_back({"attn.indexer.compressor.ape", hf + "position_bias", "indexer_compressor_ape.weight", {4, 32}});
    rows.push_back(
        {"attn.indexer.compressor.wkv.weight", hf + "kv_proj.weight", "indexer_compressor_kv.weight", {32, 64}});
    rows.push_back(
        {"attn.indexer.compressor.wgate.weight", hf + "gate_proj.weight", "indexer_compressor_gate.weight", {32, 64}});
    rows.push_back(
        {"attn.indexer.compressor.norm.weight", hf + "kv_norm.weight", "indexer_compressor_norm.weight", {16}});
    return rows;
}

const std::vector<Row> kRoot = {
    {"embed.weight", "model.embed_tokens.weight", "token_embd.weight", {40, 64}},
    {"head.weight", "lm_head.weight", "output.weight", {40, 64}},
    {"norm.weight", "model.norm.weight", "output_norm.weight", {64}},
    {"hc_head_fn", "model.hc_head.hc_fn", "output_hc_fn.weight", {4, 256}},
    {"hc_head_base", "model.hc_head.hc_base", "output_hc_base.weight", {4}},
    {"hc_head_scale", "model.hc_head.hc_scale", "output_hc_scale.weight", {1}},
};

const std::vector<Row> kMtp = {
    {"norm.weight", "norm.weight", "nextn.shared_head_norm.weight", {64}},
    {"hc_head_fn", "hc_head_fn", "nextn.hc_head_fn.weight", {4, 256}},
    {"hc_head_base", "hc_head_base", "nextn.hc_head_base.weight", {4}},
    {"hc_head_scale", "hc_head_scale", "nextn.hc_head_scale.weight", {1}},
    {"enorm.weight", "enorm.weight", "nextn.enorm.weight", {64}},
    {"hnorm.weight", "hnorm.weight", "nextn.hnorm.weight", {64}},
};

FileTensor hash_table(const std::string& name) { return {name, "I32", 26, {40, 2}, std::string(320, '\0')}; }

enum class Experts { kEach, kStacked };

/// All tensors in F32 under one naming. HF keeps the official names for MTP.
std::vector<FileTensor> tiny_model(Naming naming, Experts experts) {
    std::vector<FileTensor> tensors;
    const auto add = [&](const std::string& name, const Shape& shape) {
        tensors.push_back(f32_tensor(name, shape, 0.5f));
    };
    const auto name = [&](const Row& row) {
        return naming == Naming::kOfficial ? row.official : naming == Naming::kHf ? row.hf : row.gguf;
    };
    for (const Row& row : kRoot) add(name(row), row.shape);
    for (int layer = 0; layer < 4; ++layer) {
        const bool mtp = layer == 3, official = naming == Naming::kOfficial || (mtp && naming == Naming::kHf);
        const std::string number = std::to_string(layer) + ".";
        const std::string prefix = naming == Naming::kGguf ? "blk." + number
                                   : mtp                   ? "mtp.0."
                                   : official              ? "layers." + number
                                                           : "model.layers." + number;
        const int64_t ratio = layer == 1 ? 4 : layer == 2 ? 128 : 0;
        for (const Row& row : layer_rows(ratio, layer == 0))
            add(prefix + (official ? row.official : name(row)), row.shape);
        if (layer == 0)
            tensors.push_back(hash_table(prefix + (official                ? "ffn.gate.tid2eid"
                                                   : naming == Naming::kHf ? "mlp.gate.tid2eid"
                                                                           : "ffn_gate_tid2eid.weight")));
        if (naming == Naming::kGguf) {
            add(prefix + "ffn_gate_exps.weight", {3, 32, 64});
            add(prefix + "ffn_up_exps.weight", {3, 32, 64});
            add(prefix + "ffn_down_exps.weight", {3, 64, 32});
        } else if (experts == Experts::kStacked && !official) {
            add(prefix + "mlp.experts.gate_up_proj", {3, 64, 64});
            add(prefix + "mlp.experts.down_proj", {3, 64, 32});
        } else {
            for (int e = 0; e < 3; ++e) {
                const std::string expert =
                    prefix + (official ? "ffn.experts." : "mlp.experts.") + std::to_string(e) + ".";
                add(expert + (official ? "w1" : "gate_proj") + ".weight", {32, 64});
                add(expert + (official ? "w3" : "up_proj") + ".weight", {32, 64});
                add(expert + (official ? "w2" : "down_proj") + ".weight", {64, 32});
            }
        }
        if (!mtp) continue;
        for (const Row& row : kMtp) add(prefix + (official ? row.official : name(row)), row.shape);
        if (naming == Naming::kGguf) {
            add(prefix + "nextn.eh_proj.weight", {64, 128});
        } else {
            add(prefix + "e_proj.weight", {64, 64});
            add(prefix + "h_proj.weight", {64, 64});
        }
    }
    return tensors;
}

GgufFile gguf_of(std::vector<FileTensor> tensors) {
    GgufFile file;
    file.text("general.architecture", "deepseek4");
    for (FileTensor& tensor : tensors) file.tensor(std::move(tensor));
    return file;
}

void expect_resolves(const Checkpoint& checkpoint, Naming naming) {
    MatrixFinder finder(checkpoint);
    EXPECT_EQ(finder.naming(), naming);
    EXPECT_EQ(resolve_all(finder, parse_config(kTinyConfig)),
              2 + (5 + 9 + 4) + (11 + 9 + 4) + (7 + 9 + 4) + (5 + 9 + 4) + 2);
    for (const std::string& name : finder.unused()) ADD_FAILURE() << "unused: " << name;
    EXPECT_EQ(finder.unused_bytes(), 0);
    EXPECT_TRUE(finder.has("layers.1.attn.indexer.wq_b"));
    EXPECT_TRUE(finder.has("layers.1.attn.attn_sink"));
    EXPECT_TRUE(finder.has("mtp.0.e_proj"));
    EXPECT_FALSE(finder.has("mtp.1.e_proj"));
    EXPECT_FALSE(finder.has("layers.0.attn.indexer.wq_b"));
    EXPECT_FALSE(finder.has("layers.0.ffn.gate.bias"));
}

TEST(WholeModel, OfficialNames) {
    expect_resolves(checkpoint_of(tiny_model(Naming::kOfficial, Experts::kEach), kTinyConfig), Naming::kOfficial);
}

TEST(WholeModel, HfNames) {
    expect_resolves(checkpoint_of(tiny_model(Naming::kHf, Experts::kEach), kTinyConfig), Naming::kHf);
    expect_resolves(checkpoint_of(tiny_model(Naming::kHf, Experts::kStacked), kTinyConfig), Naming::kHf);
}

TEST(WholeModel, GgufNames) {
    expect_resolves(checkpoint_of(gguf_of(tiny_model(Naming::kGguf, Experts::kStacked)), kTinyConfig), Naming::kGguf);
}

TEST(WholeModel, GgufNamesOfOlderConversions) {
    const std::vector<std::pair<std::string, std::string>> renamed = {{"output_hc_", "hc_head_"},
                                                                      {"attn_compressor_", "attn_compress_"},
                                                                      {"indexer_compressor_", "indexer.compress_"},
                                                                      {"attn_kv.weight", "attn_kv_latent.weight"},
                                                                      {"exp_probs_b.bias", "exp_probs_b.weight"},
                                                                      {"blk.3.nextn.", "mtp.0."},
                                                                      {"blk.3.", "mtp.0."},
                                                                      {"mtp.0.shared_head_norm", "mtp.0.norm"}};
    std::vector<FileTensor> tensors = tiny_model(Naming::kGguf, Experts::kStacked);
    std::erase_if(tensors, [](const FileTensor& tensor) { return tensor.name.ends_with("eh_proj.weight"); });
    tensors.push_back(f32_tensor("mtp.0.e_proj.weight", {64, 64}, 1.0f));
    tensors.push_back(f32_tensor("mtp.0.h_proj.weight", {64, 64}, 2.0f));
    for (FileTensor& tensor : tensors)
        for (const auto& [from, to] : renamed)
            if (const size_t at = tensor.name.find(from); at != std::string::npos)
                tensor.name.replace(at, from.size(), to);
    expect_resolves(checkpoint_of(gguf_of(std::move(tensors)), kTinyConfig), Naming::kGguf);
}

TEST(WholeModel, GoldensResolve) {
    for (const char* name : {"b2-official-1layer", "f0-control-valid"}) {
        const Checkpoint checkpoint = open_checkpoint(golden_model(name));
        MatrixFinder finder(checkpoint);
        EXPECT_GT(resolve_all(finder, checkpoint.config), 10);
        EXPECT_TRUE(finder.unused().empty());
        EXPECT_TRUE(finder.warnings().empty());
    }
}

TEST(WholeModel, GoldensThatMustBeRefused) {
    for (const char* name : {"f5-nan-scale", "d-wrong-swizzled", "d-wrong-global-scale"}) {
        const Json expected = parse_json(read_text(golden_model(name) + "/expected.json"), name);
        const std::string pattern = expected.at("stderr_regex").get<std::string>().substr(4);  // after "(?i)"
        const std::string message = error_of([&] {
            const Checkpoint checkpoint = open_checkpoint(golden_model(name));
            MatrixFinder finder(checkpoint);
            resolve_all(finder, checkpoint.config);
        });
        EXPECT_TRUE(std::regex_search(message, std::regex(pattern, std::regex::icase))) << name << ": " << message;
    }
}

// ---- experts, parameters, tables ------------------------------------------------------------------------------

TEST(Experts, StacksAreSlicedWhereTheyLie) {
    std::vector<float> gate_up, down;
    for (int i = 0; i < 3 * 64 * 64; ++i) gate_up.push_back(static_cast<float>(i));
    for (int i = 0; i < 3 * 64 * 32; ++i) down.push_back(static_cast<float>(-i));
    const Checkpoint checkpoint =
        checkpoint_of({{"model.layers.0.mlp.experts.gate_up_proj", "F32", 0, {3, 64, 64}, bytes_of_floats(gate_up)},
                       {"model.layers.0.mlp.experts.down_proj", "F32", 0, {3, 64, 32}, bytes_of_floats(down)}});
    MatrixFinder finder(checkpoint);
    const auto w1 = finder.experts("layers.0.ffn.experts", "w1", 3, 32, 64);
    const auto w3 = finder.experts("layers.0.ffn.experts", "w3", 3, 32, 64);
    const auto w2 = finder.experts("layers.0.ffn.experts", "w2", 3, 64, 32);
    EXPECT_EQ(quant::decode_matrix(w1[2])[5], static_cast<float>(2 * 64 * 64 + 5));
    EXPECT_EQ(quant::decode_matrix(w3[1])[0], static_cast<float>(64 * 64 + 32 * 64)) << "w1 rows come first";
    EXPECT_EQ(quant::decode_matrix(w2[2])[33], -static_cast<float>(2 * 64 * 32 + 33));
    EXPECT_NE(error_of([&] { finder.experts("layers.0.ffn.experts", "w1", 4, 32, 64); }).find("[4, 64, 64]"),
              std::string::npos);
}

TEST(Experts, StackedFp8HasItsScalesSliced) {
    const std::vector<float> values = random_matrix(3 * 256, 128, 3);
    const EncodedMatrix all = quant::encode_matrix(quant::kFp8Blocks, values.data(), 3 * 256, 128);
    const Checkpoint checkpoint = checkpoint_of(
        {{"model.layers.0.mlp.experts.gate_up_proj", "F8_E4M3", 0, {3, 256, 128}, text(all.codes)},
         {"model.layers.0.mlp.experts.gate_up_proj_scale_inv", "F8_E8M0", 0, {3, 2, 1}, text(all.scales)}});
    MatrixFinder finder(checkpoint);
    const std::vector<float> expected = quant::decode_matrix(all.view());
    const std::vector<float> w3 = quant::decode_matrix(finder.experts("layers.0.ffn.experts", "w3", 3, 128, 128)[1]);
    EXPECT_TRUE(std::equal(w3.begin(), w3.end(), expected.begin() + (256 + 128) * 128));
    EXPECT_TRUE(finder.unused().empty());
}

TEST(Experts, GgufGateAndUpInOneTensor) {
    std::vector<float> both;
    for (int i = 0; i < 2 * 4 * 8; ++i) both.push_back(static_cast<float>(i));
    GgufFile file;
    file.tensor({"blk.0.ffn_gate_up_exps.weight", "", 0, {2, 4, 8}, bytes_of_floats(both)});
    const Checkpoint checkpoint = checkpoint_of(file);
    MatrixFinder finder(checkpoint);
    EXPECT_EQ(quant::decode_matrix(finder.experts("layers.0.ffn.experts", "w1", 2, 2, 8)[1])[0], 32.0f);
    EXPECT_EQ(quant::decode_matrix(finder.experts("layers.0.ffn.experts", "w3", 2, 2, 8)[1])[0], 48.0f);
}

TEST(Experts, GgufNvfp4TakesItsFactorsFromTheScaleTensor) {
    const std::string blocks(2 * 2 * 36, '\x22');
    const auto file = [&](const std::vector<float>& factors) {
        GgufFile gguf;
        gguf.tensor({"blk.0.ffn_down_exps.weight", "", 40, {2, 2, 64}, blocks});
        if (!factors.empty())
            gguf.tensor(
                {"blk.0.ffn_down_exps.scale", "", 0, {static_cast<int64_t>(factors.size())}, bytes_of_floats(factors)});
        return checkpoint_of(gguf);
    };
    const auto multipliers = [](const Checkpoint& checkpoint) {
        MatrixFinder finder(checkpoint);
        const auto matrices = finder.experts("layers.0.ffn.experts", "w2", 2, 2, 64);
        EXPECT_TRUE(finder.unused().empty());
        return std::pair(matrices[0].multiplier, matrices[1].multiplier);
    };
    EXPECT_EQ(multipliers(file({0.25f, 0.5f})), std::pair(0.25f, 0.5f));
    EXPECT_EQ(multipliers(file({0.25f})), std::pair(0.25f, 0.25f));
    EXPECT_EQ(multipliers(file({})), std::pair(1.0f, 1.0f));
    EXPECT_NE(error_of([&] {
                  multipliers(file({1.0f, NAN}));
              }).find("ffn_down_exps.scale holds nan"),
              std::string::npos);
    EXPECT_NE(error_of([&] { multipliers(file({1, 2, 3})); }).find("1 or 2 elements"), std::string::npos);
    GgufFile absurd;
    absurd.tensor({"blk.0.ffn_down_exps.weight", "", 40, {2, 2, 64}, std::string(2 * 2 * 36, '\x7e')});
    EXPECT_NE(error_of([&] { multipliers(checkpoint_of(absurd)); }).find("ffn_down_exps.weight implies"),
              std::string::npos);
}

TEST(Experts, CountsComeFromTheRouterOfEachLayer) {
    std::vector<FileTensor> tensors = tiny_model(Naming::kOfficial, Experts::kEach);
    const auto count = [&] {
        const Checkpoint checkpoint = checkpoint_of(tensors, kTinyConfig);
        return MatrixFinder(checkpoint).expert_count("layers.2.ffn.gate");
    };
    const auto find = [&](const std::string& name) -> FileTensor& {
        for (FileTensor& tensor : tensors)
            if (tensor.name == name) return tensor;
        throw std::runtime_error(name);
    };
    EXPECT_EQ(count(), 3);
    find("layers.2.ffn.gate.bias") = f32_tensor("layers.2.ffn.gate.bias", {4}, 0);
    expect_mentions(error_of(count), {"layers.2.ffn.gate.bias", "[4]", "3 elements"});
    find("layers.2.ffn.gate.bias") = f32_tensor("layers.2.ffn.gate.bias", {2}, 0);
    find("layers.2.ffn.gate.weight") = f32_tensor("layers.2.ffn.gate.weight", {2, 64}, 0);
    expect_mentions(error_of(count), {"layers.2.ffn.experts.*", "3 ids", "0 to 1"});
    std::erase_if(tensors, [](const FileTensor& tensor) { return tensor.name.find("layers.2.ffn.experts.1.") == 0; });
    expect_mentions(error_of(count), {"2 ids from 0 to 2", "0 to 1"});
    find("layers.2.ffn.experts.2.w1.weight").name = "layers.2.ffn.experts.1.w1.weight";
    find("layers.2.ffn.experts.2.w3.weight").name = "layers.2.ffn.experts.1.w3.weight";
    find("layers.2.ffn.experts.2.w2.weight").name = "layers.2.ffn.experts.1.w2.weight";
    EXPECT_EQ(count(), 2) << "a pruned layer";
}

TEST(Mtp, ProjectionsAreTheColumnHalvesOfOneMatrix) {
    const EncodedMatrix both = quant::encode_matrix({Format::kQ8_0}, random_matrix(64, 128, 9).data(), 64, 128);
    const std::vector<float> expected = quant::decode_matrix(both.view());
    GgufFile file;
    file.tensor({"blk.3.nextn.eh_proj.weight", "", 8, {64, 128}, text(both.codes)});
    const Checkpoint checkpoint = checkpoint_of(file, kTinyConfig);
    MatrixFinder finder(checkpoint);
    const std::vector<float> e = quant::decode_matrix(finder.matrix("mtp.0.e_proj", 64, 64));
    const std::vector<float> h = quant::decode_matrix(finder.matrix("mtp.0.h_proj", 64, 64));
    for (size_t row = 0; row < 64; ++row) {
        EXPECT_TRUE(std::equal(e.begin() + row * 64, e.begin() + row * 64 + 64, expected.begin() + row * 128));
        EXPECT_TRUE(std::equal(h.begin() + row * 64, h.begin() + row * 64 + 64, expected.begin() + row * 128 + 64));
    }
}

TEST(Vector, ReadsAnyFloatFormatAndRefusesTheRest) {
    const double wide[2] = {1.5, -2.0};
    GgufFile file;
    file.tensor({"blk.0.attn_sinks.weight", "", 28, {2}, std::string(reinterpret_cast<const char*>(wide), 16)});
    file.tensor({"blk.1.attn_sinks.weight", "", 30, {2}, bytes_of_bf16({1.5f, -2.0f})});
    file.tensor({"blk.2.attn_sinks.weight", "", 0, {1, 2}, bytes_of_floats({1.5f, -2.0f})});
    file.tensor({"blk.3.attn_sinks.weight", "", 0, {2}, bytes_of_floats({1.0f, INFINITY})});
    file.tensor({"blk.4.attn_sinks.weight", "", 26, {2}, std::string(8, '\0')});
    const Checkpoint checkpoint = checkpoint_of(file);
    MatrixFinder finder(checkpoint);
    for (const int layer : {0, 1, 2})
        EXPECT_EQ(finder.vector("layers." + std::to_string(layer) + ".attn.attn_sink", {2}),
                  (std::vector<float>{1.5f, -2.0f}));
    const auto error = [&](int layer, const Shape& shape) {
        return error_of([&] { finder.vector("layers." + std::to_string(layer) + ".attn.attn_sink", shape); });
    };
    expect_mentions(error(3, {2}), {"blk.3.attn_sinks.weight", "inf", "at 1"});
    expect_mentions(error(4, {2}), {"blk.4.attn_sinks.weight", "I32", "floating-point"});
    expect_mentions(error(0, {3}), {"blk.0.attn_sinks.weight", "[2]", "[3]"});
    expect_mentions(error(9, {3}), {"blk.9.attn_sinks.weight", "missing", "[3]"});
}

TEST(Table, ReadsAnyIntegerFormatAndChecksTheRange) {
    const auto table = [](const std::string& dtype, const std::string& bytes, const Shape& shape, int64_t limit) {
        const Checkpoint checkpoint = checkpoint_of({{"layers.0.ffn.gate.tid2eid", dtype, 0, shape, bytes}});
        return MatrixFinder(checkpoint).table("layers.0.ffn.gate.tid2eid", shape, limit);
    };
    const int64_t wide[2] = {7, 0};
    const std::string wide_bytes(reinterpret_cast<const char*>(wide), 16);
    EXPECT_EQ(table("I64", wide_bytes, {1, 2}, 8), (std::vector<int32_t>{7, 0}));
    EXPECT_EQ(table("I32", wide_bytes, {2, 2}, 8), (std::vector<int32_t>{7, 0, 0, 0}));
    EXPECT_EQ(table("U8", "\7\3", {2, 1}, 8), (std::vector<int32_t>{7, 3}));
    expect_mentions(error_of([&] { table("I64", wide_bytes, {1, 2}, 7); }), {"tid2eid", "holds 7", "0 to 6"});
    expect_mentions(error_of([&] { table("I64", std::string(16, '\xff'), {1, 2}, 7); }), {"holds -1"});
    expect_mentions(error_of([&] { table("U64", std::string(16, '\xff'), {1, 2}, 7); }), {"expected 0 to 6"});
    expect_mentions(error_of([&] { table("F32", std::string(8, '\0'), {1, 2}, 7); }), {"expected integers"});
}

TEST(Finder, SpeaksUpAboutModelsItDoesNotRead) {
    const Checkpoint later = checkpoint_of(std::vector<FileTensor>{}, R"({"model_type":"deepseek_v41"})");
    expect_mentions(error_of([&] { MatrixFinder finder(later); }), {"deepseek_v41", "not supported"});
    const Checkpoint dspark =
        checkpoint_of({f32_tensor("mtp.0.main_norm.weight", {4}, 1)}, R"({"dspark_block_size":5})");
    MatrixFinder finder(dspark);
    ASSERT_EQ(finder.warnings().size(), 1u);
    EXPECT_NE(finder.warnings()[0].find("DSpark"), std::string::npos);
    EXPECT_FALSE(finder.has("mtp.0.e_proj"));
    EXPECT_EQ(finder.unused(), std::vector<std::string>{"mtp.0.main_norm.weight"});
}

}  // namespace
}  // namespace thermocline::model
