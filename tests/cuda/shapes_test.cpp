// What the tiny model does not reach: shapes of real models, several sequences in a batch, pages and rings that are
// left and entered again, long contexts, ties and numbers that are none.
#include "tests/cuda/one_step.h"

#include <gtest/gtest.h>

namespace thermocline {
namespace {

using quant::KvFormat;

TEST(CudaHyper, RealWidthsForOneRowAndForMany) {
    for (const int64_t rows : {1, 140}) {
        const int64_t width = rows == 1 ? 4096 : 256;
        OneStep one;
        const ops::Slot streams = one.slot(4 * width), mix = one.slot(24), x = one.slot(width), post = one.slot(20);
        const ops::Slot head_mix = one.slot(4);
        const ops::VectorId base = one.vector(24), scale = one.vector(3);
        one.begin({{7, rows}});
        for (float& m : one.stage->slot(mix)) m *= 30;
        one.check(ops::HyperIn{streams, mix, base, scale, x, post, 4, 20, 1e-6f, 1e-6f}, {x, post}, {}, 1e-5);
        one.check(ops::HyperOut{x, post, streams, 4, false}, {streams}, {}, 1e-5);
        one.check(ops::HyperHead{streams, head_mix, base, scale, x, 4, 1e-6f, 1e-6f}, {x}, {}, 1e-5);
    }
}

TEST(CudaHyper, TwoStreamsAndOne) {
    for (const int32_t n : {1, 2}) {
        OneStep one;
        const ops::Slot streams = one.slot(n * 64), mix = one.slot(n * (2 + n)), x = one.slot(64);
        const ops::Slot post = one.slot(n + n * n);
        const ops::VectorId base = one.vector(n * (2 + n)), scale = one.vector(3);
        one.begin({{0, 3}});
        one.check(ops::HyperIn{streams, mix, base, scale, x, post, n, 20, 1e-6f, 1e-6f}, {x, post}, {}, 1e-5);
        one.check(ops::HyperOut{x, post, streams, n, false}, {streams}, {}, 1e-5);
    }
}

TEST(CudaRoute, SixOf256WithBiasAndTies) {
    OneStep one;
    const ops::Slot logits = one.slot(256), ids = one.slot(6), weights = one.slot(6);
    const ops::VectorId bias = one.vector(256);
    one.begin({{3, 20}, {9, 5}});
    const auto z = one.stage->slot(logits);
    for (size_t i = 0; i < 256 * 2; ++i) z[i] = 0.5f;                            // all equal: the bias decides
    for (size_t i = 256 * 3; i < 256 * 4; ++i) z[i] = std::floor(4 * z[i]) / 4;  // many equal
    one.check(ops::Route{logits, bias, ops::kNone, ids, weights, 256, 6, 1.5f, true}, {weights}, {ids}, 1e-5);
    one.check(ops::Route{logits, ops::kNone, ops::kNone, ids, weights, 256, 6, 1.5f, true}, {weights}, {ids}, 1e-5);
    one.check(ops::Route{logits, ops::kNone, ops::kNone, ids, weights, 256, 6, 2.0f, false}, {weights}, {ids}, 1e-5);
}

TEST(CudaRoute, NumbersThatAreNoneStillNameSixExperts) {
    OneStep one;
    const ops::Slot logits = one.slot(8), ids = one.slot(6), weights = one.slot(6);
    one.begin({{0, 1}});
    for (size_t i = 0; i < 5; ++i) one.stage->slot(logits)[i] = std::nanf("");
    one.stage->run(ops::Route{logits, ops::kNone, ops::kNone, ids, weights, 8, 6, 1.0f, true}, one.batch());
    std::vector<int32_t> found;
    for (size_t k = 0; k < 6; ++k) found.push_back(std::bit_cast<int32_t>(one.stage->slot(ids)[k]));
    std::sort(found.begin(), found.end());
    EXPECT_EQ(found, (std::vector<int32_t>{0, 1, 2, 5, 6, 7}));  // the numbers first, then the lowest ids
}

/// Widths, ratio, form, and what the caches hold, as in the models.
struct CompressShape {
    int32_t ratio, width, rope;
    bool overlap, hadamard;
    KvFormat format;
};

TEST(CudaCompress, BothRatiosAcrossChunksOfTwoSequences) {
    for (const CompressShape& shape :
         {CompressShape{4, 512, 64, true, false, KvFormat::kF32},
          CompressShape{4, 512, 64, true, false, KvFormat::kFp8}, CompressShape{4, 128, 64, true, true, KvFormat::kFp4},
          CompressShape{128, 512, 64, false, false, KvFormat::kBF16}}) {
        OneStep one;
        const int32_t wide = shape.overlap ? 2 * shape.width : shape.width;
        const ops::Slot values = one.slot(wide), scores = one.slot(wide);
        const ops::VectorId ape = one.vector(shape.ratio * wide), norm = one.vector(shape.width);
        const ops::RopeId rope = one.rope(shape.rope);
        const ops::CacheId state = one.ring(KvFormat::kF32, 2 * wide, 0, shape.overlap ? 16 : 256);
        const ops::CacheId entries = one.entries(shape.format, shape.width, shape.rope, shape.ratio);
        one.begin({{127, 1}, {0, 9}, {381, 130 - 10}, {6, 1}, {5, 2}});
        one.check(ops::Compress{values, scores, ape, norm, rope, state, entries, shape.ratio, shape.width,
                                shape.overlap, shape.hadamard, 1e-6f},
                  {}, {}, shape.format == KvFormat::kBF16 ? 1e-2 : 2e-5, 1e-3);
    }
}

/// An indexer as in the models.
struct Indexer : OneStep {
    ops::SelectEntries step{};
    Indexer(KvFormat format, int32_t heads, int32_t width, int32_t top_k) {
        step.q = slot(heads * width);
        step.gates = slot(heads);
        step.keys = entries(format, width, 0, 4);
        step.selection = slot(1 + top_k);
        step.heads = heads;
        step.width = width;
        step.ratio = 4;
        step.top_k = top_k;
        plan.steps = {step};
    }
    void check_choice(double wrong_share = 0) { check(step, {}, {step.selection}, 0, wrong_share); }
};

TEST(CudaSelect, RealShapesWithFewerAndMoreEntriesThanWanted) {
    for (const KvFormat format : {KvFormat::kF32, KvFormat::kBF16, KvFormat::kFp4}) {
        Indexer one(format, 64, 128, 512);
        one.begin({{3000, 1}, {12, 2}, {2047, 1}, {7000, 1}});
        one.check_choice();
    }
}

TEST(CudaSelect, OneRowOfALongContextIsSplit) {
    Indexer one(KvFormat::kFp4, 64, 128, 512);
    one.begin({{60001, 1}});
    one.check_choice();
}

TEST(CudaSelect, TiesGoToTheLowestIndexAndNoNumberCountsLeast) {
    Indexer one(KvFormat::kF32, 4, 32, 64);
    one.begin({{799, 2}, {4 * 260, 1}});
    std::vector<float> row(32);
    for (int64_t i = 0; i < 260; ++i) {  // few different keys, so that most scores are equal; all gates positive
        for (size_t c = 0; c < row.size(); ++c) row[c] = static_cast<float>((i * 7 % 5 + static_cast<int64_t>(c)) % 5);
        if (i < 200) one.set_row(0, one.step.keys, i, row);
        one.set_row(1, one.step.keys, i, row);
    }
    for (float& x : one.stage->slot(one.step.gates)) x = 0.5f;
    for (float& x : one.stage->slot(one.step.q)) x = static_cast<float>(static_cast<int>(4 * x));
    one.check_choice();

    Indexer none(KvFormat::kF32, 4, 32, 64);
    none.begin({{399, 1}});  // 100 entries; a gate that is no number makes all scores equal
    for (float& x : none.stage->slot(none.step.gates)) x = std::nanf("");
    none.stage->run(none.step, none.batch());
    for (int32_t i = 0; i < 64; ++i)
        EXPECT_EQ(std::bit_cast<int32_t>(none.stage->slot(none.step.selection)[static_cast<size_t>(1 + i)]), i);
}

TEST(CudaSelect, AChunkOfRowsOfTwoSequences) {
    Indexer one(KvFormat::kFp4, 16, 32, 16);
    one.begin({{50, 70}, {4000, 65}});
    one.check_choice();
}

/// Attention as in the models: window 128, keys of 512 channels with 64 rotary ones.
struct Attender : OneStep {
    ops::Attention step{};
    Attender(KvFormat format, int32_t ratio, int32_t heads = 64, int32_t width = 512, int32_t top_k = 0) {
        step.q = slot(heads * width);
        step.kv = slot(width);
        step.window_cache = ring(format, width, width / 8, 144);
        step.entries = ratio == 0 ? ops::kNone : entries(format, width, width / 8, ratio);
        step.selection = top_k == 0 ? ops::kNone : slot(1 + top_k);
        step.sinks = vector(heads);
        step.out = slot(heads * width);
        step.heads = heads;
        step.width = width;
        step.window = 128;
        step.ratio = ratio;
        step.scale = 1.0f / std::sqrt(static_cast<float>(width));
        plan.steps = {step};
        if (top_k > 0) inputs = {step.selection};
    }
    /// Rows of the batch hold what RoundKv would leave; every row that may choose gets some entries.
    void prepare() {
        const ops::CacheSpec& spec = plan.caches[static_cast<size_t>(step.window_cache)];
        std::vector<std::byte> bytes(static_cast<size_t>(spec.row_bytes()));
        for (int64_t t = 0; t < rows(); ++t) {
            float* key = stage->slot(step.kv).data() + t * step.width;
            quant::encode_kv_row(spec.format, key, step.width, spec.rope, bytes.data());
            quant::decode_kv_row(spec.format, bytes.data(), step.width, spec.rope, key);
            if (step.selection == ops::kNone) continue;
            const int64_t cols = plan.slots[static_cast<size_t>(step.selection)].cols;
            float* chosen = stage->slot(step.selection).data() + t * cols;
            const int64_t visible = (batch().positions[static_cast<size_t>(t)] + 1) / step.ratio;
            const int64_t count = std::min(visible, cols - 1);
            chosen[0] = std::bit_cast<float>(static_cast<int32_t>(count));
            for (int64_t i = 0; i < count; ++i)
                chosen[1 + i] = std::bit_cast<float>(static_cast<int32_t>(i * visible / count));
        }
    }
};

constexpr KvFormat kKeyFormats[] = {KvFormat::kF32, KvFormat::kBF16, KvFormat::kFp8F32, KvFormat::kFp8};

TEST(CudaAttention, DecodeAtRealShapesOfSequencesOfAllLengths) {
    for (const KvFormat format : kKeyFormats) {
        Attender one(format, 4, 64, 512, 512);
        one.begin({{5000, 1}, {0, 1}, {130, 2}, {700, 1}});
        one.prepare();
        one.check(one.step, {one.step.out}, {}, 2e-5);
    }
}

TEST(CudaAttention, OneRowIsSplitAmongManyBlocks) {
    for (const int32_t ratio : {0, 4, 128}) {
        Attender one(KvFormat::kFp8, ratio, 64, 512, ratio == 4 ? 512 : 0);
        one.begin({{40000, 1}});
        one.prepare();
        one.check(one.step, {one.step.out}, {}, 2e-5);
    }
}

TEST(CudaAttention, ChunksOfTwoSequencesAcrossTheRing) {
    for (const KvFormat format : kKeyFormats)
        for (const int32_t ratio : {0, 4, 128}) {
            Attender one(format, ratio, 4, 64, ratio == 4 ? 20 : 0);
            one.begin({{0, 60}, {1500, 70}, {143, 3}});
            one.prepare();
            one.check(one.step, {one.step.out}, {}, 2e-5);
        }
}

}  // namespace
}  // namespace thermocline
