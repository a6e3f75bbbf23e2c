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

}  // namespace
}  // namespace thermocline
