// The largest logits of a row as kernels find them, beside a sort of all.
#include "cuda/run_logits.h"
#include "tests/cuda/test_device.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <gtest/gtest.h>
#include <limits>
#include <random>
#include <vector>

namespace thermocline::cuda {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

/// Rows of logits with their factors, and what the kernels make of them.
std::vector<TopRow> top_rows(const std::vector<std::vector<float>>& rows, const std::vector<float>& factors) {
    const auto device = test_device();
    const auto count = std::ssize(rows), vocab = std::ssize(rows.front());
    const int64_t bytes = (count * vocab + count) * 4;
    const DeviceMemory numbers(*device, bytes);
    const PinnedMemory host(*device, std::max(bytes, count * int64_t{sizeof(TopRow)}));
    std::vector<DeviceMemory> taken;
    const LogitsMemory memory =
        logits_memory(vocab, count, [&](int64_t size) { return taken.emplace_back(*device, size).data(); });
    for (int64_t i = 0; i < count; ++i)
        std::copy(rows[static_cast<size_t>(i)].begin(), rows[static_cast<size_t>(i)].end(),
                  host.as<float>() + i * vocab);
    std::copy(factors.begin(), factors.end(), host.as<float>() + count * vocab);
    const auto stream = device->new_stream();
    stream->copy(numbers.data(), host.data(), bytes);
    top_logits(*stream, numbers.as<float>(), numbers.as<float>() + count * vocab, vocab, count, memory);
    stream->copy(host.data(), memory.rows, count * int64_t{sizeof(TopRow)});
    stream->wait(std::chrono::minutes(2));
    return {host.as<TopRow>(), host.as<TopRow>() + count};
}

TEST(CudaLogits, AreTheLargestAndTheFirstOfEquals) {
    std::mt19937 random(5);
    std::normal_distribution<float> normal;
    for (const int64_t vocab : {int64_t{100}, int64_t{kTopLogits}, int64_t{2048}, int64_t{5000}}) {
        SCOPED_TRACE(vocab);
        std::vector<std::vector<float>> rows(3, std::vector<float>(static_cast<size_t>(vocab)));
        const std::vector<float> factors = {1.0f, 2.5f, 0.3f};
        for (float& one : rows[0]) one = normal(random) * 4;
        for (float& one : rows[1]) one = std::round(normal(random));  // many ties
        for (float& one : rows[2]) one = random() % 3 == 0 ? -kInfinity : normal(random) - 50;
        const std::vector<TopRow> found = top_rows(rows, factors);
        for (size_t row = 0; row < rows.size(); ++row) {
            const std::vector<float>& logits = rows[row];
            std::vector<int32_t> expected(logits.size());
            for (size_t i = 0; i < expected.size(); ++i) expected[i] = static_cast<int32_t>(i);
            std::stable_sort(expected.begin(), expected.end(), [&](int32_t a, int32_t b) {
                return logits[static_cast<size_t>(a)] > logits[static_cast<size_t>(b)];
            });
            expected.resize(static_cast<size_t>(std::min<int64_t>(vocab, kTopLogits)));
            const float most = logits[static_cast<size_t>(expected[0])];
            std::vector<int32_t> ids;
            for (size_t i = 0; i < expected.size(); ++i) {
                const ops::TopLogit& one = found[row].best[i];
                ids.push_back(one.id);
                EXPECT_EQ(one.logit, logits[static_cast<size_t>(one.id)]);
            }
            std::sort(ids.begin(), ids.end());
            std::sort(expected.begin(), expected.end());
            EXPECT_EQ(ids, expected) << row;
            double weights = 0;
            for (const float one : logits) weights += std::exp((double{one} - most) * factors[row]);
            EXPECT_NEAR(found[row].weights, weights, 2e-6 * weights);
            EXPECT_EQ(found[row].faults, 0);
        }
    }
}

TEST(CudaLogits, WhatIsNoLogitIsCounted) {
    std::vector<std::vector<float>> rows(3, std::vector<float>(3000, 1.0f));
    rows[0][2999] = std::numeric_limits<float>::quiet_NaN();
    rows[1][7] = kInfinity;
    rows[1][2500] = std::numeric_limits<float>::quiet_NaN();
    for (float& one : rows[2]) one = -kInfinity;
    const std::vector<TopRow> found = top_rows(rows, {1.0f, 1.0f, 1.0f});
    EXPECT_EQ(found[0].faults, 1);
    EXPECT_EQ(found[1].faults, 2);
    EXPECT_EQ(found[2].faults, 0);
    EXPECT_EQ(found[2].weights, 0.0f);
}

}  // namespace
}  // namespace thermocline::cuda
