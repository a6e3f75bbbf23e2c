// Weights on their way to a slow card: waited for as long as their bytes take, and never left without their memory.
#include "scheduler/upload.h"

#include "cuda/emulation/device.h"
#include "src/base/error.h"

#include <cstring>
#include <gtest/gtest.h>
#include <numeric>
#include <vector>

namespace thermocline::scheduler {
namespace {

constexpr size_t kBytes = size_t{10} << 20, kPiece = 100'000;

std::vector<std::byte> some_bytes() {
    std::vector<std::byte> bytes(kBytes);
    for (size_t i = 0; i < kBytes; ++i) bytes[i] = static_cast<std::byte>(i * 7 + (i >> 11));
    return bytes;
}

/// What is on the card after an upload over a link of 50 MB/s, a fifth of a second.
std::vector<std::byte> uploaded(const std::vector<std::byte>& bytes, const UploadPatience& patience) {
    const auto device = cuda::emulation::open({.link = {.gb_per_s = 0.05}});
    const cuda::DeviceMemory memory(*device, std::ssize(bytes));
    std::vector<cuda::Copy> copies;
    for (size_t at = 0; at < kBytes; at += kPiece)
        copies.push_back({bytes.data() + at, memory.data() + at, static_cast<int64_t>(std::min(kBytes - at, kPiece))});
    bool failed = false;
    try {
        upload(copies, *device, patience);
    } catch (const Error& error) {
        failed = true;
    }
    EXPECT_EQ(failed, patience.bytes_per_s > 1e9);
    return {memory.data(), memory.data() + (failed ? size_t{1} << 20 : kBytes)};
}

TEST(Upload, WaitsAsLongAsTheBytesTake) {
    const std::vector<std::byte> bytes = some_bytes();
    EXPECT_EQ(uploaded(bytes, {.any = std::chrono::milliseconds(20), .bytes_per_s = 5e6}), bytes);
}

TEST(Upload, CopiesThatAreGivenUpEndBeforeTheirMemory) {
    const std::vector<std::byte> bytes = some_bytes();
    const std::vector<std::byte> found = uploaded(bytes, {.any = std::chrono::milliseconds(5), .bytes_per_s = 1e12});
    EXPECT_TRUE(std::equal(found.begin(), found.end(), bytes.begin()));
}

}  // namespace
}  // namespace thermocline::scheduler
