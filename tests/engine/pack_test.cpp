// Dummy weights made straight into the packed form: the numbers of those that are made first and packed then.
#include "src/engine/pack.h"

#include "src/base/file.h"
#include "src/base/json.h"
#include "src/quant/reference.h"
#include "tests/model/engine_fixture.h"
#include "tests/model/model_files.h"

#include <cstring>
#include <gtest/gtest.h>

namespace thermocline {
namespace {

const std::string kDemo = THERMOCLINE_SOURCE_DIR "/models/demo";

std::unique_ptr<model::Model> dummy(const std::string& config, bool deferred) {
    model::LoadOptions options;
    options.format = model::LoadFormat::kDummy;
    options.seed = 5;
    options.defer_codes = deferred;
    return model::load_model(config, options);
}

Logits logits_of(const model::Model& model) {
    Engine engine(model, "auto", 2);
    std::vector<int32_t> tokens;
    for (int32_t i = 0; i < 40; ++i) tokens.push_back((7 * i * i + 3 * i + 300) % static_cast<int32_t>(model.vocab));
    return engine.feed(*engine.new_sequence(), tokens, 16);
}

void expect_same(const quant::Matrix& a, const quant::Matrix& b, const std::string& name) {
    EXPECT_EQ(a.layout, b.layout) << name;
    EXPECT_EQ(quant::decode_matrix(a), quant::decode_matrix(b)) << name;
}

/// Deferred and packed against made at once and packed, and against made at once and left in place.
void expect_same_numbers(const std::string& config) {
    for (const int slices : {1, 2}) {
        const auto made = dummy(config, false), deferred = dummy(config, true), in_place = dummy(config, false);
        const std::vector<memory::Slice> all = {{{}, {0, 1}}, {{}, {0}}};
        const std::vector<memory::Slice> some(all.begin(), all.begin() + slices);
        const auto a = engine::pack_weights(*made, some), b = engine::pack_weights(*deferred, some);
        EXPECT_EQ(a->bytes(), b->bytes());
        EXPECT_EQ(a->unpacked_bytes(), b->unpacked_bytes());
        for (size_t i = 0; i < made->trunk.matrices.size(); ++i) {
            const ops::NamedMatrix& named = made->trunk.matrices[i];
            expect_same(named.matrix, deferred->trunk.matrices[i].matrix, named.name);
            EXPECT_EQ(quant::decode_matrix(named.matrix), quant::decode_matrix(in_place->trunk.matrices[i].matrix));
        }
        const ops::ExpertSet &x = made->trunk.experts[1], &y = deferred->trunk.experts[1],
                             &z = in_place->trunk.experts[1];
        for (size_t e = 0; e < x.w1.size(); ++e) {
            expect_same(x.w1[e], y.w1[e], "w1");
            expect_same(x.w2[e], y.w2[e], "w2");
            expect_same(x.w3[e], y.w3[e], "w3");
            EXPECT_EQ(quant::decode_matrix(y.w2[e]), quant::decode_matrix(z.w2[e]));
        }
        const Logits expected = logits_of(*made), logits = logits_of(*deferred);
        for (size_t t = 0; t < expected.size(); ++t)
            ASSERT_EQ(std::memcmp(logits[t].data(), expected[t].data(), expected[t].size() * sizeof(float)), 0) << t;
    }
}

TEST(Pack, DeferredDummyWeightsAreThoseMadeAtOnce) { expect_same_numbers(kDemo); }

// Experts whose columns are no whole blocks keep their rows: they are made where they lie.
TEST(Pack, DeferredDummyWeightsWithoutStripsAreMadeToo) {
    Json config = parse_json(read_text(kDemo + "/config.json"), "config.json");
    config["moe_intermediate_size"] = 96;
    model::TemporaryFolder folder;
    folder.write("config.json", dump_json(config));
    expect_same_numbers(folder.path().string());
}

}  // namespace
}  // namespace thermocline
