// Steps that a card plays with one kernel, and steps that share launches, against the same steps one by one, which
// tests/cuda compares with the oracle.
#include "scheduler/gpu_groups.h"

#include "scheduler/gpu_order.h"
#include "scheduler/gpu_weights.h"
#include "tests/cuda/pinned_arrays.h"
#include "tests/cuda/test_device.h"

#include <algorithm>
#include <cmath>
#include <gtest/gtest.h>
#include <random>

namespace thermocline {
namespace {

using ops::kNone;
using ops::Slot;

/// A plan of a few steps over slots of random numbers.
class Piece {
public:
    ops::Plan plan;
    int64_t rows = 3;

    Slot slot(int64_t cols) {
        plan.slots.push_back({"slot " + std::to_string(plan.slots.size()), cols, ops::Rows::kTokens});
        return static_cast<Slot>(plan.slots.size() - 1);
    }
    ops::VectorId vector(int64_t count) {
        plan.vectors.push_back({"vector", numbers(count), {}});
        return static_cast<ops::VectorId>(plan.vectors.size() - 1);
    }
    ops::MatrixId matrix(int64_t height, int64_t width) {
        weights_.push_back(numbers(height * width));
        quant::Matrix m{.format = quant::Format::kF32, .rows = height, .cols = width, .row_bytes = width * 4};
        m.data = reinterpret_cast<const std::byte*>(weights_.back().data());
        plan.matrices.push_back({"matrix", m});
        return static_cast<ops::MatrixId>(plan.matrices.size() - 1);
    }
    ops::RopeId rope(int32_t dims) {
        plan.ropes.push_back({std::vector<float>(static_cast<size_t>(dims / 2), 0.3f)});
        return static_cast<ops::RopeId>(plan.ropes.size() - 1);
    }

    /// All slots after the steps, each on its own or as groups in an order. Random numbers are the same each time.
    std::vector<std::vector<float>> play(bool grouped) const {
        std::mt19937 random(5);
        std::normal_distribution<float> normal;
        const auto device = cuda::test_device();
        const auto stream = device->new_stream();
        PinnedArrays arrays(*device);
        const auto storage = [&](int64_t cols) {
            const std::span<float> slot = arrays.array<float>(static_cast<size_t>(cols * rows));
            for (float& x : slot) x = normal(random);
            return slot.data();
        };
        std::vector<float*> slots, rotations;
        for (const ops::SlotSpec& one : plan.slots) slots.push_back(storage(one.cols));
        for (const ops::RopeTable& one : plan.ropes) rotations.push_back(storage(one.dims()));
        const cuda::DeviceMemory memory(*device, scheduler::GpuWeights::bytes_of(plan));
        const scheduler::GpuWeights weights(plan, *device, memory.data());
        const std::span<std::byte> scratch = arrays.array<std::byte>(1 << 20);
        const std::span<uint32_t> tickets = arrays.array<uint32_t>(cuda::kMostSiteRows);
        cuda::Batch batch{};
        batch.rows = rows;
        const cuda::Frame frame{plan,           weights.on_card(), batch,   slots.data(), rotations.data(), nullptr,
                                scratch.data(), *stream,           nullptr, {},           tickets.data()};
        scheduler::GpuOrder order(frame, std::ssize(scratch));
        if (grouped)
            for (const scheduler::Group& group : scheduler::group_steps(plan)) order.play(group);
        else
            for (const ops::Step& step : plan.steps) std::visit([&](const auto& one) { cuda::run(one, frame); }, step);
        order.flush();
        stream->wait(std::chrono::minutes(1));
        EXPECT_EQ(std::ranges::count(tickets, 0u), cuda::kMostSiteRows);
        std::vector<std::vector<float>> found;
        for (size_t i = 0; i < slots.size(); ++i) found.emplace_back(slots[i], slots[i] + plan.slots[i].cols * rows);
        return found;
    }

