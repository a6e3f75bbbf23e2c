// Attention for many rows, by the matrix instruction: a block has one row, 16 heads and all keys of the row; its warps
// share the channels, for the products with the queries as well as for the sums of values, so that a lane's operands
// come from the same place in shared memory twice.
//
// Keys are exact in bf16 (formats kBF16 and kFp8). Queries and weights are two numbers each, the nearest bf16 and the
// nearest of what is left, which together are exact to 2^-17. Sums are float32, in an order of the row alone.
#pragma once

#include "cuda/kernels/attention.h"
#include "cuda/kernels/codes.h"
#include "cuda/kernels/pieces.h"

#include <cmath>
#include <cstdint>
#include <limits>

namespace thermocline::cuda {

/// Grid: rows, groups of heads; kMostThreads; kSharedBytes. in.parts is 1.
template <int kSpan>
struct AttentionTiles {
    static constexpr const char* kName = "AttentionTiles";
    static constexpr int kWarps = 8;
    static constexpr int kMostThreads = kWarps * kWarp;
    static constexpr int kKeys = 32;               // of a tile
    static constexpr int kWide = kWarps * kSpan;   // channels with those that fill up; kSpan of a warp
    static constexpr int kSteps = kSpan / 16;      // products along a warp's channels
    static constexpr int kStride = kWide / 2 + 4;  // words of a key: rows fall into different banks
    static constexpr int kScoreStride = kKeys + 8, kWeightStride = kKeys / 2 + 4;  // the same

    // Where things lie in shared memory.
    static constexpr int64_t kRowsAt = int64_t{kKeys} * kStride * 4;
    static constexpr int64_t kScoresAt = kRowsAt + kKeyRows * int64_t{sizeof(std::byte*)};
    static constexpr int64_t kWeightsAt = kScoresAt + int64_t{kWarps} * kHeadGroup * kScoreStride * 4;
    static constexpr int64_t kFactorsAt = kWeightsAt + int64_t{2} * kHeadGroup * kWeightStride * 4;
    static constexpr int64_t kSharedBytes = kFactorsAt + kHeadGroup * 4;

    AttentionInput in;

    /// What a lane holds: with g = lane / 4 and c = lane % 4, heads g and g + 8.
    struct Own {
        SplitPair q[kSteps][4];   // operand a of the products with keys
        float sum[kSteps][2][4];  // of values: even channels, odd channels of 16
        float maximum, weight;    // of head thread / 16
    };

    template <typename Thread>
    GPU_CODE void operator()(Thread& t) const {
        const int first_head = static_cast<int>(t.block_y()) * kHeadGroup;
        const RowKeys keys(in, t.block());
        auto rows = t.template shared<const std::byte*>(kRowsAt, kKeyRows);
        Own own = {{}, {}, -std::numeric_limits<float>::max(), 0.0f};
        load_queries(t, first_head, own);
        for (int first = 0; first < keys.count(); first += kKeys) {
            const int ahead = first % kKeyRows;
            t.sync();
            if (ahead == 0) {
                for (int i = t.id(); i < kKeyRows && first + i < keys.count(); i += t.threads())
                    rows.set(i, keys.find(first + i));
                t.sync();
            }
            const int n = keys.count() - first < kKeys ? keys.count() - first : kKeys;
            load_tile(t, keys, first, n, ahead);
            t.sync();
            multiply_keys(t, own);
            t.sync();
            weigh(t, n, own);
            t.sync();
            add_values(t, own);
        }
        finish(t, first_head, own);
    }

    template <typename Thread>
    GPU_CODE void load_queries(Thread& t, int first_head, Own& own) const {
        const int g = t.lane() / 4, c = t.lane() % 4;
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int head = first_head + g + i % 2 * 8;
                const int channel = t.warp() * kSpan + step * 16 + 2 * c + i / 2 * 8;
                const bool there = head < in.heads && channel < in.width;
                const float* from = in.q + (t.block() * in.heads + head) * in.width + channel;
                own.q[step][i] = SplitPair::of(there ? from[0] : 0.0f, there ? from[1] : 0.0f);
            }
    }

    template <typename Thread>
    GPU_CODE void load_tile(Thread& t, const RowKeys& keys, int first, int n, int ahead) const {
        const auto rows = t.template shared<const std::byte*>(kRowsAt, kKeyRows);
        auto tile = t.template shared<uint32_t>(0, kKeys * kStride);
        for (int i = t.warp(); i < kKeys; i += kWarps)
            for (int c = 4 * t.lane(); c < kWide; c += 4 * kWarp) {
                Four four = {};
                if (i < n) four = keys.channels(first + i, rows[ahead + i], c);
                const TwoWords words = {{bf16_pair(four.x[0], four.x[1]), bf16_pair(four.x[2], four.x[3])}};
                tile.template set_as<TwoWords>(i * kStride + c / 2, words);
            }
    }

