// The acceptance vectors of weight-formats.md appendix B: pseudo-random blocks of every self-contained format.
#include "src/quant/blocks.h"

#include "src/quant/reference.h"
#include "src/quant/scalar.h"

#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <string>
#include <vector>

namespace thermocline::quant {
namespace {

/// The bytes that appendix B builds its blocks from.
std::vector<uint8_t> generated_bytes(int n) {
    std::vector<uint8_t> bytes;
    uint32_t x = 1;
    for (int i = 0; i < n; ++i) {
        x = (x * 1103515245u + 12345u) & 0x7fffffffu;
        bytes.push_back(static_cast<uint8_t>((x >> 16) & 255));
    }
    return bytes;
}

struct Vector {
    Format format;
    int d_at, min_at;  // offsets of the f16 fields d (:= 1.0) and m or dmin (:= 0.5), -1: none
    double first[8];
    double sum, weighted_sum;
};

// clang-format off
constexpr Vector kVectors[] = {
    {Format::kQ4_0, 0, -1, {-7, 3, 3, 3, -6, 3, -4, -2}, 24, 460},
    {Format::kQ4_1, 0, 2, {11.5, 11.5, 2.5, 11.5, 4.5, 6.5, 13.5, 15.5}, 301, 4644},
    {Format::kQ5_0, 0, -1, {2, -5, -12, -10, -3, -1, -4, 12}, 40, 1403},
    {Format::kQ5_1, 0, 2, {20.5, 22.5, 13.5, 31.5, 12.5, 12.5, 17.5, 7.5}, 616, 9716},
    {Format::kQ8_0, 0, -1, {-127, 107, 75, -5, -30, -5, 84, -10}, 406, 8775},
    {Format::kQ2_K, 80, 82, {0, 12, 0, 6, 6, 6, 12, 12}, 2307, 302913},
    {Format::kQ3_K, 108, -1, {-20, -20, 30, 30, 20, 10, -30, 0}, -531, -109258},
    {Format::kQ4_K, 0, 2, {1, 155, 1, 144, 56, 12, 155, 67}, 78144, 10886685},
    {Format::kQ5_K, 0, 2, {276, 188, 265, 78, 122, 23, 276, 232}, 166937, 22488186},
    {Format::kQ6_K, 208, -1, {-576, 192, 1440, -1056, -1056, 2016, 2880, 480}, 14174, 2240225},
    {Format::kTQ1_0, 52, -1, {1, 0, 0, 0, -1, 1, 1, 1}, 10, 725},
    {Format::kTQ2_0, 64, -1, {1, 1, 0, 2, 2, 2, 1, 2}, 156, 18263},
    {Format::kIQ2_XXS, 0, -1, {31, -31, 166.625, 31, 31, -166.625, -166.625, -31}, -623, -31177.5},
    {Format::kIQ2_XS, 0, -1, {-17, 53.125, -91.375, 17, -91.375, -17, 91.375, 53.125}, -963.375, -2858.875},
    {Format::kIQ2_S, 0, -1, {-40.625, -69.875, 13, 40.625, -40.625, 40.625, 13, 13}, -1881.75, -223062.375},
    {Format::kIQ3_XXS, 0, -1, {279, 480.5, 217, -155, -217, -31, -93, 155}, 1245.5, -13096.5},
    {Format::kIQ3_S, 0, -1, {147, -21, -63, 63, 21, 231, 315, -21}, 284, 126916},
    {Format::kIQ1_S, 0, -1, {1.875, 1.875, 16.875, -13.125, 1.875, -13.125, 1.875, 1.875}, 141, 17195},
    {Format::kIQ1_M, -1, -1, {4.375, -0.625, -5.625, 4.375, -5.625, -0.625, -5.625, -0.625}, 165, 20809},
    {Format::kIQ4_NL, 0, -1, {-104, 38, 38, 38, -83, 38, -49, -22}, 394, 7528},
    {Format::kIQ4_XS, 0, -1, {245, 110, -345, -565, -265, -265, 520, 50}, 13122, -204893},
    {Format::kMxfp4Block, -1, -1, {-4, 0.5, -1.5, -1.5, -1.5, 1, -1.5, 2}, -17.5, -266.5},
    {Format::kNvfp4Block, -1, -1, {-5.25, -5.25, 3.5, -5.25, 7, 14, -10.5, -21}, -2485.916992, -33236.70215},
    {Format::kQ1_0, 0, -1, {1, -1, -1, -1, -1, -1, -1, 1}, 22, 1326},
    {Format::kQ2_0, 0, -1, {0, -1, -1, 1, 2, 1, 1, 0}, 48, 1442},
};
// clang-format on

void put16(std::vector<uint8_t>& bytes, int at, uint16_t value) {
    std::memcpy(&bytes[static_cast<size_t>(at)], &value, 2);
}

std::vector<uint8_t> block_of(const Vector& vector) {
    std::vector<uint8_t> bytes = generated_bytes(traits(vector.format).block_bytes);
    if (vector.d_at >= 0) put16(bytes, vector.d_at, 0x3c00);
    if (vector.min_at >= 0) put16(bytes, vector.min_at, 0x3800);
    if (vector.format == Format::kMxfp4Block) bytes[0] = 127;
    if (vector.format == Format::kNvfp4Block) {
        for (size_t i = 0; i < 4; ++i) bytes[i] = (bytes[i] & 0x7f) == 0x7f ? 0x7e : bytes[i] & 0x7f;
    }
    if (vector.format == Format::kIQ1_M) {
        const uint8_t top_nibbles[4] = {0, 0, 0xc, 0x3};
        for (size_t i = 0; i < 4; ++i) {
            bytes[49 + 2 * i] = static_cast<uint8_t>((bytes[49 + 2 * i] & 15) | top_nibbles[i] << 4);
        }
    }
    return bytes;
}

/// Decodes one row of blocks that begins at an odd address.
std::vector<float> decode_unaligned(Format format, const std::vector<uint8_t>& bytes, float multiplier = 1.0f) {
    std::vector<std::byte> memory(bytes.size() + 1);
    const size_t shift = reinterpret_cast<uintptr_t>(memory.data()) % 2 == 0 ? 1 : 0;
    std::memcpy(memory.data() + shift, bytes.data(), bytes.size());
    Matrix m;
    m.format = format;
    m.rows = 1;
    m.cols = static_cast<int64_t>(bytes.size()) / traits(format).block_bytes * traits(format).block;
    m.data = memory.data() + shift;
    m.row_bytes = static_cast<int64_t>(bytes.size());
    m.multiplier = multiplier;
    return decode_matrix(m);
}

TEST(Blocks, GeneratorMatchesTheText) {
    const std::vector<uint8_t> expected = {0xc6, 0x7e, 0x81, 0x6b, 0x4b, 0xfb, 0xe2, 0xfb,
                                           0x54, 0xf6, 0xbd, 0xdf, 0x7c, 0x1c, 0xe1, 0x87};
    EXPECT_EQ(generated_bytes(16), expected);
}

TEST(Blocks, AcceptanceVectors) {
    for (const Vector& vector : kVectors) {
        const std::string name(traits(vector.format).name);
        const std::vector<float> y = decode_unaligned(vector.format, block_of(vector));
        ASSERT_EQ(static_cast<int>(y.size()), traits(vector.format).block);
        double sum = 0, weighted_sum = 0;
        for (size_t i = 0; i < y.size(); ++i) {
            if (i < 8) {
                EXPECT_EQ(y[i], vector.first[i]) << name << " " << i;
            }
            sum += y[i];
            weighted_sum += static_cast<double>(i) * y[i];
        }
        EXPECT_NEAR(sum, vector.sum, 1e-9 * std::fabs(vector.sum)) << name;
        EXPECT_NEAR(weighted_sum, vector.weighted_sum, 1e-9 * std::fabs(vector.weighted_sum)) << name;
    }
}

TEST(Blocks, VectorsCoverEveryBlockFormat) {
    int covered = 0;
    for (int i = static_cast<int>(Format::kQ4_0); i < static_cast<int>(Format::kCount); ++i) {
        for (const Vector& vector : kVectors) covered += vector.format == static_cast<Format>(i);
    }
    EXPECT_EQ(covered + 1, static_cast<int>(Format::kCount) - static_cast<int>(Format::kQ4_0));  // + F8_E4M3_B128
}

TEST(Blocks, Fp8Block128) {
    std::vector<uint8_t> bytes = generated_bytes(129);
    bytes[0] = 127;
    for (uint8_t& byte : bytes) {
        if ((byte & 0x7f) == 0x7f && &byte != bytes.data()) byte = 0x7e;
    }
    const std::vector<float> y = decode_unaligned(Format::kE4M3Block128, bytes);
    ASSERT_EQ(y.size(), 128u);
    for (size_t i = 0; i < 128; ++i) {
        const int q = bytes[i + 1], e = (q >> 3) & 15, m = q & 7;
        const double value = e == 0 ? std::ldexp(m, -9) : std::ldexp(1 + m / 8.0, e - 7);
        EXPECT_EQ(y[i], q & 0x80 ? -value : value) << i;
    }
    bytes[0] = 130;
    EXPECT_EQ(decode_unaligned(Format::kE4M3Block128, bytes)[5], 8 * y[5]);
}

TEST(Blocks, SecondBlockFollowsTheFirst) {
    for (const Vector& vector : kVectors) {
        const std::vector<uint8_t> block = block_of(vector);
        std::vector<uint8_t> row(block.size(), 0);
        row.insert(row.end(), block.begin(), block.end());
        const std::vector<float> y = decode_unaligned(vector.format, row);
        const size_t size = static_cast<size_t>(traits(vector.format).block);
        ASSERT_EQ(y.size(), 2 * size);
        for (size_t i = 0; i < 8; ++i) EXPECT_EQ(y[size + i], vector.first[i]) << traits(vector.format).name;
    }
}

TEST(Blocks, Nvfp4ScalesThatMeanZero) {
    std::vector<uint8_t> bytes(36, 0x77);  // every code 7: the value 6
    bytes[0] = 0x00;
    bytes[1] = 0x7f;
    bytes[2] = 0x38;
    bytes[3] = 0x7e;
    const std::vector<float> y = decode_unaligned(Format::kNvfp4Block, bytes, 0.5f);
    EXPECT_EQ(y[0], 0.0f);
    EXPECT_EQ(y[16], 0.0f);
    EXPECT_EQ(y[32], 3.0f);
    EXPECT_EQ(y[48], 6.0f * 448.0f * 0.5f);
}

TEST(Blocks, SubnormalF16ScalesCount) {
    std::vector<uint8_t> bytes(34, 1);
    put16(bytes, 0, 0x0001);  // 2^-24
    EXPECT_EQ(decode_unaligned(Format::kQ8_0, bytes)[0], std::ldexp(1.0f, -24));
}

TEST(Blocks, Mxfp4ScaleCodesAtTheEnds) {
    std::vector<uint8_t> bytes(17, 0x22);  // every code 2: the value 1
    bytes[0] = 0;
    EXPECT_EQ(decode_unaligned(Format::kMxfp4Block, bytes)[0], std::ldexp(1.0f, -127));
    bytes[0] = 254;
    EXPECT_EQ(decode_unaligned(Format::kMxfp4Block, bytes)[0], std::ldexp(1.0f, 127));
    bytes[0] = 255;
    EXPECT_TRUE(std::isnan(decode_unaligned(Format::kMxfp4Block, bytes)[0]));
}

TEST(Blocks, FieldsReadLittleEndian) {
    const uint8_t bytes[4] = {0x78, 0x56, 0x34, 0x12};
    EXPECT_EQ(uint16_t{load_unaligned<U16>(bytes)}, 0x5678);
    EXPECT_EQ(uint32_t{load_unaligned<U32>(bytes)}, 0x12345678u);
    EXPECT_EQ(uint32_t{U32::of(0xfedcba98u)}, 0xfedcba98u);
}

}  // namespace
}  // namespace thermocline::quant
