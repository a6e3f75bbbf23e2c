#include "src/quant/codebooks.h"

#include <algorithm>
#include <cstdio>
#include <gtest/gtest.h>
#include <string>
#include <thread>
#include <vector>

namespace thermocline::quant {
namespace {

/// CRC-32 with the zlib polynomial.
uint32_t crc32(const std::string& text) {
    uint32_t crc = 0xffffffff;
    for (const char c : text) {
        crc ^= static_cast<uint8_t>(c);
        for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ (crc & 1 ? 0xedb88320u : 0);
    }
    return ~crc;
}

/// Writes a decoded grid back as the hex text of weight-formats.md appendix A, checking that rows ascend.
template <size_t kRows, size_t kColumns>
std::string to_hex(const int8_t (&grid)[kRows][kColumns], const std::vector<int>& values) {
    constexpr int kWidth = kColumns == 8 ? 2 : 3;
    std::string hex;
    int64_t previous = -1;
    for (const auto& row : grid) {
        unsigned number = 0;
        for (size_t j = 0; j < kColumns; ++j) {
            const auto it = std::find(values.begin(), values.end(), row[j]);
            EXPECT_NE(it, values.end());
            number |= static_cast<unsigned>(it - values.begin()) << (kWidth * j);
        }
        EXPECT_GT(int64_t{number}, previous);
        previous = number;
        char digits[8];
        std::snprintf(digits, sizeof digits, "%0*x", kColumns == 8 ? 4 : 3, number);
        hex += digits;
    }
    return hex;
}

TEST(Codebooks, EveryGridHasThePublishedChecksum) {
    const Codebooks& books = codebooks();
    const std::vector<int> iq2 = {8, 25, 43}, iq1 = {-1, 0, 1};
    EXPECT_EQ(crc32(to_hex(books.iq2_xxs, iq2)), 0x757ee0ccu);
    EXPECT_EQ(crc32(to_hex(books.iq2_xs, iq2)), 0x0ee9db97u);
    EXPECT_EQ(crc32(to_hex(books.iq2_s, iq2)), 0x86810c0eu);
    EXPECT_EQ(crc32(to_hex(books.iq1, iq1)), 0x776605f5u);
    EXPECT_EQ(crc32(to_hex(books.iq3_xxs, {4, 12, 20, 28, 36, 44, 52, 62})), 0xd4e0a9ccu);
    EXPECT_EQ(crc32(to_hex(books.iq3_s, {1, 3, 5, 7, 9, 11, 13, 15})), 0xb012af85u);
}

TEST(Codebooks, SignCodesHaveAnEvenNumberOfMinusSigns) {
    for (uint32_t code = 0; code < 128; ++code) {
        EXPECT_EQ(iq_signs(code) & 127, static_cast<int>(code));
        EXPECT_EQ(__builtin_popcount(iq_signs(code)) % 2, 0);
    }
}

TEST(Codebooks, ThreadsSeeTheSameTables) {
    const Codebooks* seen[4] = {};
    std::vector<std::thread> threads;
    for (auto& at : seen) threads.emplace_back([&at] { at = &codebooks(); });
    for (std::thread& thread : threads) thread.join();
    for (const Codebooks* at : seen) EXPECT_EQ(at, &codebooks());
}

}  // namespace
}  // namespace thermocline::quant