    /// Scores over the warp's channels.
    template <typename Thread>
    GPU_CODE void multiply_keys(Thread& t, const Own& own) const {
        const auto tile = t.template shared<uint32_t>(0, kKeys * kStride);
        auto scores = t.template shared<float>(kScoresAt, kWarps * kHeadGroup * kScoreStride);
        const int g = t.lane() / 4, c = t.lane() % 4;
#pragma unroll
        for (int eight = 0; eight < kKeys / 8; ++eight) {
            float d[4] = {};
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                const int at = (eight * 8 + g) * kStride + (t.warp() * kSpan + step * 16) / 2 + c;
                const uint32_t b[2] = {tile[at], tile[at + 4]};
                const SplitPair(&q)[4] = own.q[step];
                t.mma(d, {q[0].high, q[1].high, q[2].high, q[3].high}, b);
                t.mma(d, {q[0].low, q[1].low, q[2].low, q[3].low}, b);
            }
            const int at = (t.warp() * kHeadGroup + g) * kScoreStride + eight * 8 + 2 * c;
            scores.template set_as<Two>(at, {{d[0], d[1]}});
            scores.template set_as<Two>(at + 8 * kScoreStride, {{d[2], d[3]}});
        }
    }

    /// Thread i: keys 2 (i % 16) and the next of head i / 16. Leaves weights, and the factor for earlier sums.
    template <typename Thread>
    GPU_CODE void weigh(Thread& t, int n, Own& own) const {
        const auto scores = t.template shared<float>(kScoresAt, kWarps * kHeadGroup * kScoreStride);
        auto weights = t.template shared<uint32_t>(kWeightsAt, 2 * kHeadGroup * kWeightStride);
        auto factors = t.template shared<float>(kFactorsAt, kHeadGroup);
        const int head = t.id() / 16, pair = t.id() % 16;
        float score[2] = {};
#pragma unroll
        for (int warp = 0; warp < kWarps; ++warp) {
            const Two two = scores.template as<Two>((warp * kHeadGroup + head) * kScoreStride + 2 * pair);
            score[0] += two.x[0];
            score[1] += two.x[1];
        }
        float top = own.maximum;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            score[i] = 2 * pair + i < n ? in.scale * score[i] : -std::numeric_limits<float>::infinity();
            top = fmaxf(top, score[i]);
        }
        for (int mask = 8; mask > 0; mask /= 2) top = fmaxf(top, t.shuffle_xor(top, mask));
        const float shrink = expf(own.maximum - top), w0 = expf(score[0] - top), w1 = expf(score[1] - top);
        float sum = w0 + w1;
        for (int mask = 8; mask > 0; mask /= 2) sum += t.shuffle_xor(sum, mask);
        own.maximum = top;
        own.weight = own.weight * shrink + sum;
        const SplitPair split = SplitPair::of(w0, w1);
        weights.set(head * kWeightStride + pair, split.high);
        weights.set((kHeadGroup + head) * kWeightStride + pair, split.low);
        if (pair == 0) factors.set(head, shrink);
    }

    template <typename Thread>
    GPU_CODE void add_values(Thread& t, Own& own) const {
        const auto tile = t.template shared<uint32_t>(0, kKeys * kStride);
        const auto weights = t.template shared<uint32_t>(kWeightsAt, 2 * kHeadGroup * kWeightStride);
        scale_sums(t, own);
        const int g = t.lane() / 4, c = t.lane() % 4;
#pragma unroll
        for (int sixteen = 0; sixteen < kKeys / 16; ++sixteen) {
            uint32_t a[2][4];
#pragma unroll
            for (int i = 0; i < 8; ++i)
                a[i / 4][i % 4] =
                    weights[(i / 4 * kHeadGroup + g + i % 2 * 8) * kWeightStride + sixteen * 8 + c + i % 4 / 2 * 4];
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                // A word has two channels of one key, the operand two keys of one channel: number g of the even
                // product is channel 2g, of the odd one channel 2g + 1.
                const int at = (sixteen * 16 + 2 * c) * kStride + (t.warp() * kSpan + step * 16) / 2 + g;
                const uint32_t key0 = tile[at], key1 = tile[at + kStride];
                const uint32_t key8 = tile[at + 8 * kStride], key9 = tile[at + 9 * kStride];
                const uint32_t even[2] = {t.permute_bytes(key0, key1, 0x5410), t.permute_bytes(key8, key9, 0x5410)};
                const uint32_t odd[2] = {t.permute_bytes(key0, key1, 0x7632), t.permute_bytes(key8, key9, 0x7632)};
#pragma unroll
                for (int piece = 0; piece < 2; ++piece) {
                    t.mma(own.sum[step][0], a[piece], even);
                    t.mma(own.sum[step][1], a[piece], odd);
                }
            }
        }
    }

    /// By the factors of the lane's two heads.
    template <typename Thread>
    GPU_CODE void scale_sums(Thread& t, Own& own) const {
        const auto factors = t.template shared<float>(kFactorsAt, kHeadGroup);
        const float upper = factors[t.lane() / 4], lower = factors[t.lane() / 4 + 8];
#pragma unroll
        for (int step = 0; step < kSteps; ++step)
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                own.sum[step][0][i] *= i < 2 ? upper : lower;
                own.sum[step][1][i] *= i < 2 ? upper : lower;
            }
    }

    template <typename Thread>
    GPU_CODE void finish(Thread& t, int first_head, Own& own) const {
        auto factors = t.template shared<float>(kFactorsAt, kHeadGroup);
        t.sync();
        const int own_head = first_head + t.id() / 16;
        if (t.id() % 16 == 0 && own_head < in.heads)
            factors.set(t.id() / 16, with_sink(own.maximum, own.weight, in.sinks[own_head]));
        t.sync();
        scale_sums(t, own);
        const int g = t.lane() / 4, c = t.lane() % 4;
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            const int channel = t.warp() * kSpan + step * 16 + 4 * c;
            const float(&even)[4] = own.sum[step][0];
            const float(&odd)[4] = own.sum[step][1];
            float* out = in.out + (t.block() * in.heads + first_head + g) * in.width + channel;
            if (channel >= in.width) continue;
            if (first_head + g < in.heads) store_four(out, {{even[0], odd[0], even[1], odd[1]}});
            if (first_head + g + 8 < in.heads) store_four(out + 8 * in.width, {{even[2], odd[2], even[3], odd[3]}});
        }
    }
};

}  // namespace thermocline::cuda