    void expect_same(const std::vector<Slot>& slots, float tolerance) const {
        const auto alone = play(false), grouped = play(true);
        for (const Slot id : slots)
            for (size_t i = 0; i < alone[static_cast<size_t>(id)].size(); ++i) {
                const float expected = alone[static_cast<size_t>(id)][i], found = grouped[static_cast<size_t>(id)][i];
                ASSERT_LE(std::abs(found - expected), tolerance * std::max(1.0f, std::abs(expected)))
                    << plan.slots[static_cast<size_t>(id)].name << ", number " << i;
            }
    }
    std::vector<int32_t> group_sizes() const {
        std::vector<int32_t> sizes;
        for (const scheduler::Group& group : scheduler::group_steps(plan)) sizes.push_back(group.count);
        return sizes;
    }

private:
    std::vector<float> numbers(int64_t count) {
        std::vector<float> all(static_cast<size_t>(count));
        for (float& x : all) x = normal_(random_) * 0.1f;
        return all;
    }
    std::mt19937 random_{1};
    std::normal_distribution<float> normal_;
    std::vector<std::vector<float>> weights_;
};

/// From one site of `n` streams to the next.
struct Site : Piece {
    Slot streams, x, next_comb;
    Site(int32_t n, int64_t width, bool writes_back, ops::VectorId norm_weight = 2) {
        const int32_t mixes = n * (2 + n);
        streams = slot(n * width);
        const Slot y = slot(width), comb = slot(n + n * n), mix = slot(mixes);
        x = slot(width);
        next_comb = slot(n + n * n);
        const ops::MatrixId fn = matrix(mixes, n * width);
        const ops::VectorId base = vector(mixes), scale = vector(3);
        vector(width);
        if (writes_back) plan.steps.push_back(ops::HyperOut{y, comb, streams, n, false});
        plan.steps.push_back(ops::Linear{.in = streams, .weight = fn, .out = mix});
        plan.steps.push_back(ops::HyperIn{streams, mix, base, scale, x, next_comb, n, 20, 1e-6f, 1e-6f});
        plan.steps.push_back(ops::RmsNorm{x, x, norm_weight, static_cast<int32_t>(width), 1e-6f});
    }
};

TEST(GpuGroups, FromSiteToSiteIsOneKernel) {
    for (const int32_t n : {1, 2, 4})
        for (const int64_t width : {64, 320})
            for (const bool writes_back : {true, false}) {
                SCOPED_TRACE(std::to_string(n) + " streams of " + std::to_string(width));
                const Site site(n, width, writes_back);
                EXPECT_EQ(site.group_sizes(), std::vector<int32_t>{writes_back ? 4 : 3});
                site.expect_same({site.streams, site.x, site.next_comb}, 2e-5f);
            }
    const Site bare(4, 128, true, kNone);
    bare.expect_same({bare.x}, 2e-5f);
}

TEST(GpuGroups, ManyRowsGoFromSiteToSiteStepByStep) {
    Site site(2, 64, true);
    site.rows = cuda::kMostSiteRows + 1;
    site.expect_same({site.streams, site.x, site.next_comb}, 0.0f);
}

TEST(GpuGroups, SitesThatNoKernelTakesStayApart) {
    EXPECT_EQ(Site(2, 96, true).group_sizes(), (std::vector<int32_t>{1, 1, 1, 1}));  // of no whole spans
    Site other(2, 64, true);
    std::get<ops::RmsNorm>(other.plan.steps.back()).in = 1;  // norms something else
    EXPECT_EQ(other.group_sizes(), (std::vector<int32_t>{1, 1, 1, 1}));
}

/// Keys of `heads` heads, normed, turned and rounded.
struct Keys : Piece {
    Slot in, out;
    Keys(int32_t heads, int32_t width, quant::KvFormat format, bool hadamard, bool inverse) {
        in = slot(int64_t{heads} * width);
        out = slot(int64_t{heads} * width);
        plan.steps = {ops::RmsNorm{in, out, vector(width), width, 1e-6f}, ops::Rope{out, width, rope(16), inverse},
                      ops::RoundKv{out, width, 16, format, hadamard}};
    }
};

TEST(GpuGroups, VectorsAreFinishedByOneKernel) {
    using quant::KvFormat;
    for (const int32_t width : {64, 48, 512})
        for (const bool inverse : {false, true}) {
            const Keys keys(3, width, KvFormat::kF32, false, inverse);
            EXPECT_EQ(keys.group_sizes(), std::vector<int32_t>{3});
            keys.expect_same({keys.out}, 2e-6f);
        }
    const Keys index(2, 128, KvFormat::kF32, true, false);
    index.expect_same({index.out}, 5e-6f);
    Keys turned(2, 64, KvFormat::kF32, false, false);
    turned.plan.steps = {turned.plan.steps[1], turned.plan.steps[0]};  // another order: no group
    EXPECT_EQ(turned.group_sizes(), (std::vector<int32_t>{1, 1}));
    EXPECT_EQ(Keys(1, 1024, KvFormat::kF32, false, false).group_sizes(), (std::vector<int32_t>{1, 1, 1}));
}

// Numbers that the norm leaves between two codes may go to either: nearly all must be equal.
TEST(GpuGroups, FinishedVectorsAreRounded) {
    const Keys keys(4, 128, quant::KvFormat::kFp8, false, false);
    const auto alone = keys.play(false)[1], grouped = keys.play(true)[1];
    size_t equal = 0;
    for (size_t i = 0; i < alone.size(); ++i) equal += alone[i] == grouped[i] ? 1 : 0;
    EXPECT_GE(equal * 100, alone.size() * 99);
}

// Two matrices that read the same slot, one that reads what they give, and a slot that is written again.
TEST(GpuGroups, AnOrderKeepsWhatStepsNeedOfEachOther) {
    Piece piece;
    const Slot a = piece.slot(64), b = piece.slot(64), c = piece.slot(64), d = piece.slot(64);
    piece.plan.steps = {ops::Linear{.in = a, .weight = piece.matrix(64, 64), .out = b},
                        ops::Linear{.in = a, .weight = piece.matrix(64, 64), .out = c},
                        ops::Linear{.in = b, .weight = piece.matrix(64, 64), .out = a},
                        ops::Add{c, a, 1},
                        ops::Linear{.in = a, .weight = piece.matrix(64, 64), .out = d},
                        ops::SwiGlu{c, d, b, 7.0f},
                        ops::RmsNorm{b, a, kNone, 64, 1e-6f},
                        ops::Add{d, a, 1}};
    piece.expect_same({a, b, c, d}, 0.0f);
}

}  // namespace
}  // namespace thermocline
