// Instructions that no machine at hand has: their emulation against the tables of the PTX ISA, written down here a
// second time, and what a start-up trial says of the kernels that use them.
#include "cuda/variants.h"

#include "cuda/emulation/block.h"
#include "cuda/emulation/device.h"
#include "cuda/emulation/thread.h"
#include "src/quant/scalar.h"

#include <array>
#include <cmath>
#include <gtest/gtest.h>
#include <limits>
#include <random>

namespace thermocline::cuda {
namespace {

/// Matrices of one m16n8k32, as codes.
struct Fragments {
    uint8_t a[16][32], b[32][8], row_scale[16], col_scale[8];
    float d[16][8];
};

// PTX ISA, "Matrix Fragments for mma.m16n8k32": with groupID = lane >> 2 and threadID_in_group = lane % 4,
//   A, 8-bit elements a_i, i = 0..15: row = groupID for 0 <= i < 4 || 8 <= i < 12, groupID + 8 otherwise;
//                                     col = threadID_in_group * 4 + (i & 3), + 16 for i >= 8
//   B, b_i, i = 0..7: row = threadID_in_group * 4 + (i & 3), + 16 for i >= 4; col = groupID
//   C, D, c_i, i = 0..3: row = groupID for i < 2, groupID + 8 otherwise; col = threadID_in_group * 2 + (i & 1)
// Block scaling with scale_vec::1X, byte and thread ids 0: thread 4 g gives the scale of row g, thread 4 g + 1 that of
// row g + 8, thread 4 g that of column g.
void play_lane(Fragments& f, emulation::Thread& t) {
    const int group = t.lane() >> 2, in_group = t.lane() % 4;
    uint32_t a[4] = {}, b[2] = {};
    for (int i = 0; i < 16; ++i) {
        const bool upper = i < 4 || (i >= 8 && i < 12);
        const int row = upper ? group : group + 8, col = in_group * 4 + (i & 3) + (i >= 8 ? 16 : 0);
        a[i / 4] |= static_cast<uint32_t>(f.a[row][col] << 2) << 8 * (i % 4);
    }
    for (int i = 0; i < 8; ++i) {
        const int row = in_group * 4 + (i & 3) + (i >= 4 ? 16 : 0);
        b[i / 4] |= static_cast<uint32_t>(f.b[row][group]) << 8 * (i % 4);
    }
    // Lanes that the tables do not name give nonsense.
    const uint32_t a_scale = in_group == 0 ? f.row_scale[group] : in_group == 1 ? f.row_scale[group + 8] : 77;
    const uint32_t b_scale = in_group == 0 ? f.col_scale[group] : 99;
    float d[4];
    const auto at = [&](int i) -> float& { return f.d[i < 2 ? group : group + 8][in_group * 2 + (i & 1)]; };
    for (int i = 0; i < 4; ++i) d[i] = at(i);
    t.mma_mx(d, a, b, a_scale, b_scale);
    for (int i = 0; i < 4; ++i) at(i) = d[i];
}

TEST(Variants, TheEmulatedInstructionFollowsTheTables) {
    std::mt19937 random(3);
    Fragments f{}, before;
    for (auto& row : f.a)
        for (uint8_t& one : row) one = static_cast<uint8_t>(random() % 16);
    for (auto& row : f.b)
        for (uint8_t& one : row) one = static_cast<uint8_t>((random() % 2 << 7) | (random() % 0x70));
    for (uint8_t& one : f.row_scale) one = static_cast<uint8_t>(120 + random() % 15);
    for (uint8_t& one : f.col_scale) one = static_cast<uint8_t>(120 + random() % 15);
    for (auto& row : f.d)
        for (float& one : row) one = static_cast<float>(random() % 100);
    before = f;
    emulation::BlockRunner runner;
    const Fragments* members = &f;
    runner.run(
        "mma_mx",
        [](const void* given, emulation::Thread& t) {
            play_lane(*const_cast<Fragments*>(static_cast<const Fragments*>(given)), t);
        },
        members, {.threads = kWarp}, 0, 0);
    for (int row = 0; row < 16; ++row)
        for (int col = 0; col < 8; ++col) {
            double sum = 0, size = 1;
            for (int k = 0; k < 32; ++k) {
                const double term = double{quant::e2m1_to_float(f.a[row][k])} * quant::e4m3_to_float(f.b[k][col]);
                sum += term;
                size += std::abs(term);
            }
            const double scale = std::exp2(f.row_scale[row] - 127) * std::exp2(f.col_scale[col] - 127);
            EXPECT_NEAR(f.d[row][col], before.d[row][col] + sum * scale, 1e-6 * size * std::max(scale, 1.0))
                << row << ", " << col;
        }
}

/// Matrices of one m16n8k64, as codes, with two scales for each row and column.
struct Fp4Fragments {
    uint8_t a[16][64], b[64][8], row_scale[16][2], col_scale[8][2];
    float d[16][8];
};

// PTX ISA, "Matrix Fragments for mma.m16n8k64" with .e2m1 of 4 bits: with groupID and threadID_in_group as above,
//   A, a_i, i = 0..31: row = groupID for 0 <= i < 8 || 16 <= i < 24, groupID + 8 otherwise;
//                      col = threadID_in_group * 8 + (i & 7), + 32 for i >= 16
//   B, b_i, i = 0..15: row = threadID_in_group * 8 + (i & 7), + 32 for i >= 8; col = groupID
//   C, D as above.
// Block scaling with scale_vec::2X, byte and thread ids 0: bytes 0 and 1 of the same threads' words, byte j for columns
// 32 j .. 32 j + 31 of A and rows of B.
void play_lane(Fp4Fragments& f, emulation::Thread& t) {
    const int group = t.lane() >> 2, in_group = t.lane() % 4;
    uint32_t a[4] = {}, b[2] = {};
    for (int i = 0; i < 32; ++i) {
        const bool upper = i < 8 || (i >= 16 && i < 24);
        const int row = upper ? group : group + 8, col = in_group * 8 + (i & 7) + (i >= 16 ? 32 : 0);
        a[i / 8] |= uint32_t{f.a[row][col]} << 4 * (i % 8);
    }
    for (int i = 0; i < 16; ++i) {
        const int row = in_group * 8 + (i & 7) + (i >= 8 ? 32 : 0);
        b[i / 8] |= uint32_t{f.b[row][group]} << 4 * (i % 8);
    }
    const auto word = [](const uint8_t(&scales)[2]) { return 0x55550000u | scales[0] | uint32_t{scales[1]} << 8; };
    const uint32_t a_scales = in_group == 0   ? word(f.row_scale[group])
                              : in_group == 1 ? word(f.row_scale[group + 8])
                                              : 0x77777777;
    const uint32_t b_scales = in_group == 0 ? word(f.col_scale[group]) : 0x99999999;
    float d[4];
    const auto at = [&](int i) -> float& { return f.d[i < 2 ? group : group + 8][in_group * 2 + (i & 1)]; };
    for (int i = 0; i < 4; ++i) d[i] = at(i);
    t.mma_mxf4(d, a, b, a_scales, b_scales);
    for (int i = 0; i < 4; ++i) at(i) = d[i];
}

TEST(Variants, TheEmulatedInstructionOfFourBitsFollowsTheTables) {
    std::mt19937 random(4);
    Fp4Fragments f{}, before;
    for (auto& row : f.a)
        for (uint8_t& one : row) one = static_cast<uint8_t>(random() % 16);
    for (auto& row : f.b)
        for (uint8_t& one : row) one = static_cast<uint8_t>(random() % 16);
    for (auto& scales : f.row_scale)
        for (uint8_t& one : scales) one = static_cast<uint8_t>(120 + random() % 15);
    for (auto& scales : f.col_scale)
        for (uint8_t& one : scales) one = static_cast<uint8_t>(120 + random() % 15);
    for (auto& row : f.d)
        for (float& one : row) one = static_cast<float>(random() % 100);
    before = f;
    emulation::BlockRunner runner;
    runner.run(
        "mma_mxf4",
        [](const void* given, emulation::Thread& t) {
            play_lane(*const_cast<Fp4Fragments*>(static_cast<const Fp4Fragments*>(given)), t);
        },
        &f, {.threads = kWarp}, 0, 0);
    for (int row = 0; row < 16; ++row)
        for (int col = 0; col < 8; ++col) {
            double sum = before.d[row][col], size = 100;
            for (int k = 0; k < 64; ++k) {
                const double scale =
                    std::exp2(f.row_scale[row][k / 32] - 127) * std::exp2(f.col_scale[col][k / 32] - 127);
                const double term =
                    double{quant::e2m1_to_float(f.a[row][k])} * quant::e2m1_to_float(f.b[k][col]) * scale;
                sum += term;
                size += std::abs(term);
            }
            EXPECT_NEAR(f.d[row][col], sum, 1e-6 * size) << row << ", " << col;
        }
}

TEST(Variants, AreUsedWhereTheyGiveWhatTheirTwinsGive) {
    const auto family = emulation::open({.compute_major = 12}), other = emulation::open({.compute_major = 9});
    EXPECT_EQ(try_variants(*family), (Variants{true, true, true}));
    EXPECT_EQ(try_variants(*other), Variants());
}

TEST(Variants, ADifferenceIsNamed) {
    const float expected[] = {1.0f, -2.0f, 0.0f}, sizes[] = {10.0f, 10.0f, 0.0f};
    EXPECT_EQ(difference(expected, expected, sizes, 3), "");
    const float close[] = {1.0005f, -2.0005f, 0.0f};
    EXPECT_EQ(difference(close, expected, sizes, 3), "");
    const float far[] = {1.0f, -2.01f, 0.0f};
    EXPECT_NE(difference(far, expected, sizes, 3).find("number 1 of 3"), std::string::npos);
    const float lost[] = {1.0f, -2.0f, std::numeric_limits<float>::quiet_NaN()};
    EXPECT_NE(difference(lost, expected, sizes, 3).find("number 2 of 3"), std::string::npos);
}

}  // namespace
}  // namespace thermocline::cuda
