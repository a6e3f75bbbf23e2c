// The demo model with packed weights against the same model read where its file lies.
#include "memory/packed_weights.h"

#include "src/quant/reference.h"
#include "tests/model/engine_fixture.h"

#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <list>
#include <numeric>

namespace thermocline {
namespace {

const std::string kDemo = THERMOCLINE_SOURCE_DIR "/models/demo";
constexpr model::LoadOptions kExact = {.kv_cache = model::KvCacheDtype::kF32, .activations = model::Activations::kBf16};

struct PackedModel {
    std::unique_ptr<model::Model> model;
    std::unique_ptr<memory::PackedWeights> packed;

    explicit PackedModel(const model::LoadOptions& options, int threads = 2)
        : model(model::load_model(kDemo, options)) {
        ops::Plan* plans[] = {&model->trunk, &*model->mtp};
        packed = std::make_unique<memory::PackedWeights>(plans, memory::PackedWeights::Source::kFiles, threads);
    }
};

std::vector<int32_t> some_tokens(int32_t count) {
    std::vector<int32_t> tokens;
    for (int32_t i = 0; i < count; ++i) tokens.push_back((7 * i * i + 3 * i + 300) % 4000);
    return tokens;
}

Logits logits_of(const model::Model& model, int workers, int64_t chunk) {
    Engine engine(model, "auto", workers);
    const auto sequence = engine.new_sequence();
    return engine.feed(*sequence, some_tokens(150), chunk);
}

double relative_difference(const Logits& a, const Logits& b) {
    double error = 0.0, size = 0.0;
    for (size_t t = 0; t < a.size(); ++t)
        for (size_t i = 0; i < a[t].size(); ++i) {
            error += std::pow(double{a[t][i]} - b[t][i], 2);
            size += std::pow(double{b[t][i]}, 2);
        }
    return std::sqrt(error / size);
}

TEST(PackedWeights, HoldTheNumbersOfTheFile) {
    const auto plain = model::load_model(kDemo, {});
    const PackedModel packed({});
    for (size_t i = 0; i < plain->trunk.matrices.size(); ++i)
        EXPECT_EQ(quant::decode_matrix(packed.model->trunk.matrices[i].matrix),
                  quant::decode_matrix(plain->trunk.matrices[i].matrix))
            << plain->trunk.matrices[i].name;
    const ops::ExpertSet &a = packed.model->trunk.experts[1], &b = plain->trunk.experts[1];
    for (size_t e = 0; e < a.w1.size(); ++e) {
        EXPECT_EQ(a.w1[e].layout, quant::Layout::kStrips);
        EXPECT_EQ(quant::decode_matrix(a.w1[e]), quant::decode_matrix(b.w1[e]));
        EXPECT_EQ(quant::decode_matrix(a.w2[e]), quant::decode_matrix(b.w2[e]));
        EXPECT_EQ(quant::decode_matrix(a.w3[e]), quant::decode_matrix(b.w3[e]));
    }
}

TEST(PackedWeights, LeaveOnlyTheEmbeddingAndOddShapesWhereTheyLie) {
    const PackedModel packed({});
    EXPECT_GT(packed.packed->bytes(), 8 << 20);
    EXPECT_LT(packed.packed->unpacked_bytes(), packed.packed->bytes() / 2);
    // Trunk and MTP layer share the head: packed once.
    EXPECT_EQ(packed.model->mtp->matrices.back().matrix.data, packed.model->trunk.matrices.back().matrix.data);
}

TEST(PackedWeights, GiveTheLogitsOfTheFile) {
    const auto plain = model::load_model(kDemo, kExact);
    const PackedModel packed(kExact);
    const Logits a = logits_of(*packed.model, 1, 64), b = logits_of(*plain, 1, 64);
    for (size_t t = 0; t < a.size(); ++t)
        EXPECT_LT(difference(a[t], std::vector<double>(b[t].begin(), b[t].end())), 2e-4) << "token " << t;
}

// Rounding to int8 per 32 costs a percent per matrix (hybrid-engine.md 2.1).
TEST(PackedWeights, Int8ActivationsStayCloseToExactOnes) {
    const PackedModel exact(kExact),
        packed({.kv_cache = model::KvCacheDtype::kF32, .activations = model::Activations::kInt8});
    const double error = relative_difference(logits_of(*packed.model, 1, 64), logits_of(*exact.model, 1, 64));
    RecordProperty("relative_error", std::to_string(error));
    EXPECT_GT(error, 0.0);
    EXPECT_LT(error, 0.05);
}

TEST(PackedWeights, ResultsDependNeitherOnThreadsNorOnChunks) {
    for (const model::Activations activations : {model::Activations::kModel, model::Activations::kInt8}) {
        const model::LoadOptions options = {.activations = activations};
        const PackedModel packed(options, 1);
        const Logits expected = logits_of(*packed.model, 1, 150);
        const auto expect_same = [&](const Logits& logits, const char* what) {
            for (size_t t = 0; t < expected.size(); ++t)
                ASSERT_EQ(std::memcmp(logits[t].data(), expected[t].data(), expected[t].size() * sizeof(float)), 0)
                    << what << ", token " << t;
        };
        expect_same(logits_of(*packed.model, 1, 1), "one by one");
        expect_same(logits_of(*packed.model, 2, 7), "chunks of 7, two threads");
        expect_same(logits_of(*packed.model, 3, 150), "three threads");
        expect_same(logits_of(*PackedModel(options, 3).model, 2, 1), "packed by three");
    }
}

/// The demo model with its experts, and the other matrices that can be, encoded again as GGUF files have them.
struct GgufModel {
    std::unique_ptr<model::Model> model;
    std::list<quant::EncodedMatrix> encoded;
    std::unique_ptr<memory::PackedWeights> packed;

