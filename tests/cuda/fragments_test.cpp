// The matrix instruction that all kernels are made of: its emulation against the tables of the PTX ISA, written down
// here a second time. Those of single cards: variants_test.cpp.
#include "cuda/emulation/block.h"
#include "cuda/emulation/thread.h"
#include "src/quant/scalar.h"

#include <gtest/gtest.h>
#include <random>

namespace thermocline::cuda {
namespace {

/// Matrices of one m16n8k16.
struct Fragments {
    float a[16][16], b[16][8], d[16][8];
};

// PTX ISA, "Matrix Fragments for mma.m16n8k16 with floating point type": with groupID = lane >> 2 and
// threadID_in_group = lane % 4,
//   A, .bf16, a_i, i = 0..7: row = groupID for 0 <= i < 2 || 4 <= i < 6, groupID + 8 otherwise;
//                            col = threadID_in_group * 2 + (i & 1), + 8 for i >= 4
//   B, .bf16, b_i, i = 0..3: row = threadID_in_group * 2 + (i & 1), + 8 for i >= 2; col = groupID
//   C, D, .f32, c_i, i = 0..3: row = groupID for i < 2, groupID + 8 otherwise; col = threadID_in_group * 2 + (i & 1)
void play_lane(Fragments& f, emulation::Thread& t) {
    const int group = t.lane() >> 2, in_group = t.lane() % 4;
    const auto code = [](float x, int i) { return static_cast<uint32_t>(quant::float_to_bf16(x)) << 16 * (i % 2); };
    uint32_t a[4] = {}, b[2] = {};
    for (int i = 0; i < 8; ++i) {
        const bool upper = i < 2 || (i >= 4 && i < 6);
        a[i / 2] |= code(f.a[upper ? group : group + 8][in_group * 2 + (i & 1) + (i >= 4 ? 8 : 0)], i);
    }
    for (int i = 0; i < 4; ++i) b[i / 2] |= code(f.b[in_group * 2 + (i & 1) + (i >= 2 ? 8 : 0)][group], i);
    float d[4];
    const auto at = [&](int i) -> float& { return f.d[i < 2 ? group : group + 8][in_group * 2 + (i & 1)]; };
    for (int i = 0; i < 4; ++i) d[i] = at(i);
    t.mma(d, a, b);
    for (int i = 0; i < 4; ++i) at(i) = d[i];
}

TEST(Fragments, TheEmulatedProductFollowsTheTables) {
    std::mt19937 random(6);
    Fragments f{};
    const auto fill = [&](auto& rows) {  // small integers: every sum is exact
        for (auto& row : rows)
            for (float& one : row) one = static_cast<float>(static_cast<int>(random() % 65) - 32);
    };
    fill(f.a);
    fill(f.b);
    fill(f.d);
    const Fragments before = f;
    emulation::BlockRunner runner;
    runner.run(
        "mma",
        [](const void* given, emulation::Thread& t) {
            play_lane(*const_cast<Fragments*>(static_cast<const Fragments*>(given)), t);
        },
        &f, {.threads = kWarp}, 0, 0);
    for (int row = 0; row < 16; ++row)
        for (int col = 0; col < 8; ++col) {
            float sum = before.d[row][col];
            for (int k = 0; k < 16; ++k) sum += f.a[row][k] * f.b[k][col];
            EXPECT_EQ(f.d[row][col], sum) << row << ", " << col;
        }
}

}  // namespace
}  // namespace thermocline::cuda
