// Weights without a file: what they hold, that they depend on the seed alone, and that they load as any others do.
#include "src/model/dummy.h"

#include "src/base/error.h"
#include "src/base/file.h"
#include "src/model/deepseek_v4.h"
#include "src/model/registry.h"
#include "src/quant/reference.h"
#include "tests/model/model_files.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <set>
#include <span>

namespace thermocline::model {
namespace {

const std::string kDemo = std::string(THERMOCLINE_SOURCE_DIR) + "/models/demo";

std::unique_ptr<Model> dummy(int32_t layers = 0, uint64_t seed = 0) {
    LoadOptions options;
    options.format = LoadFormat::kDummy;
    options.layers = layers;
    options.seed = seed;
    return load_model(kDemo, options);
}

std::span<const std::byte> bytes_of(const Model& model, const std::string& name) {
    const TensorEntry* entry = model.checkpoint.weights.find(name);
    EXPECT_NE(entry, nullptr) << name;
    if (entry == nullptr) return {};
    return {entry->data, static_cast<size_t>(entry->bytes)};
}

bool equal(std::span<const std::byte> a, std::span<const std::byte> b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size()) == 0;
}

double root_mean_square(const std::vector<float>& values) {
    double sum = 0.0;
    for (const float value : values) sum += static_cast<double>(value) * value;
    return std::sqrt(sum / static_cast<double>(values.size()));
}

TEST(Dummy, HoldsTheTensorsOfTheCheckpointThatItStandsFor) {
    const Checkpoint real = open_checkpoint(kDemo);
    const auto made = dummy();
    for (const auto& [name, entry] : real.weights.tensors) {
        const TensorEntry* other = made->checkpoint.weights.find(name);
        ASSERT_NE(other, nullptr) << name;
        EXPECT_EQ(other->shape, entry.shape) << name;
    }
    EXPECT_EQ(made->checkpoint.weights.tensors.size(), real.weights.tensors.size());
    EXPECT_TRUE(made->mtp.has_value());
}

TEST(Dummy, MatricesKeepTheSizeOfTheirInput) {
    const auto model = dummy();
    for (const ops::NamedMatrix& named : model->trunk.matrices) {
        const double size =
            root_mean_square(quant::decode_matrix(named.matrix)) * std::sqrt(static_cast<double>(named.matrix.cols));
        EXPECT_GT(size, 0.5) << named.name;
        EXPECT_LT(size, 2.0) << named.name;
    }
    for (const ops::ExpertSet& set : model->trunk.experts)
        for (const auto* projection : {&set.w1, &set.w2, &set.w3}) {
            const quant::Matrix& matrix = projection->back();
            const double size =
                root_mean_square(quant::decode_matrix(matrix)) * std::sqrt(static_cast<double>(matrix.cols));
            EXPECT_GT(size, 0.5) << set.name;
            EXPECT_LT(size, 2.0) << set.name;
        }
}

TEST(Dummy, TokenTableNamesDifferentExperts) {
    const auto model = dummy(1);
    ASSERT_EQ(model->trunk.tables.size(), 1u);
    const std::vector<int32_t>& ids = model->trunk.tables.front().values;
    std::set<int32_t> all;
    for (size_t row = 0; row + 4 <= ids.size(); row += 4) {
        const std::set<int32_t> different(ids.begin() + static_cast<long>(row),
                                          ids.begin() + static_cast<long>(row) + 4);
        EXPECT_EQ(different.size(), 4u) << row;
        all.insert(different.begin(), different.end());
    }
    EXPECT_EQ(all.size(), 16u);
}

TEST(Dummy, DependsOnSeedAndPlaceAlone) {
    const auto whole = dummy(), again = dummy(), cut = dummy(2), other = dummy(0, 1);
    for (const char* name : {"embed.weight", "layers.0.ffn.experts.3.w1.weight", "layers.1.ffn.gate.weight",
                             "layers.1.attn.wq_b.scale", "layers.0.ffn.gate.tid2eid"}) {
        EXPECT_TRUE(equal(bytes_of(*whole, name), bytes_of(*again, name))) << name;
        EXPECT_TRUE(equal(bytes_of(*whole, name), bytes_of(*cut, name))) << name;
        EXPECT_FALSE(equal(bytes_of(*whole, name), bytes_of(*other, name))) << name;
    }
    EXPECT_FALSE(equal(bytes_of(*whole, "layers.0.ffn.experts.3.w1.weight"),
                       bytes_of(*whole, "layers.0.ffn.experts.3.w3.weight")));
}

TEST(Dummy, LayersAreCut) {
    const auto cut = dummy(2);
    EXPECT_EQ(cut->trunk.experts.size(), 2u);
    EXPECT_FALSE(cut->mtp.has_value());
    EXPECT_EQ(cut->checkpoint.weights.find("layers.2.attn_norm.weight"), nullptr);
    EXPECT_EQ(dummy(99)->trunk.experts.size(), 4u);
}

TEST(Dummy, BundledConfigsHaveTheShapesOfThePublishedModels) {
    const std::string folder = std::string(THERMOCLINE_SOURCE_DIR) + "/configs/models/";
    struct Case {
        const char* name;
        size_t layers, experts;
        int64_t hidden, intermediate;
    };
    for (const Case& c :
         {Case{"deepseek-v4-flash", 43, 256, 4096, 2048}, Case{"deepseek-v4-pro", 61, 384, 7168, 3072}}) {
        const Checkpoint config = open_config(folder + c.name + ".json");
        EXPECT_EQ(config.weights.tensors.size(), 0u);
        const deepseek_v4::Shape shape = deepseek_v4::read_shape(config.config);
        EXPECT_EQ(shape.layers.size(), c.layers);
        EXPECT_EQ(shape.hidden, c.hidden);
        EXPECT_EQ(shape.intermediate, c.intermediate);
        EXPECT_EQ(config.config["n_routed_experts"], c.experts);
    }
}

TEST(Dummy, BundledConfigOfTheDemoModelIsTheDemoModels) {
    EXPECT_EQ(read_text(std::string(THERMOCLINE_SOURCE_DIR) + "/configs/models/demo.json"),
              read_text(kDemo + "/config.json"));
}

TEST(Dummy, DeferredCodesAreTheSameInWhateverPieces) {
    LoadOptions options;
    options.format = LoadFormat::kDummy;
    const auto whole = load_model(kDemo, options);
    options.defer_codes = true;
    const auto deferred = load_model(kDemo, options);
    const DummyCodes& codes = *deferred->checkpoint.dummy_codes;
    size_t made = 0;
    for (const auto& [name, entry] : deferred->checkpoint.weights.tensors) {
        const std::span<const std::byte> expected = bytes_of(*whole, name);
        if (!codes.holds(entry.data)) {
            EXPECT_TRUE(equal(bytes_of(*deferred, name), expected)) << name;
            continue;
        }
        std::vector<std::byte> bytes(static_cast<size_t>(entry.bytes));
        const int64_t cut = entry.bytes / 3 / 8 * 8;
        codes.make(entry.data + cut, entry.bytes - cut, bytes.data() + cut);
        codes.make(entry.data, cut, bytes.data());
        EXPECT_TRUE(equal(bytes, expected)) << name;
        EXPECT_TRUE(std::all_of(entry.data, entry.data + entry.bytes, [](std::byte b) { return b == std::byte{}; }));
        ++made;
    }
    EXPECT_GT(made, 100u);
    EXPECT_FALSE(whole->checkpoint.dummy_codes->holds(bytes_of(*whole, "embed.weight").data()));
}

TEST(Dummy, ConfigsThatCannotBeMadeAreNamed) {
    const auto error_with = [](const char* field, const Json& value) {
        Json config = parse_json(read_text(kDemo + "/config.json"), "config.json");
        config[field] = value;
        TemporaryFolder folder;
        folder.write("config.json", dump_json(config));
        LoadOptions options;
        options.format = LoadFormat::kDummy;
        return error_of([&] { load_model(folder.path().string(), options); });
    };
    EXPECT_NE(error_with("moe_intermediate_size", 100).find("w2 has 100 columns"), std::string::npos);
    EXPECT_NE(error_with("expert_dtype", "fp8").find("expert_dtype"), std::string::npos);
    EXPECT_NE(error_with("n_routed_experts", 2).find("n_routed_experts"), std::string::npos);
    Checkpoint checkpoint;
    const DummyTensor huge{"x", quant::Format::kI8, {1 << 20, 1 << 24}, DummyTensor::Values::kCodes, 1.0};
    EXPECT_NE(error_of([&] { add_dummy_tensors({huge}, 0, true, checkpoint); }).find("--layers"), std::string::npos);
    EXPECT_THROW(open_config("/no/such/config.json"), Error);
}

TEST(Dummy, AnOutlineHasThePlansOfTheDummyModelAndNothingElse) {
    LoadOptions options;
    options.format = LoadFormat::kOutline;
    const auto outline = load_model(kDemo, options);
    const auto made = dummy();
    EXPECT_EQ(ops::to_string(outline->trunk), ops::to_string(made->trunk));
    ASSERT_TRUE(outline->mtp);
    EXPECT_EQ(ops::to_string(*outline->mtp), ops::to_string(*made->mtp));
    EXPECT_EQ(outline->weight_bytes, made->weight_bytes);
    ASSERT_EQ(outline->checkpoint.weights.files.size(), 1u);
    EXPECT_LT(outline->checkpoint.weights.files[0]->size(), made->checkpoint.weights.files[0]->size());
}

/// hybrid-engine.md 1.1: 8.82 + 147.2 GB without the MTP layer, 28.66 + 822.1 GB. No memory of that size is needed.
TEST(Dummy, TheLargestPublishedModelsHaveAnOutline) {
    for (const auto& [name, dense_and_routed] : {std::pair{"deepseek-v4-flash", 156.0}, {"deepseek-v4-pro", 850.8}}) {
        LoadOptions options;
        options.format = LoadFormat::kOutline;
        const auto model =
            load_model(std::string(THERMOCLINE_SOURCE_DIR) + "/configs/models/" + name + ".json", options);
        double mtp = 0.0;
        for (const ops::ExpertSet& set : model->mtp->experts)
            for (const auto* projection : {&set.w1, &set.w2, &set.w3})
                for (const quant::Matrix& matrix : *projection) mtp += static_cast<double>(matrix.bytes());
        EXPECT_NEAR((static_cast<double>(model->weight_bytes) - mtp) * 1e-9, dense_and_routed, 0.01 * dense_and_routed)
            << name;
    }
}

}  // namespace
}  // namespace thermocline::model