    GgufModel(const model::LoadOptions& options, bool pack) : model(model::load_model(kDemo, options)) {
        using quant::Format;
        constexpr Format kWide[] = {Format::kQ4_K, Format::kQ6_K, Format::kQ4_0, Format::kQ5_1};
        constexpr Format kNarrow[] = {Format::kQ5_0, Format::kQ4_1};  // 128 columns: no K-quants
        size_t i = 0;
        for (ops::ExpertSet& set : model->trunk.experts) {
            for (std::vector<quant::Matrix>* list : {&set.w1, &set.w3})
                for (quant::Matrix& matrix : *list) encode(matrix, kWide[i % 4]);
            for (quant::Matrix& matrix : set.w2) encode(matrix, kNarrow[i % 2]);
            ++i;
        }
        for (ops::NamedMatrix& named : model->trunk.matrices)
            if (named.matrix.format == Format::kE4M3)
                encode(named.matrix, named.matrix.cols % 256 == 0 ? kWide[i++ % 4] : kNarrow[i++ % 2]);
        if (!pack) return;
        ops::Plan* plans[] = {&model->trunk};
        packed = std::make_unique<memory::PackedWeights>(plans, memory::PackedWeights::Source::kMemory, 2);
    }

private:
    void encode(quant::Matrix& matrix, quant::Format format) {
        const std::vector<float> numbers = quant::decode_matrix(matrix);
        matrix = encoded.emplace_back(quant::encode_matrix({format}, numbers.data(), matrix.rows, matrix.cols)).view();
    }
};

TEST(PackedWeights, TakeTheBlocksOfGgufFiles) {
    const GgufModel packed(kExact, true), plain(kExact, false);
    for (const ops::ExpertSet& set : packed.model->trunk.experts)
        for (const std::vector<quant::Matrix>* list : {&set.w1, &set.w2, &set.w3})
            for (const quant::Matrix& matrix : *list) EXPECT_EQ(matrix.layout, quant::Layout::kStrips) << set.name;
    const Logits a = logits_of(*packed.model, 1, 64), b = logits_of(*plain.model, 1, 64);
    EXPECT_LT(relative_difference(a, b), 2e-4);
    const Logits one_by_one = logits_of(*packed.model, 1, 1);
    for (size_t t = 0; t < a.size(); ++t)
        ASSERT_EQ(std::memcmp(a[t].data(), one_by_one[t].data(), a[t].size() * sizeof(float)), 0) << "token " << t;

    const GgufModel rounded({.kv_cache = model::KvCacheDtype::kF32, .activations = model::Activations::kInt8}, true);
    const double error = relative_difference(logits_of(*rounded.model, 1, 64), b);
    EXPECT_GT(error, 0.0);
    EXPECT_LT(error, 0.05);
}

}  // namespace
}  // namespace thermocline
