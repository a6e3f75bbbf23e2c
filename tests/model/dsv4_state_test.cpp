// What must not change a result: how tokens are cut into chunks, saving and restoring, taking tokens back, and other
// sequences in the batch (deepseek-v4.md 6.2 to 6.6, 8.5). Kernels promise results that do not depend on the number
// of rows, so everything here is compared bit by bit with one plain pass, in every cache format.
#include "tests/model/engine_fixture.h"
#include "tests/model/tiny_model.h"

#include <gtest/gtest.h>
#include <map>
#include <span>

namespace thermocline {
namespace {

using model::KvCacheDtype;
using Tokens = std::span<const int32_t>;

constexpr int64_t kTokens = 300;

Tokens part(const std::vector<int32_t>& tokens, int64_t first, int64_t count) {
    return Tokens(tokens).subspan(static_cast<size_t>(first), static_cast<size_t>(count));
}

class Dsv4State : public testing::TestWithParam<KvCacheDtype> {
protected:
    Engine& engine = tiny_engine(GetParam());
    const std::vector<int32_t> tokens = tiny::tokens(kTokens);
    const Logits& whole = plain_pass(GetParam());

    /// Logits of all tokens in one chunk, computed once per cache format.
    static const Logits& plain_pass(KvCacheDtype format) {
        static std::map<KvCacheDtype, Logits> passes;
        Logits& logits = passes[format];
        if (logits.empty()) {
            Engine& engine = tiny_engine(format);
            const auto sequence = engine.new_sequence();
            logits = engine.feed(*sequence, tiny::tokens(kTokens), kTokens);
        }
        return logits;
    }
    /// Feeds tokens from the sequence's position on and compares all their logits with the plain pass.
    void expect_continues(memory::SequenceCache& sequence, int64_t count, int64_t chunk) {
        const int64_t first = sequence.position();
        const Logits logits = engine.feed(sequence, part(tokens, first, count), chunk);
        for (int64_t i = 0; i < count; ++i)
            ASSERT_EQ(logits[static_cast<size_t>(i)], whole[static_cast<size_t>(first + i)])
                << "position " << first + i;
    }
};

INSTANTIATE_TEST_SUITE_P(Formats, Dsv4State,
                         testing::Values(KvCacheDtype::kF32, KvCacheDtype::kBf16, KvCacheDtype::kFp8),
                         [](const auto& format) {
                             return format.param == KvCacheDtype::kF32    ? "F32"
                                    : format.param == KvCacheDtype::kBf16 ? "Bf16"
                                                                          : "Fp8";
                         });

TEST_P(Dsv4State, ChunkSizeChangesNothing) {
    for (const int64_t chunk : {1, 3, 4, 5, 7, 64, 127, 128, 129, 150}) {
        SCOPED_TRACE("chunk " + std::to_string(chunk));
        const auto sequence = engine.new_sequence();
        expect_continues(*sequence, kTokens, chunk);
    }
}

TEST_P(Dsv4State, PromptLengthChangesNothing) {
    for (const int64_t length : {1, 2, 3, 4, 5, 6, 7, 8, 9, 126, 127, 128, 129, 130, 254, 255, 256, 257, 258}) {
        SCOPED_TRACE("prompt of " + std::to_string(length));
        const auto sequence = engine.new_sequence();
        expect_continues(*sequence, length, length);
        expect_continues(*sequence, 12, 1);
    }
}

TEST_P(Dsv4State, WorkersChangeNothing) {
    for (const int workers : {2, 3}) {
        Engine parallel(tiny_model(GetParam()), "auto", workers);
        const auto sequence = parallel.new_sequence();
        EXPECT_EQ(parallel.feed(*sequence, tokens, 70), whole) << workers << " workers";
    }
}

TEST_P(Dsv4State, SnapshotsContinueExactly) {
    const auto sequence = engine.new_sequence();
    expect_continues(*sequence, 119, 119);
    for (int64_t position = 120; position <= 135; ++position) {
        SCOPED_TRACE("snapshot at " + std::to_string(position));
        expect_continues(*sequence, 1, 1);
        const std::vector<std::byte> saved = sequence->snapshot();
        const auto fresh = engine.new_sequence();
        fresh->restore(saved);
        ASSERT_EQ(fresh->position(), position);
        expect_continues(*fresh, 140, 139);
    }
}

// m wrong tokens after s right ones, taken back to every f in [s, s + m]; the m tokens up to f are right.
TEST_P(Dsv4State, RollbackContinuesExactly) {
    for (const int64_t s : {1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 120, 124, 125, 126, 127, 128, 129, 131, 254, 256}) {
        const auto sequence = engine.new_sequence();
        expect_continues(*sequence, s, s);
        const std::vector<std::byte> saved = sequence->snapshot();
        for (int64_t m = 1; m <= 9; ++m) {
            for (int64_t f = s; f <= s + m; ++f) {
                SCOPED_TRACE("s " + std::to_string(s) + ", m " + std::to_string(m) + ", f " + std::to_string(f));
                std::vector<int32_t> draft(tokens.begin() + s, tokens.begin() + s + m);
                for (int64_t i = f - s; i < m; ++i)
                    draft[static_cast<size_t>(i)] = (draft[static_cast<size_t>(i)] + 1) % 97;
                engine.feed(*sequence, draft, m);
                ASSERT_TRUE(sequence->can_roll_back(f));
                sequence->roll_back(f);
                ASSERT_EQ(sequence->position(), f);
                expect_continues(*sequence, 5, 5);
                sequence->restore(saved);
            }
        }
    }
}

TEST_P(Dsv4State, MtpRollbackContinuesExactly) {
    engine.feed(*engine.new_sequence(), tokens, kTokens);
    const auto width = engine.trunk.plan().slots[static_cast<size_t>(engine.trunk.plan().streams)].cols;
    const std::vector<float> streams(engine.trunk.streams(0), engine.trunk.streams(0) + kTokens * width);
    const auto feed = [&](memory::SequenceCache& drafter, Tokens next, const float* from) {
        EXPECT_TRUE(drafter.reserve(drafter.position() + static_cast<int64_t>(next.size())));
        const scheduler::Part parts[] = {{&drafter, next, static_cast<int32_t>(next.size())}};
        engine.mtp->forward(parts, from);
        const int64_t count = static_cast<int64_t>(next.size()) * engine.mtp->plan().vocab;
        return std::vector<float>(engine.mtp->logits(0), engine.mtp->logits(0) + count);
    };
    const auto plain = engine.mtp->new_sequence();
    feed(*plain, part(tokens, 1, 50), streams.data());
    const std::vector<float> right = feed(*plain, part(tokens, 51, 40), streams.data() + 50 * width);

    const auto drafter = engine.mtp->new_sequence();
    feed(*drafter, part(tokens, 1, 50), streams.data());
    for (int64_t m = 1; m <= 9; ++m) {
        feed(*drafter, part(tokens, 100, m), streams.data() + 7 * width);
        ASSERT_TRUE(drafter->can_roll_back(50));
        drafter->roll_back(50);
    }
    EXPECT_EQ(feed(*drafter, part(tokens, 51, 40), streams.data() + 50 * width), right);
}

/// Sequences of different tokens, lengths and speeds, fed alone and together.
TEST_P(Dsv4State, SequencesInOneBatchDoNotInteract) {
    struct Stream {
        std::vector<int32_t> tokens;
        std::vector<int64_t> parts;  // rows in every batch; 0: not in it
        Logits alone, together;
        std::unique_ptr<memory::SequenceCache> sequence;
    };
    std::vector<int32_t> reversed(tokens.rbegin(), tokens.rend());
    std::vector<int32_t> shifted(tokens.begin() + 31, tokens.end());
    std::vector<Stream> streams(3);
    streams[0] = {tokens, {100, 1, 1, 1, 30, 1, 1, 64}, {}, {}, nullptr};
    streams[1] = {reversed, {3, 1, 128, 0, 1, 1, 9, 100}, {}, {}, nullptr};
    streams[2] = {shifted, {0, 127, 1, 1, 1, 1, 0, 2}, {}, {}, nullptr};

    for (Stream& stream : streams) {
        stream.sequence = engine.new_sequence();
        int64_t total = 0;
        for (const int64_t rows : stream.parts) total += rows;
        stream.alone = engine.feed(*stream.sequence, part(stream.tokens, 0, total), total);
        stream.sequence = engine.new_sequence();
        ASSERT_TRUE(stream.sequence->reserve(total));
    }
    for (size_t i = 0; i < streams[0].parts.size(); ++i) {
        std::vector<scheduler::Part> parts;
        std::vector<Stream*> owners;
        for (Stream& stream : streams) {
            if (stream.parts[i] == 0) continue;
            parts.push_back({stream.sequence.get(), part(stream.tokens, stream.sequence->position(), stream.parts[i]),
                             static_cast<int32_t>(stream.parts[i])});
            owners.push_back(&stream);
        }
        engine.trunk.forward(parts);
        int64_t output = 0;
        for (size_t k = 0; k < parts.size(); ++k)
            for (int32_t r = 0; r < parts[k].outputs; ++r, ++output)
                owners[k]->together.emplace_back(engine.trunk.logits(output),
                                                 engine.trunk.logits(output) + engine.trunk.plan().vocab);
    }
    for (const Stream& stream : streams) EXPECT_EQ(stream.together, stream.alone);
}

TEST_P(Dsv4State, OnlyWantedLogitsAreComputed) {
    const auto sequence = engine.new_sequence();
    ASSERT_TRUE(sequence->reserve(20));
    const scheduler::Part none[] = {{sequence.get(), part(tokens, 0, 10), 0}};
    engine.trunk.forward(none);
    const scheduler::Part last[] = {{sequence.get(), part(tokens, 10, 10), 1}};
    engine.trunk.forward(last);
    EXPECT_EQ(std::vector<float>(engine.trunk.logits(0), engine.trunk.logits(0) + engine.trunk.plan().vocab),
              whole[19]);
}

// At every position of a longer run: save, continue with wrong tokens in another sequence, take them back, and
// continue with the right ones.
TEST_P(Dsv4State, SaveRestoreAndRollBackAtEveryPosition) {
    constexpr int64_t kLong = 600;
    const std::vector<int32_t> longer = tiny::tokens(kLong);
    const auto straight = engine.new_sequence();
    const auto other = engine.new_sequence();
    const Logits right = [&] {
        const auto sequence = engine.new_sequence();
        return engine.feed(*sequence, longer, 256);
    }();
    const std::vector<int32_t> wrong = {3, 1, 4, 1, 5};
    for (int64_t position = 0; position < kLong; ++position) {
        SCOPED_TRACE("position " + std::to_string(position));
        other->restore(straight->snapshot());
        ASSERT_EQ(other->position(), position);
        engine.feed(*other, wrong, static_cast<int64_t>(wrong.size()));
        ASSERT_TRUE(other->can_roll_back(position));
        other->roll_back(position);
        const Logits again = engine.feed(*other, part(longer, position, 1), 1);
        const Logits direct = engine.feed(*straight, part(longer, position, 1), 1);
        ASSERT_EQ(again[0], right[static_cast<size_t>(position)]);
        ASSERT_EQ(direct[0], right[static_cast<size_t>(position)]);
    }
}

}  // namespace
}  // namespace thermocline
