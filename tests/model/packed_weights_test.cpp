// The demo model with packed weights against the same model read where its file lies.
#include "memory/packed_weights.h"

#include "src/base/error.h"
#include "src/quant/reference.h"
#include "tests/model/engine_fixture.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <list>
#include <numeric>
#include <string>

namespace thermocline {
namespace {

const std::string kDemo = THERMOCLINE_SOURCE_DIR "/models/demo";
constexpr model::LoadOptions kExact = {.kv_cache = model::KvCacheDtype::kF32, .activations = model::Activations::kBf16};

struct PackedModel {
    std::unique_ptr<model::Model> model;
    std::unique_ptr<memory::PackedWeights> packed;

    explicit PackedModel(const model::LoadOptions& options, int threads = 1, size_t slices = 1,
                         const std::vector<int>& nodes = {})
        : model(model::load_model(kDemo, options)) {
        ops::Plan* plans[] = {&model->trunk, &*model->mtp};
        std::vector<int> cpus(static_cast<size_t>(threads));
        std::iota(cpus.begin(), cpus.end(), 0);
        const std::vector<memory::Slice> places(slices, {nodes, cpus});
        packed = std::make_unique<memory::PackedWeights>(plans, nullptr, places);
    }
};

std::vector<int32_t> some_tokens(int32_t count) {
    std::vector<int32_t> tokens;
    for (int32_t i = 0; i < count; ++i) tokens.push_back((7 * i * i + 3 * i + 300) % 4000);
    return tokens;
}

Logits logits_of(const model::Model& model, int workers, int64_t chunk, std::span<const int> nodes = {},
                 int32_t tokens = 150) {
    Engine engine(model, "auto", workers, nodes);
    const auto sequence = engine.new_sequence();
    return engine.feed(*sequence, some_tokens(tokens), chunk);
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

void expect_same(const Logits& logits, const Logits& expected, const std::string& what) {
    ASSERT_EQ(logits.size(), expected.size());
    for (size_t t = 0; t < expected.size(); ++t)
        ASSERT_EQ(std::memcmp(logits[t].data(), expected[t].data(), expected[t].size() * sizeof(float)), 0)
            << what << ", token " << t;
}

TEST(PackedWeights, ResultsDependNeitherOnThreadsNorOnChunks) {
    for (const model::Activations activations : {model::Activations::kModel, model::Activations::kInt8}) {
        const model::LoadOptions options = {.activations = activations};
        const PackedModel packed(options, 1);
        const Logits expected = logits_of(*packed.model, 1, 150);
        expect_same(logits_of(*packed.model, 1, 1), expected, "one by one");
        expect_same(logits_of(*packed.model, 2, 7), expected, "chunks of 7, two threads");
        expect_same(logits_of(*packed.model, 3, 150), expected, "three threads");
        expect_same(logits_of(*PackedModel(options, 3).model, 2, 1), expected, "packed by three");
    }
}

TEST(PackedWeights, EveryMatrixHasAPartInEverySlice) {
    const PackedModel whole({});
    bool uneven_fp8 = false;  // else the next test shows less than it says
    for (const int64_t slices : {2, 3, 4}) {
        const PackedModel cut({}, 1, static_cast<size_t>(slices));
        const auto expect_cut = [&](const quant::Matrix& a, const quant::Matrix& b, const std::string& name) {
            EXPECT_EQ(quant::decode_matrix(a), quant::decode_matrix(b)) << name;
            if (a.layout == quant::Layout::kRows) return;
            EXPECT_GE(slice_count(a), std::min<int64_t>(2, a.rows / 128)) << name;
            EXPECT_EQ(a.slice_stride, cut.packed->arena()->stride()) << name;
            uneven_fp8 |= a.scales && slice_count(a) == slices && a.rows / quant::kStripRows % a.slice_strips != 0;
        };
        for (size_t i = 0; i < cut.model->trunk.matrices.size(); ++i) {
            const ops::NamedMatrix& named = cut.model->trunk.matrices[i];
            expect_cut(named.matrix, whole.model->trunk.matrices[i].matrix, named.name);
        }
        const ops::ExpertSet &a = cut.model->trunk.experts[0], &b = whole.model->trunk.experts[0];
        for (size_t e = 0; e < a.w1.size(); ++e) {
            EXPECT_EQ(slice_count(a.w1[e]), slices);
            EXPECT_EQ(slice_count(a.w2[e]), slices);
            expect_cut(a.w1[e], b.w1[e], "w1");
            expect_cut(a.w2[e], b.w2[e], "w2");
            expect_cut(a.w3[e], b.w3[e], "w3");
        }
        EXPECT_EQ(cut.packed->bytes(), whole.packed->bytes());
    }
    EXPECT_TRUE(uneven_fp8);
}

TEST(PackedWeights, BoundSlicesLieWhereTheyBelong) {
    const PackedModel packed({}, 1, 2, {0});
    const memory::Arena& arena = *packed.packed->arena();
    if (arena.refused()) return;  // containers commonly forbid it
    EXPECT_EQ(arena.share_in_place(), 1.0);
    EXPECT_THROW(PackedModel({}, 1, 2, {1000}), Error);
}

// FP8 blocks and MXFP4 experts, read as trained and in integers, one token and many; workers on as many nodes as there
// are slices, on fewer, and on more than some matrices have slices.
TEST(PackedWeights, ResultsDoNotDependOnSlicesAndNodes) {
    const int on_two[] = {0, 1, 1}, on_four[] = {0, 1, 2, 3};
    constexpr int32_t kTokens = 20;
    for (const model::Activations activations : {model::Activations::kModel, model::Activations::kInt8}) {
        const model::LoadOptions options = {.activations = activations};
        const Logits expected = logits_of(*PackedModel(options).model, 1, kTokens, {}, kTokens);
        for (const size_t slices : {1, 2, 3, 4}) {
            const PackedModel packed(options, 1, slices);
            const auto expect_same_on = [&](std::span<const int> nodes, int64_t chunk, const char* what) {
                expect_same(logits_of(*packed.model, static_cast<int>(nodes.size()), chunk, nodes, kTokens), expected,
                            std::to_string(slices) + " slices, " + what);
            };
            expect_same_on(std::span(on_two).first(1), 1, "one worker, one by one");
            expect_same_on(on_two, kTokens, "two nodes");
            expect_same_on(on_four, kTokens, "four nodes");
            if (slices == 2) expect_same_on(on_two, 1, "two nodes, one by one");
        }
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
        const memory::Slice whole{{}, {0, 1}};
        packed = std::make_unique<memory::PackedWeights>(plans, nullptr, std::span(&whole, 1));
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
