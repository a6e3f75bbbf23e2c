#include "src/quant/kv_row.h"

#include "src/quant/activation.h"
#include "src/quant/scalar.h"

#include <gtest/gtest.h>
#include <random>
#include <vector>

namespace thermocline::quant {
namespace {

std::vector<float> normal(int64_t n, unsigned seed) {
    std::mt19937 random(seed);
    std::normal_distribution<float> distribution;
    std::vector<float> x(static_cast<size_t>(n));
    for (float& value : x) value = distribution(random);
    return x;
}

/// Encodes to an odd address between guard bytes and decodes again.
std::vector<float> round_trip(KvFormat format, const std::vector<float>& x, int64_t rope) {
    const auto width = static_cast<int64_t>(x.size());
    const int64_t bytes = kv_row_bytes(format, width, rope);
    std::vector<std::byte> memory(static_cast<size_t>(bytes) + 2, std::byte{0xaa});
    encode_kv_row(format, x.data(), width, rope, memory.data() + 1);
    EXPECT_EQ(memory.front(), std::byte{0xaa});
    EXPECT_EQ(memory.back(), std::byte{0xaa});
    std::vector<float> y(x.size());
    decode_kv_row(format, memory.data() + 1, width, rope, y.data());
    return y;
}

TEST(KvRow, SizesOfThePublishedModels) {
    EXPECT_EQ(kv_row_bytes(KvFormat::kF32, 512, 64), 2048);
    EXPECT_EQ(kv_row_bytes(KvFormat::kBF16, 512, 64), 1024);
    EXPECT_EQ(kv_row_bytes(KvFormat::kFp8, 512, 64), 584);
    EXPECT_EQ(kv_row_bytes(KvFormat::kFp4, 128, 64), 68);
    EXPECT_EQ(kv_row_bytes(KvFormat::kFp8, 0, 0), 0);
    EXPECT_DEATH(kv_row_bytes(KvFormat::kFp8, 8, 9), "CHECK");
    EXPECT_DEATH(kv_row_bytes(KvFormat::kFp4, 7, 0), "CHECK");
}

TEST(KvRow, PlainFormatsKeepTheNumbers) {
    std::vector<float> x = normal(77, 1);
    EXPECT_EQ(round_trip(KvFormat::kF32, x, 13), x);
    const std::vector<float> y = round_trip(KvFormat::kBF16, x, 13);
    for (float& value : x) value = round_bf16(value);
    EXPECT_EQ(y, x);
}

TEST(KvRow, Fp8EqualsFakeQuantisation) {
    for (const auto& [width, rope] : {std::pair{512, 64}, {512, 0}, {24, 8}, {100, 4}, {64, 64}, {71, 2}}) {
        std::vector<float> x = normal(width, 2);
        const std::vector<float> y = round_trip(KvFormat::kFp8, x, rope);
        round_e4m3_blocks64(x.data(), width - rope);
        for (int k = width - rope; k < width; ++k) x[static_cast<size_t>(k)] = round_bf16(x[static_cast<size_t>(k)]);
        EXPECT_EQ(y, x) << width << " " << rope;
    }
}

TEST(KvRow, Fp8F32RoundsAsFp8AndKeepsTheRopeChannels) {
    for (const auto& [width, rope] : {std::pair{512, 64}, {71, 2}, {24, 24}}) {
        std::vector<float> x = normal(width, 4);
        const std::vector<float> y = round_trip(KvFormat::kFp8F32, x, rope);
        round_e4m3_blocks64(x.data(), width - rope);
        EXPECT_EQ(y, x) << width << " " << rope;
    }
}

TEST(KvRow, Fp8Layout) {
    std::vector<float> x(512, 0.0f);
    x[0] = 448.0f;   // scale 1 for group 0
    x[1] = 1.0f;     // 0x38
    x[64] = 896.0f;  // scale 2 for group 1
    x[448] = -1.0f;  // rope
    std::vector<std::byte> row(584);
    encode_kv_row(KvFormat::kFp8, x.data(), 512, 64, row.data());
    EXPECT_EQ(row[0], std::byte{0x7e});
    EXPECT_EQ(row[1], std::byte{0x38});
    EXPECT_EQ(row[64], std::byte{0x7e});
    EXPECT_EQ(row[448], std::byte{0x80});
    EXPECT_EQ(row[449], std::byte{0xbf});
    EXPECT_EQ(row[576], std::byte{127});
    EXPECT_EQ(row[577], std::byte{128});
    EXPECT_EQ(row[578], std::byte{127 - 22});  // a group of zeros: the floor of amax
    EXPECT_EQ(row[583], std::byte{0});
}

TEST(KvRow, Fp4EqualsFakeQuantisation) {
    for (const int width : {128, 32, 48, 2}) {
        std::vector<float> x = normal(width, 3);
        const std::vector<float> y = round_trip(KvFormat::kFp4, x, 0);
        round_e2m1_blocks32(x.data(), width);
        EXPECT_EQ(y, x) << width;
    }
    const float pair[2] = {6.0f, -1.0f};
    std::byte row[4];
    encode_kv_row(KvFormat::kFp4, pair, 2, 0, row);
    EXPECT_EQ(row[0], std::byte{0xa7});
    EXPECT_EQ(row[1], std::byte{127});
}

}  // namespace
}  // namespace thermocline::quant
