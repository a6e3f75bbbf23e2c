// Rings, entries, roll-back and snapshots of one sequence, with rows that carry their position.
#include "memory/sequence_cache.h"

#include "src/base/error.h"

#include <cstring>
#include <gtest/gtest.h>

namespace thermocline::memory {
namespace {

using Kind = ops::CacheSpec::Kind;
using quant::KvFormat;

constexpr int64_t kWindow = 8, kSpare = 4, kRatio = 4;

std::vector<ops::CacheSpec> specs() {
    return {{.name = "window",
             .kind = Kind::kRing,
             .format = KvFormat::kF32,
             .width = 1,
             .ring_rows = kWindow + kSpare,
             .ratio = 1,
             .history = kWindow - 1},
            {.name = "state",
             .kind = Kind::kRing,
             .format = KvFormat::kF32,
             .width = 1,
             .ring_rows = 2 * kRatio + kSpare,
             .ratio = kRatio,
             .history = kRatio},
            {.name = "entries", .kind = Kind::kEntries, .format = KvFormat::kF32, .width = 1, .ratio = kRatio}};
}

void set(const SequenceCache& cache, size_t which, int64_t row, float value) {
    std::memcpy(cache.views()[which].row(row), &value, sizeof value);
}

float get(const SequenceCache& cache, size_t which, int64_t row) {
    float value;
    std::memcpy(&value, cache.views()[which].row(row), sizeof value);
    return value;
}

/// Writes what a forward pass over `tokens` tokens would write; row values are positions plus `mark`.
void write(SequenceCache& cache, int64_t tokens, float mark) {
    ASSERT_TRUE(cache.reserve(cache.position() + tokens));
    for (int64_t position = cache.position(); position < cache.position() + tokens; ++position) {
        for (const size_t ring : {0u, 1u}) set(cache, ring, position, static_cast<float>(position) + mark);
        if ((position + 1) % kRatio == 0)
            set(cache, 2, position / kRatio, static_cast<float>(position / kRatio) + mark);
    }
}

void play(SequenceCache& cache, int64_t tokens, float mark = 0.0f) {
    write(cache, tokens, mark);
    cache.advance(tokens);
}

void expect_history(const SequenceCache& cache) {
    const int64_t f = cache.position();
    for (int64_t p = std::max<int64_t>(0, f - kWindow + 1); p < f; ++p)
        EXPECT_EQ(get(cache, 0, p), p) << "frontier " << f;
    for (int64_t p = std::max<int64_t>(0, f / kRatio * kRatio - kRatio); p < f; ++p) EXPECT_EQ(get(cache, 1, p), p);
    for (int64_t w = 0; w < f / kRatio; ++w) EXPECT_EQ(get(cache, 2, w), w);
}

TEST(SequenceCache, HoldsWhatTheNextTokenNeeds) {
    SequenceCache cache(specs(), 100);
    for (int i = 0; i < 100; ++i) {
        play(cache, 1);
        expect_history(cache);
    }
    EXPECT_FALSE(cache.reserve(101));
}

TEST(SequenceCache, RepeatsWhatItHas) {
    SequenceCache cache(specs(), 1000), shorter(specs(), 20);
    play(cache, 17);  // four entries
    ASSERT_TRUE(cache.repeat_to(1000));
    EXPECT_EQ(cache.position(), 1000);
    for (int64_t w = 0; w < 1000 / kRatio; ++w) EXPECT_EQ(get(cache, 2, w), w % 4);
    EXPECT_TRUE(cache.can_roll_back(998));
    EXPECT_FALSE(cache.can_roll_back(900));
    SequenceCache other(specs(), 1000);
    other.restore(cache.snapshot());
    EXPECT_EQ(get(other, 2, 249), 1.0f);
    EXPECT_TRUE(shorter.repeat_to(0));  // nothing is missing
    play(shorter, 17);
    EXPECT_FALSE(shorter.repeat_to(21));
    EXPECT_EQ(shorter.position(), 17);
}

TEST(SequenceCache, RollsBackAsFarAsTheSpareRowsReach) {
    for (int64_t from = 1; from <= 40; ++from) {
        for (int64_t back = 0; back <= from; ++back) {
            SequenceCache cache(specs(), 64);
            play(cache, from);
            const int64_t to = from - back;
            if (back <= kSpare) {
                EXPECT_TRUE(cache.can_roll_back(to)) << from << " to " << to;
            }
            if (!cache.can_roll_back(to)) continue;
            cache.roll_back(to);
            expect_history(cache);
            play(cache, 3);
            expect_history(cache);
        }
    }
}

TEST(SequenceCache, RowsLostToALaterTokenStayLostAfterRollBack) {
    SequenceCache cache(specs(), 64);
    play(cache, 40);
    cache.roll_back(40 - kSpare);
    EXPECT_TRUE(cache.can_roll_back(40 - kSpare - 1));   // needs rows 28 .. 34, and the ring holds 28 .. 39
    EXPECT_FALSE(cache.can_roll_back(40 - kSpare - 2));  // row 27 was overwritten by position 39
}

/// A pass that was given up has written the rows of its tokens, or some of them.
TEST(SequenceCache, GoesOnAfterAPassThatWasGivenUpIfItHasWhatItNeeds) {
    for (int64_t position = 0; position <= 40; ++position)
        for (int64_t tokens = 1; tokens <= 20; ++tokens) {
            SequenceCache cache(specs(), 64);
            play(cache, position);
            ASSERT_TRUE(cache.can_go_on());
            const std::vector<std::byte> before = cache.snapshot();
            write(cache, tokens, 1000.0f);
            cache.spoil(tokens);
            EXPECT_TRUE(cache.can_go_on() || (position > 0 && tokens > kSpare)) << position << ", " << tokens;
            if (position >= kWindow) {  // the next token looks at seven rows of a ring of twelve
                EXPECT_EQ(cache.can_go_on(), tokens <= kSpare + 1) << position << ", " << tokens;
            }
            if (!cache.can_go_on()) cache.restore(before);
            EXPECT_TRUE(cache.can_go_on());
            expect_history(cache);
            for (int i = 0; i < 3; ++i) {
                play(cache, 1);
                EXPECT_TRUE(cache.can_go_on());
                expect_history(cache);
            }
        }
}

TEST(SequenceCache, SnapshotsRestoreAtEveryPosition) {
    for (int64_t position = 0; position <= 50; ++position) {
        SequenceCache cache(specs(), 64);
        play(cache, position);
        const auto bytes = cache.snapshot();
        SequenceCache other(specs(), 64);
        play(other, 20, 1000.0f);  // what was there before must not shine through
        other.restore(bytes);
        EXPECT_EQ(other.position(), position);
        expect_history(other);
        if (position > 20) {
            EXPECT_FALSE(other.can_roll_back(position - kWindow));
        }
        play(other, 5);
        expect_history(other);
    }
}

TEST(SequenceCache, GoesOnFromPieces) {
    for (int64_t position = 1; position <= 50; ++position) {
        SequenceCache cache(specs(), 64), other(specs(), 64);
        play(cache, position + 3);  // three tokens on: the state some tokens ago can be told
        ASSERT_TRUE(cache.can_roll_back(position));
        const auto first = cache.read_entries(0, 8 * (position / 8)),
                   rest = cache.read_entries(8 * (position / 8), position);
        const auto tail = cache.read_tail(position);
        play(other, 20, 1000.0f);  // what was there before must not shine through
        other.clear();
        ASSERT_TRUE(other.reserve(position));
        other.write_entries(0, 8 * (position / 8), first);
        other.write_entries(8 * (position / 8), position, rest);
        other.resume_at(position, tail);
        EXPECT_EQ(other.position(), position);
        expect_history(other);
        EXPECT_THROW(other.write_entries(0, 0, std::span(tail).first(1)), Error);
        EXPECT_THROW(other.resume_at(position, std::span(tail).first(tail.size() - 1)), Error);
        play(other, 5);
        expect_history(other);
    }
}

TEST(SequenceCache, DamagedSnapshotsAreRefusedAndChangeNothing) {
    SequenceCache cache(specs(), 64);
    play(cache, 30);
    const auto good = cache.snapshot();
    for (size_t i = 0; i < good.size(); ++i) {
        auto bad = good;
        bad[i] ^= std::byte{0x10};
        EXPECT_THROW(cache.restore(bad), Error) << "byte " << i;
    }
    for (const size_t size : {size_t{0}, size_t{10}, good.size() - 1})
        EXPECT_THROW(cache.restore(std::span(good).first(size)), Error);
    expect_history(cache);

    SequenceCache small(specs(), 20);
    EXPECT_THROW(small.restore(good), Error);
    auto others = specs();
    others[0].width = 2;
    SequenceCache different(others, 64);
    EXPECT_THROW(different.restore(good), Error);
}

TEST(SequenceCache, BytesGrowWithTheEntriesOnly) {
    const auto all = specs();
    EXPECT_EQ(sequence_bytes(all, 4), SequenceCache(all, 4).bytes() + (64 << 10));
    EXPECT_GT(sequence_bytes(all, 1 << 20), sequence_bytes(all, 1 << 19));
}

}  // namespace
}  // namespace thermocline::memory
