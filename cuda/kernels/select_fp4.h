// Index scores where keys and queries are both held in FP4, as they were trained, by the matrix instruction of the
// SM120 family that takes them as they are with their scales: mma.m16n8k64 of kind mxf4. TileScores of select.h does
// the same on all cards; variants.h says when this takes its place.
#pragma once

#include "cuda/kernels/select.h"
#include "src/quant/scalar.h"

namespace thermocline::cuda {

/// As TileScores, for KvFormat::kFp4 and widths that are multiples of 64. Queries that FP4 does not hold exactly are
/// rounded to it.
struct Fp4Scores {
    static constexpr const char* kName = "Fp4Scores";
    static constexpr int kSteps = kMaxIndexWidth / 64;

    GPU_CODE static constexpr int sets(int heads) { return head_sets(heads); }
    /// Of a key: its codes, its scales, and some that keep keys of a warp in different banks.
    GPU_CODE static constexpr int words(int width) { return width / 8 + 4; }
    GPU_CODE static constexpr int64_t tile_bytes(int width) { return int64_t{kIndexTile} * words(width) * 4; }
    GPU_CODE static constexpr int64_t query_bytes(int, int) { return 0; }

    template <typename Thread>
    GPU_CODE Fp4Scores(Thread& t, const IndexInput& in_, int64_t) : in(in_), gates(t, in_) {
        const int g = t.lane() / 4, c = t.lane() % 4, first = t.warp() % kHeadSets * 16;
#pragma unroll
        for (int step = 0; step < kSteps; ++step) {
            uint32_t scale[2] = {};
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int half = i % 2, head = first + g + 8 * half, channel = step * 64 + 8 * c + i / 2 * 32;
                const bool there = head < in.heads && channel < in.width;
                const float* from = in.q + (t.block() * in.heads + head) * in.width + channel;
                float number[8], most = 0.0f;
#pragma unroll
                for (int j = 0; j < 8; ++j) {
                    number[j] = there ? from[j] : 0.0f;
                    most = fmaxf(most, fabsf(number[j]));
                }
                for (int mask = 1; mask < 4; mask *= 2) most = fmaxf(most, t.shuffle_xor(most, mask));
                const int exponent = quant::fp4_scale_exponent(most);
                q[step][i] = 0;
#pragma unroll
                for (int j = 0; j < 8; ++j)
                    q[step][i] |= uint32_t{quant::float_to_e2m1(number[j] * quant::pow2(-exponent))} << 4 * j;
                scale[half] |= uint32_t{quant::exponent_to_e8m0(exponent)} << 8 * (i / 2);
            }
            scales[step] = c % 2 == 0 ? scale[0] : scale[1];
        }
    }

    template <typename Thread>
    GPU_CODE void load_key(Thread& t, int i, const std::byte* row) const {
        auto tile = t.template shared<uint32_t>(0, kIndexTile * words(in.width));
        for (int word = t.lane(); word < in.width / 8 + 1; word += kWarp)
            tile.set(i * words(in.width) + word, load_at<uint32_t>(row + 4 * word));
    }

    template <typename Thread, typename Scores>
    GPU_CODE void score(Thread& t, Scores& scores) const {
        const auto tile = t.template shared<uint32_t>(0, kIndexTile * words(in.width));
        const int c = t.lane() % 4;
        score_by_tiles(t, in, gates, scores, [&](int entry, float(&d)[4]) {
            const int key = entry * words(in.width);
            const uint32_t key_scales = tile[key + in.width / 8];
#pragma unroll
            for (int step = 0; step < kSteps; ++step) {
                if (step * 64 >= in.width) break;
                const uint32_t b[2] = {tile[key + step * 8 + c], tile[key + step * 8 + 4 + c]};
                t.mma_mxf4(d, q[step], b, scales[step], key_scales >> 16 * step);
            }
        });
    }

    const IndexInput& in;
    uint32_t q[kSteps][4], scales[kSteps];
    TwoGates gates;
};

}  // namespace thermocline::cuda
