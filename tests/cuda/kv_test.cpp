// Rows of KV caches made and read by kernels are bit for bit those of src/quant/kv_row.cpp.
#include "cuda/kernels/kv.h"

#include "src/quant/activation.h"
#include "tests/cuda/one_step.h"

#include <cstring>
#include <gtest/gtest.h>

namespace thermocline {
namespace {

using quant::KvFormat;

constexpr KvFormat kFormats[] = {KvFormat::kF32, KvFormat::kBF16, KvFormat::kFp8F32, KvFormat::kFp8, KvFormat::kFp4};

struct Shape {
    int64_t width, rope;
};
constexpr Shape kShapes[] = {{512, 64}, {128, 64}, {80, 16}, {32, 0}, {100, 4}, {16, 16}};

/// Numbers of all sizes: normal, halves between codes, zeros, tiny, huge, infinite.
float awkward(std::mt19937& random) {
    const float x = std::normal_distribution<float>(0.0f, 1.0f)(random);
    switch (random() % 16) {
        case 0:
            return 0.0f;
        case 1:
            return -0.0f;
        case 2:
            return x * 1e-38f;
        case 3:
            return x * 1e30f;
        case 4:
            return static_cast<float>(static_cast<int>(random() % 65) - 32) / 4.0f;
        case 5:
            return random() % 8 == 0 ? std::numeric_limits<float>::infinity() : x;
        default:
            return x;
    }
}

TEST(CudaKv, RoundedVectorsAndRingRowsAreThoseOfTheCpu) {
    std::mt19937 random(7);
    for (const KvFormat format : kFormats)
        for (const auto& [width, rope] : kShapes) {
            OneStep one;
            const ops::Slot kv = one.slot(width), heads = one.slot(3 * width);
            const ops::CacheId ring = one.ring(format, width, rope, 8);
            one.begin({{5, 2}, {30, 11}});
            for (const ops::Slot slot : {kv, heads})
                for (float& x : one.stage->slot(slot)) x = awkward(random);
            one.stage->run(ops::StoreWindow{kv, ring, static_cast<int32_t>(width)}, one.batch());
            for (int64_t row = 0; row < one.rows(); ++row) {
                const ops::Segment& segment = one.batch().segments[row < 2 ? 0 : 1];
                const int64_t i = row - segment.first_row;
                if (i < segment.rows - 8) continue;
                std::vector<std::byte> expected(static_cast<size_t>(quant::kv_row_bytes(format, width, rope)));
                quant::encode_kv_row(format, one.stage->slot(kv).data() + row * width, width, rope, expected.data());
                EXPECT_EQ(std::memcmp(expected.data(), segment.caches[ring].row(segment.position + i), expected.size()),
                          0)
                    << static_cast<int>(format) << " " << width << " row " << row;
            }
            for (const bool transform : {false, true}) {
                if (transform && (width & (width - 1)) != 0) continue;
                std::vector<float> expected(one.stage->slot(heads).begin(), one.stage->slot(heads).end());
                for (int64_t r = 0; r < 3 * one.rows(); ++r) {
                    float* run = expected.data() + r * width;
                    std::vector<std::byte> bytes(static_cast<size_t>(quant::kv_row_bytes(format, width, rope)));
                    if (transform) quant::hadamard(run, width);
                    quant::encode_kv_row(format, run, width, rope, bytes.data());
                    quant::decode_kv_row(format, bytes.data(), width, rope, run);
                }
                one.stage->run(
                    ops::RoundKv{heads, static_cast<int32_t>(width), static_cast<int32_t>(rope), format, transform},
                    one.batch());
                for (int64_t i = 0; i < 3 * one.rows() * width; ++i) {
                    const float x = one.stage->slot(heads)[static_cast<size_t>(i)];
                    const float y = expected[static_cast<size_t>(i)];
                    ASSERT_TRUE(std::bit_cast<uint32_t>(x) == std::bit_cast<uint32_t>(y) || (x != x && y != y))
                        << static_cast<int>(format) << " " << width << " number " << i << ": " << x << ", " << y;
                }
            }
        }
}

TEST(CudaKv, EveryByteOfARowIsReadAsTheCpuReadsIt) {
    std::mt19937 random(8);
    for (const KvFormat format : kFormats)
        for (const auto& [width, rope] : kShapes)
            for (int round = 0; round < 8; ++round) {
                const auto bytes = static_cast<size_t>(quant::kv_row_bytes(format, width, rope));
                alignas(16) std::byte row[cuda::kMaxVector * sizeof(float)];
                ASSERT_LE(bytes, sizeof row);
                for (std::byte& byte : row) byte = static_cast<std::byte>(random());
                std::vector<float> expected(static_cast<size_t>(width));
                quant::decode_kv_row(format, row, width, rope, expected.data());
                for (int64_t c = 0; c < width; c += 4) {
                    const cuda::Four four = cuda::decode_four(format, row, static_cast<int>(c), static_cast<int>(width),
                                                              static_cast<int>(rope));
                    EXPECT_EQ(std::memcmp(four.x, expected.data() + c, sizeof four.x), 0)
                        << static_cast<int>(format) << " " << width << " channel " << c;
                }
            }
}

TEST(CudaKv, EveryCodeOfFourBits) {
    for (uint8_t code = 0; code < 16; ++code)
        EXPECT_EQ(std::bit_cast<uint32_t>(cuda::e2m1_number(code)),
                  std::bit_cast<uint32_t>(quant::e2m1_to_float(code)));
}

}  // namespace
}  // namespace thermocline
