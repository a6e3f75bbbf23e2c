// The GGUF container, its splits, and the config that its metadata becomes.
#include "src/model/gguf.h"

#include "tests/model/model_files.h"

#include <cstring>
#include <gtest/gtest.h>

namespace thermocline::model {
namespace {

struct Parsed {
    WeightDirectory weights;
    Metadata metadata;
};

Parsed read(const std::string& bytes) {
    Parsed parsed;
    read_gguf(MappedFile::from_bytes(bytes, "x.gguf"), parsed.weights, parsed.metadata);
    return parsed;
}

void expect_refusal(const std::string& bytes, const std::vector<std::string>& parts) {
    const std::string message = error_of([&] { read(bytes); });
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
    for (const std::string& part : parts) EXPECT_NE(message.find(part), std::string::npos) << message;
}

FileTensor raw(const std::string& name, uint32_t type, const Shape& shape, size_t bytes) {
    return {name, "", type, shape, std::string(bytes, '\1')};
}

template <typename T>
void put(std::string& bytes, size_t at, T value) {
    std::memcpy(bytes.data() + at, &value, sizeof(T));
}

TEST(Gguf, ReadsMetadataAndTensors) {
    GgufFile file;
    file.text("general.architecture", "test");
    file.u32("a.count", 7);
    file.i32("a.negative", -3);
    file.f32("a.number", 0.5f);
    file.boolean("a.flag", true);
    file.i32s("a.list", {1, -2, 3});
    file.tensor({"w.weight", "", 8, {2, 32}, std::string(2 * 34, '\2')});
    file.tensor({"v.weight", "", 0, {3}, bytes_of_floats({1, 2, 3})});
    for (const uint32_t version : {2u, 3u}) {
        const Parsed parsed = read(file.bytes(32, version));
        EXPECT_EQ(parsed.metadata.at("general.architecture"), "test");
        EXPECT_EQ(metadata_integer(parsed.metadata, "a.count"), 7);
        EXPECT_EQ(metadata_integer(parsed.metadata, "a.negative"), -3);
        EXPECT_EQ(metadata_integer(parsed.metadata, "a.flag"), 1);
        EXPECT_EQ(metadata_integer(parsed.metadata, "a.absent"), std::nullopt);
        EXPECT_NE(error_of([&] { metadata_integer(parsed.metadata, "a.number"); }).find("a.number"), std::string::npos);
        EXPECT_EQ(parsed.metadata.at("a.number"), 0.5);
        EXPECT_EQ(parsed.metadata.at("a.list"), Json::parse("[1,-2,3]"));
        const TensorEntry& w = *parsed.weights.find("w.weight");
        EXPECT_EQ(w.format, quant::Format::kQ8_0);
        EXPECT_EQ(w.shape, (Shape{2, 32}));
        EXPECT_EQ(w.bytes, 68);
        EXPECT_EQ(w.data, parsed.weights.files[0]->bytes().data() + w.offset);
        EXPECT_EQ(parsed.weights.find("v.weight")->offset - w.offset, 96);
    }
}

TEST(Gguf, HonoursAlignment) {
    GgufFile file;
    file.u32("general.alignment", 64);
    file.tensor(raw("a", 24, {5}, 5));
    file.tensor(raw("b", 24, {5}, 5));
    const Parsed parsed = read(file.bytes(64));
    EXPECT_EQ(parsed.weights.find("a")->offset % 64, 0);
    EXPECT_EQ(parsed.weights.find("b")->offset - parsed.weights.find("a")->offset, 64);
    GgufFile odd;
    odd.u32("general.alignment", 48);
    expect_refusal(odd.bytes(), {"general.alignment", "48", "power of two"});
}

TEST(Gguf, RefusesBadStarts) {
    expect_refusal("", {"x.gguf", "not a GGUF file"});
    expect_refusal("GGUG" + std::string(40, '\0'), {"not a GGUF file"});
    expect_refusal("GGUF", {"truncated", "version"});
    GgufFile empty;
    std::string bytes = empty.bytes();
    put<uint32_t>(bytes, 4, 1);
    expect_refusal(bytes, {"version 1"});
    put<uint32_t>(bytes, 4, 0x03000000);
    expect_refusal(bytes, {"big-endian"});
    put<uint32_t>(bytes, 4, 3);
    put<uint64_t>(bytes, 8, uint64_t{1} << 60);
    expect_refusal(bytes, {"1152921504606846976 tensors"});
    put<uint64_t>(bytes, 8, 0);
    put<uint64_t>(bytes, 16, ~uint64_t{0});
    expect_refusal(bytes, {"18446744073709551615 keys"});
}

TEST(Gguf, EveryTruncationIsRefused) {
    GgufFile file;
    file.text("general.architecture", "test");
    file.f32s("list", {1, 2, 3});
    file.tensor(raw("a", 0, {4, 8}, 128));
    const std::string bytes = file.bytes();
    EXPECT_EQ(error_of([&] { read(bytes); }), "(no error)");
    for (size_t length = 0; length < bytes.size(); ++length)
        EXPECT_NE(error_of([&] { read(bytes.substr(0, length)); }), "(no error)") << length;
}

TEST(Gguf, RefusesBadMetadata) {
    GgufFile twice;
    twice.u32("a", 1);
    twice.u32("a", 2);
    expect_refusal(twice.bytes(), {"key a", "twice"});
    GgufFile list;
    list.i32s("list", {1, 2});
    std::string bytes = list.bytes();
    const size_t at = 24 + 8 + 4 + 4;  // after key and type: the element type, then the count
    put<uint64_t>(bytes, at + 4, uint64_t{1} << 62);
    expect_refusal(bytes, {"key list", "4611686018427387904 elements", "beyond"});
    bytes = list.bytes();
    put<uint32_t>(bytes, at, 9);
    expect_refusal(bytes, {"key list", "arrays of arrays"});
    put<uint32_t>(bytes, at, 77);
    expect_refusal(bytes, {"key list", "value type 77"});
    bytes = list.bytes();
    put<uint64_t>(bytes, 24, uint64_t{1} << 63);
    expect_refusal(bytes, {"string length", "beyond the end"});
}

TEST(Gguf, RefusesArraysThatAreTooLargeToKeep) {
    GgufFile list;
    list.i32s("list", std::vector<int32_t>((size_t{1} << 22) + 1));
    expect_refusal(list.bytes(), {"key list", "4194305 elements", "at most 4194304"});
}

TEST(Gguf, RefusesBadTensors) {
    const auto with = [](FileTensor tensor) {
        GgufFile file;
        file.tensor(std::move(tensor));
        return file.bytes();
    };
    expect_refusal(with(raw("a", 0, {1, 1, 1, 1, 2}, 8)), {"tensor a", "5 dimensions"});
    expect_refusal(with(raw("a", 0, {int64_t{1} << 40, int64_t{1} << 40}, 8)), {"tensor a", "overflows"});
    expect_refusal(with(raw("a", 0, {-4}, 8)), {"tensor a", "[-4]"});
    expect_refusal(with(raw("a", 12, {2, 128}, 144)), {"tensor a", "Q4_K", "multiple of 256"});
    expect_refusal(with(raw("a", 0, {1000}, 8)), {"tensor a", "truncated"});
    expect_refusal(with(raw(std::string(64, 'n'), 0, {2}, 8)), {"tensor name", "at most 63"});
    expect_refusal(with(raw("a", 4, {32}, 32)), {"tensor a", "type 4", "removed"});
    expect_refusal(with(raw("a", 133, {32}, 32)), {"tensor a", "type 133", "ik_llama"});
    expect_refusal(with(raw("a", 4000000000u, {32}, 32)), {"tensor a", "type 4000000000"});
    GgufFile twice;
    twice.tensor(raw("a", 24, {4}, 4));
    twice.tensor(raw("a", 24, {4}, 4));
    expect_refusal(twice.bytes(), {"tensor a", "twice"});
}

TEST(Gguf, RefusesOffsetsThatLeaveHolesOrOverlap) {
    GgufFile file;
    file.tensor(raw("a", 24, {4}, 4));
    file.tensor(raw("b", 24, {64}, 64));
    std::string bytes = file.bytes();
    const size_t at = bytes.find('b') + 1 + 4 + 8 + 4;
    for (const auto& [offset, word] :
         {std::pair<uint64_t, const char*>{0, "overlap"}, {64, "hole"}, {33, "misaligned"}}) {
        put<uint64_t>(bytes, at, offset);
        expect_refusal(bytes, {"tensor b", "expected 32", word});
    }
    put<uint64_t>(bytes, at, ~uint64_t{0} - 3);
    expect_refusal(bytes, {"tensor b", "expected 32"});
}

TEST(Gguf, TellsTheTwoMeaningsOfType42Apart) {
    GgufFile q2;
    q2.tensor(raw("a", 42, {2, 128}, 2 * 2 * 18));
    q2.tensor(raw("b", 42, {1, 64}, 18));
    EXPECT_EQ(read(q2.bytes()).weights.find("b")->format, quant::Format::kQ2_0);
    GgufFile fp8;
    fp8.tensor(raw("a", 42, {2, 128}, 2 * 129));
    fp8.tensor(raw("n", 0, {2}, 8));
    fp8.tensor(raw("b", 42, {3, 256}, 3 * 2 * 129));
    const Parsed parsed = read(fp8.bytes());
    EXPECT_EQ(parsed.weights.find("a")->format, quant::Format::kE4M3Block128);
    EXPECT_EQ(parsed.weights.find("b")->format, quant::Format::kE4M3Block128);
    EXPECT_EQ(parsed.weights.find("b")->bytes, 774);
    GgufFile mixed;
    mixed.tensor(raw("a", 42, {2, 128}, 2 * 129));
    mixed.tensor(raw("b", 42, {2, 128}, 2 * 2 * 18));
    expect_refusal(mixed.bytes(), {"tensor b", "type 42"});
    GgufFile neither;
    neither.tensor(raw("a", 42, {2, 128}, 500));
    expect_refusal(neither.bytes(), {"tensor a", "type 42", "neither"});
}

class GgufSplit : public ::testing::Test {
protected:
    void write_part(int number, int count, const std::vector<std::string>& tensors, int total) {
        GgufFile file;
        if (number == 0) file.text("general.architecture", "other");
        file.u16("split.no", static_cast<uint16_t>(number));
        file.u16("split.count", static_cast<uint16_t>(count));
        file.i32("split.tensors.count", total);
        for (const std::string& name : tensors) file.tensor(raw(name, 24, {4}, 4));
        folder_.write(name(number, count), file.bytes());
    }
    static std::string name(int number, int count) {
        char text[64];
        std::snprintf(text, sizeof(text), "m-%05d-of-%05d.gguf", number + 1, count);
        return text;
    }
    std::string open(const std::string& file) {
        return error_of([&] { checkpoint_ = open_checkpoint((folder_.path() / file).string()); });
    }
    TemporaryFolder folder_;
    Checkpoint checkpoint_;
};

TEST_F(GgufSplit, ReadsAllPartsAndNamesMissingOnes) {
    write_part(0, 3, {}, 3);
    write_part(1, 3, {"a", "b"}, 3);
    EXPECT_NE(open(name(0, 3)).find("missing shard m-00003-of-00003.gguf"), std::string::npos);
    write_part(2, 3, {"c"}, 3);
    EXPECT_EQ(open(name(0, 3)), "(no error)");
    EXPECT_EQ(checkpoint_.weights.tensors.size(), 3u);
    EXPECT_EQ(checkpoint_.weights.files.size(), 3u);
    EXPECT_EQ(checkpoint_.weights.find("c")->file, 2);
    EXPECT_EQ(checkpoint_.config.at("model_type"), "other");
    EXPECT_EQ(open(""), "(no error)") << "the directory holds one model";
    EXPECT_NE(open(name(1, 3)).find("give its first part"), std::string::npos);
}

TEST_F(GgufSplit, RefusesPartsThatDoNotBelongTogether) {
    write_part(0, 2, {"a"}, 3);
    write_part(1, 2, {"b"}, 3);
    EXPECT_NE(open(name(0, 2)).find("split.tensors.count is 3"), std::string::npos);
    write_part(1, 2, {"a", "b"}, 3);
    EXPECT_NE(open(name(0, 2)).find("tensor a is there twice"), std::string::npos);
    std::filesystem::copy_file(folder_.path() / name(0, 2), folder_.path() / name(1, 2),
                               std::filesystem::copy_options::overwrite_existing);
    EXPECT_NE(open(name(0, 2)), "(no error)");
    std::filesystem::rename(folder_.path() / name(0, 2), folder_.path() / "renamed.gguf");
    EXPECT_NE(open("renamed.gguf").find("-00001-of-N.gguf"), std::string::npos);
}

/// Metadata of a small deepseek4 file as llama.cpp writes it.
GgufFile deepseek4(int layers) {
    GgufFile file;
    const std::string p = "deepseek4.";
    file.text("general.architecture", "deepseek4");
    file.u32(p + "block_count", static_cast<uint32_t>(layers));
    for (const auto& [key, value] :
         std::vector<std::pair<std::string, uint32_t>>{{"context_length", 1024},
                                                       {"embedding_length", 64},
                                                       {"vocab_size", 96},
                                                       {"attention.head_count", 4},
                                                       {"attention.head_count_kv", 1},
                                                       {"attention.key_length", 32},
                                                       {"attention.q_lora_rank", 16},
                                                       {"attention.output_lora_rank", 8},
                                                       {"attention.output_group_count", 2},
                                                       {"attention.sliding_window", 16},
                                                       {"attention.indexer.head_count", 2},
                                                       {"attention.indexer.key_length", 8},
                                                       {"attention.indexer.top_k", 3},
                                                       {"rope.dimension_count", 8},
                                                       {"rope.scaling.original_context_length", 64},
                                                       {"expert_used_count", 2},
                                                       {"expert_shared_count", 1},
                                                       {"expert_feed_forward_length", 32},
                                                       {"expert_gating_func", 4},
                                                       {"hash_layer_count", 1},
                                                       {"hyper_connection.count", 4},
                                                       {"hyper_connection.sinkhorn_iterations", 20}})
        file.u32(p + key, value);
    file.f32(p + "attention.layer_norm_rms_epsilon", 1e-6f);
    file.f32(p + "hyper_connection.epsilon", 1e-6f);
    file.f32(p + "attention.compress_rope_freq_base", 160000.0f);
    file.f32(p + "rope.freq_base", 10000.0f);
    file.f32(p + "rope.scaling.factor", 16.0f);
    file.f32(p + "rope.scaling.yarn_beta_fast", 32.0f);
    file.f32(p + "rope.scaling.yarn_beta_slow", 1.0f);
    file.text(p + "rope.scaling.type", "yarn");
    file.f32(p + "expert_weights_scale", 1.5f);
    file.boolean(p + "expert_weights_norm", true);
    return file;
}

Json config_of(const GgufFile& file) {
    TemporaryFolder folder;
    return open_checkpoint(folder.write("m.gguf", file.bytes()).string()).config;
}

TEST(GgufConfig, HasTheKeysOfConfigJson) {
    GgufFile file = deepseek4(3);
    file.u32("deepseek4.expert_count", 8);
    file.i32s("deepseek4.attention.compress_ratios", {0, 4, 128});
    file.f32s("deepseek4.swiglu_clamp_exp", {10, 10, 10});
    file.u32("tokenizer.ggml.bos_token_id", 0);
    file.u32("tokenizer.ggml.eos_token_id", 1);
    const Json config = config_of(file);
    const Json expected = Json::parse(R"({
        "architectures": ["DeepseekV4ForCausalLM"], "model_type": "deepseek_v4", "num_hidden_layers": 3,
        "num_nextn_predict_layers": 0, "vocab_size": 96, "hidden_size": 64, "num_attention_heads": 4,
        "num_key_value_heads": 1, "head_dim": 32, "qk_rope_head_dim": 8, "q_lora_rank": 16, "o_groups": 2,
        "o_lora_rank": 8, "sliding_window": 16, "max_position_embeddings": 1024, "index_n_heads": 2,
        "index_head_dim": 8, "index_topk": 3, "hc_mult": 4, "hc_sinkhorn_iters": 20, "n_routed_experts": 8,
        "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "num_hash_layers": 1,
        "compress_rope_theta": 160000.0, "rope_theta": 10000.0, "routed_scaling_factor": 1.5, "swiglu_limit": 10.0,
        "compress_ratios": [0, 4, 128], "scoring_func": "sqrtsoftplus", "topk_method": "noaux_tc",
        "norm_topk_prob": true, "hidden_act": "silu", "tie_word_embeddings": false,
        "bos_token_id": 0, "eos_token_id": 1,
        "rope_scaling": {"type": "yarn", "factor": 16.0, "original_max_position_embeddings": 64, "beta_fast": 32.0,
                         "beta_slow": 1.0}})");
    for (const auto& [key, value] : expected.items()) {
        ASSERT_TRUE(config.contains(key)) << key;
        EXPECT_EQ(config.at(key), value) << key;
    }
    EXPECT_NEAR(config.at("rms_norm_eps").get<double>(), 1e-6, 1e-12);
    EXPECT_NEAR(config.at("hc_eps").get<double>(), 1e-6, 1e-12);
    EXPECT_EQ(config.size(), expected.size() + 2);
}

TEST(GgufConfig, TakesScalarsAndListsPerLayer) {
    GgufFile file = deepseek4(3);
    file.i32("deepseek4.attention.compress_ratios", 128);
    file.i32s("deepseek4.expert_count", {8, 8, 8});
    file.f32("deepseek4.swiglu_clamp_exp", 7.0f);
    file.f32s("deepseek4.swiglu_clamp_shexp", {7, 7, 7, 0});
    const Json config = config_of(file);
    EXPECT_EQ(config.at("compress_ratios"), Json::parse("[128,128,128]"));
    EXPECT_EQ(config.at("n_routed_experts"), 8);
    EXPECT_EQ(config.at("swiglu_limit"), 7.0);
    GgufFile pruned = deepseek4(2);
    pruned.i32s("deepseek4.attention.compress_ratios", {0, 4});
    pruned.i32s("deepseek4.expert_count", {8, 6});
    EXPECT_EQ(config_of(pruned).at("n_routed_experts"), Json::parse("[8,6]"));
}

TEST(GgufConfig, CountsMtpLayersByTheirTensors) {
    GgufFile claimed = deepseek4(3);
    claimed.i32s("deepseek4.attention.compress_ratios", {0, 4, 128});
    claimed.u32("deepseek4.nextn_predict_layers", 1);
    EXPECT_EQ(config_of(claimed).at("num_hidden_layers"), 3);
    EXPECT_EQ(config_of(claimed).at("num_nextn_predict_layers"), 0);
    claimed.tensor(raw("blk.2.nextn.eh_proj.weight", 24, {4, 8}, 32));
    EXPECT_EQ(config_of(claimed).at("num_hidden_layers"), 2);
    EXPECT_EQ(config_of(claimed).at("num_nextn_predict_layers"), 1);
    GgufFile ds4 = deepseek4(3);
    ds4.i32s("deepseek4.attention.compress_ratios", {0, 4, 128});
    ds4.tensor(raw("mtp.0.e_proj.weight", 24, {4, 4}, 16));
    EXPECT_EQ(config_of(ds4).at("num_hidden_layers"), 3);
    EXPECT_EQ(config_of(ds4).at("num_nextn_predict_layers"), 1);
}

TEST(GgufConfig, RefusesWhatItCannotMean) {
    const auto error = [](const GgufFile& file) { return error_of([&] { config_of(file); }); };
    GgufFile file = deepseek4(2);
    EXPECT_NE(error(file).find("attention.compress_ratios is missing"), std::string::npos) << error(file);
    file.f32s("deepseek4.attention.compress_ratios", {0.5f, 4});
    EXPECT_NE(error(file).find("expected integers"), std::string::npos) << error(file);
    GgufFile clamps = deepseek4(2);
    clamps.i32s("deepseek4.attention.compress_ratios", {0, 4});
    clamps.f32s("deepseek4.swiglu_clamp_exp", {10, 5});
    EXPECT_NE(error(clamps).find("swiglu_clamp_exp"), std::string::npos) << error(clamps);
    GgufFile layers;
    layers.text("general.architecture", "deepseek4");
    EXPECT_NE(error(layers).find("block_count is missing"), std::string::npos);
    layers.u32("deepseek4.block_count", 0);
    EXPECT_NE(error(layers).find("block_count is 0"), std::string::npos);
    GgufFile nameless;
    EXPECT_NE(error(nameless).find("general.architecture"), std::string::npos);
    GgufFile other;
    other.text("general.architecture", "qwen3moe");
    EXPECT_EQ(config_of(other).at("architectures"), Json::parse(R"(["qwen3moe"])"));
}

}  // namespace
}  // namespace thermocline::model
