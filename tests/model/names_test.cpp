// What save_pretrained of HF transformers makes of tensor names, in all its forms: tests/golden/hf-tiny, which was
// saved under HF's own names, is written again under every other form and must load as the same model.
#include "src/base/file.h"
#include "src/model/registry.h"
#include "tests/model/model_files.h"

#include <gtest/gtest.h>
#include <utility>

namespace thermocline::model {
namespace {

const std::string kHfTiny = std::string(THERMOCLINE_SOURCE_DIR) + "/tests/golden/hf-tiny";

using Renamings = std::vector<std::pair<std::string, std::string>>;

/// Models that were loaded from HF's names: 5.23 undoes the one renaming that it finds something for.
const Renamings kOnlyNorms = {{"kv_norm", "norm"}};

/// All others: layers get their official names back.
const Renamings kLayers = {
    {"self_attn.compressor.indexer.scorer.weights_proj", "attn.indexer.weights_proj"},
    {"self_attn.compressor.indexer.q_b_proj", "attn.indexer.wq_b"},
    {"self_attn.compressor.indexer.", "attn.indexer.compressor."},
    {"self_attn.", "attn."},
    {"mlp.", "ffn."},
    {"input_layernorm", "attn_norm"},
    {"post_attention_layernorm", "ffn_norm"},
    {"attn_hc.", "hc_attn_"},
    {"ffn_hc.", "hc_ffn_"},
    {"attn.sinks", "attn.attn_sink"},
    {"q_a_norm", "q_norm"},
    {"kv_norm", "norm"},
    {"position_bias", "ape"},
    {"q_a_proj", "wq_a"},
    {"q_b_proj", "wq_b"},
    {"kv_proj", "wkv"},
    {"compressor.gate_proj", "compressor.wgate"},
    {"o_a_proj", "wo_a"},
    {"o_b_proj", "wo_b"},
    {"e_score_correction_bias", "bias"},
    {"shared_experts.gate_proj", "shared_experts.w1"},
    {"shared_experts.up_proj", "shared_experts.w3"},
    {"shared_experts.down_proj", "shared_experts.w2"},
    {"lm_head.", "head."},
};

/// The same without a head in front: DeepseekV4Model, here with the head that its owner must add.
const Renamings kRoot = {{"model.embed_tokens", "embed"}, {"model.hc_head.hc_", "hc_head_"}, {"model.", ""}};

std::string renamed(std::string name, const Renamings& renamings) {
    for (const auto& [from, to] : renamings)
        if (const size_t at = name.find(from); at != std::string::npos) name.replace(at, from.size(), to);
    return name;
}

FileTensor file_tensor(const TensorEntry& entry, const std::string& name) {
    const std::string dtype(quant::traits(entry.format).name);  // plain formats are called alike
    return {name, dtype, 0, entry.shape, {reinterpret_cast<const char*>(entry.data), static_cast<size_t>(entry.bytes)}};
}

/// Stack `name` [experts, rows, cols] as the matrices of each expert; gate and up are the halves of one stack.
void add_experts(const TensorEntry& stack, const std::string& name, std::vector<FileTensor>& tensors) {
    const bool both = name.ends_with("gate_up_proj");
    const std::vector<std::string> parts = both ? std::vector<std::string>{"w1", "w3"} : std::vector<std::string>{"w2"};
    const int64_t rows = stack.shape[1] / static_cast<int64_t>(parts.size());
    TensorEntry part = stack;
    part.shape = {rows, stack.shape[2]};
    part.bytes = quant::bytes_of(stack.format, rows * stack.shape[2]);
    for (int64_t e = 0; e < stack.shape[0]; ++e)
        for (const std::string& projection : parts) {
            const std::string prefix = name.substr(0, name.rfind('.') + 1);
            tensors.push_back(file_tensor(part, prefix + std::to_string(e) + "." + projection + ".weight"));
            part.data += part.bytes;
        }
}

/// hf-tiny under other names.
std::unique_ptr<Model> load_renamed(const Renamings& first, const Renamings& second, bool each_expert) {
    const Checkpoint checkpoint = open_checkpoint(kHfTiny);
    std::vector<FileTensor> tensors;
    for (const auto& [hf, entry] : checkpoint.weights.tensors) {
        const std::string name = renamed(renamed(hf, first), second);
        if (each_expert && entry.shape.size() == 3)
            add_experts(entry, name, tensors);
        else
            tensors.push_back(file_tensor(entry, name));
    }
    const TemporaryFolder folder;
    folder.write("config.json", read_text(kHfTiny + "/config.json"));
    folder.write("model.safetensors", safetensors_file(tensors));
    return load_model(folder.path().string(), {});
}

void expect_same(const quant::Matrix& a, const quant::Matrix& b, const std::string& name) {
    EXPECT_EQ(quant::decode_matrix(a), quant::decode_matrix(b)) << name;
}

void expect_same(const ops::Plan& a, const ops::Plan& b) {
    ASSERT_EQ(a.matrices.size(), b.matrices.size());
    for (size_t i = 0; i < a.matrices.size(); ++i)
        expect_same(a.matrices[i].matrix, b.matrices[i].matrix, a.matrices[i].name);
    ASSERT_EQ(a.vectors.size(), b.vectors.size());
    for (size_t i = 0; i < a.vectors.size(); ++i) EXPECT_EQ(a.vectors[i].values, b.vectors[i].values);
    ASSERT_EQ(a.tables.size(), b.tables.size());
    for (size_t i = 0; i < a.tables.size(); ++i) EXPECT_EQ(a.tables[i].values, b.tables[i].values);
    ASSERT_EQ(a.experts.size(), b.experts.size());
    for (size_t i = 0; i < a.experts.size(); ++i)
        for (size_t e = 0; e < a.experts[i].w1.size(); ++e) {
            expect_same(a.experts[i].w1[e], b.experts[i].w1.at(e), a.experts[i].name);
            expect_same(a.experts[i].w2[e], b.experts[i].w2.at(e), a.experts[i].name);
            expect_same(a.experts[i].w3[e], b.experts[i].w3.at(e), a.experts[i].name);
        }
}

TEST(Names, EveryFormThatTransformersSavesIsTheSameModel) {
    const auto plain = load_model(kHfTiny, {});
    expect_same(plain->trunk, load_renamed(kOnlyNorms, {}, false)->trunk);
    expect_same(plain->trunk, load_renamed(kLayers, {}, true)->trunk);
    expect_same(plain->trunk, load_renamed(kLayers, kRoot, true)->trunk);
}

TEST(Names, MixedNamesAreCountedAndCheckedLikeOthers) {
    const auto tensors = [](int64_t experts) {
        std::vector<FileTensor> all = {f32_tensor("model.layers.0.ffn.gate.weight", {2, 8}, 1.0f)};
        for (int64_t e = 0; e < experts; ++e)
            all.push_back(f32_tensor("model.layers.0.ffn.experts." + std::to_string(e) + ".w1.weight", {4, 8}, 1.0f));
        return safetensors_file(all);
    };
    const auto count = [&](int64_t experts) {
        const TemporaryFolder folder;
        folder.write("config.json", "{}");
        folder.write("model.safetensors", tensors(experts));
        const Checkpoint checkpoint = open_checkpoint(folder.path().string());
        return MatrixFinder(checkpoint).expert_count("layers.0.ffn.gate");
    };
    EXPECT_EQ(count(2), 2);
    EXPECT_NE(error_of([&] { count(3); }).find("model.layers.0.ffn.experts.* have 3 ids"), std::string::npos);
}

}  // namespace
}  // namespace thermocline::model
