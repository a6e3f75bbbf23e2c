// The policies of the batcher on made-up cases, and on random ones the rules that must always hold.
#include "src/engine/batcher.h"

#include <algorithm>
#include <gtest/gtest.h>
#include <map>
#include <random>

namespace thermocline::engine {
namespace {

constexpr int64_t kPlenty = int64_t{1} << 40;

/// One byte a token, in pages of 16.
int64_t paged(int64_t tokens) { return (tokens + 15) / 16 * 16; }

class BatcherTest : public ::testing::Test {
protected:
    /// "id:rows:outputs" of every share of the next pass.
    static std::string planned(const Batcher& batcher) {
        std::vector<Share> shares;
        batcher.plan(shares);
        std::string text;
        for (const Share& share : shares)
            text += (text.empty() ? "" : " ") + std::to_string(share.id) + ":" + std::to_string(share.rows) + ":" +
                    std::to_string(share.outputs);
        return text;
    }
    /// Plays the next pass; whoever gets an output draws a token, unless it is one that scores within its prompt.
    static void play(Batcher& batcher) {
        std::vector<Share> shares;
        batcher.plan(shares);
        for (const Share& share : shares) batcher.computed(share.id, share.rows, share.outputs == 1);
    }
    static Batcher make(int64_t sequences, int64_t rows, int64_t kv = kPlenty, int64_t outputs = 32) {
        return Batcher({sequences, rows, outputs, kv}, paged);
    }
};

TEST_F(BatcherTest, DecodesAllAndFillsUpWithPrompts) {
    Batcher batcher = make(4, 10);
    batcher.add(1, 0, 1, false);
    batcher.add(2, 0, 30, false);
    batcher.add(3, 0, 2, false);
    EXPECT_EQ(batcher.turn_over().admitted, (std::vector<SequenceId>{1, 2, 3}));
    EXPECT_EQ(planned(batcher), "1:1:1 3:2:1 2:7:0");
    play(batcher);
    EXPECT_EQ(planned(batcher), "1:1:1 3:1:1 2:8:0") << "23 of the 30 are left";
    play(batcher);
    play(batcher);
    EXPECT_EQ(planned(batcher), "1:1:1 3:1:1 2:7:1") << "the last of the prompt draws";
    play(batcher);
    EXPECT_EQ(planned(batcher), "1:1:1 2:1:1 3:1:1");
}

TEST_F(BatcherTest, PromptsShareEqually) {
    Batcher batcher = make(4, 10);
    for (const SequenceId id : {1, 2, 3}) batcher.add(id, 0, 100, false);
    batcher.turn_over();
    EXPECT_EQ(planned(batcher), "1:3:0 2:3:0 3:4:0");
    batcher.add(4, 0, 2, false);
    batcher.turn_over();
    EXPECT_EQ(planned(batcher), "4:2:1 1:2:0 2:3:0 3:3:0") << "a short one is not kept waiting by long ones";
}

TEST_F(BatcherTest, TheMoreImportantGoFirst) {
    Batcher batcher = make(2, 10);
    batcher.add(1, 5, 100, false);
    batcher.add(2, 0, 12, false);
    batcher.add(3, -1, 50, false);
    EXPECT_EQ(batcher.turn_over().admitted, (std::vector<SequenceId>{3, 2}));
    EXPECT_EQ(planned(batcher), "3:10:0");
    batcher.remove(3);
    EXPECT_EQ(batcher.turn_over().admitted, (std::vector<SequenceId>{1}));
    EXPECT_EQ(planned(batcher), "2:10:0");
    play(batcher);
    EXPECT_EQ(planned(batcher), "2:2:1 1:8:0") << "what the first priority does not need goes to the next";
}

TEST_F(BatcherTest, ScoresWithinTheOutputs) {
    Batcher batcher = make(3, 20, kPlenty, 8);
    batcher.add(1, 0, 50, true);
    batcher.add(2, 0, 1, false);
    batcher.turn_over();
    EXPECT_EQ(planned(batcher), "2:1:1 1:7:7");
    batcher.add(3, 0, 50, true);
    batcher.turn_over();
    EXPECT_EQ(planned(batcher), "2:1:1 1:3:3 3:4:4");
}

TEST_F(BatcherTest, AdmitsInOrderAsFarAsMemoryReaches) {
    Batcher batcher = make(4, 16, 400);
    batcher.add(1, 0, 100, false);
    batcher.add(2, 0, 200, false);
    batcher.add(3, 0, 10, false);
    EXPECT_EQ(batcher.turn_over().admitted, (std::vector<SequenceId>{1})) << "the small one does not overtake";
    EXPECT_EQ(batcher.kv_used(), 112);
    batcher.remove(1);
    EXPECT_EQ(batcher.turn_over().admitted, (std::vector<SequenceId>{2, 3}));
    EXPECT_EQ(batcher.waiting(), 0);
}

TEST_F(BatcherTest, TheYoungestOfTheLeastImportantGivesWay) {
    Batcher batcher = make(4, 16, 300);
    batcher.add(1, 1, 16, false);
    batcher.add(2, 1, 16, false);
    batcher.add(3, 0, 16, false);
    EXPECT_EQ(batcher.turn_over().admitted, (std::vector<SequenceId>{3, 1, 2}));
    for (int i = 0; i < 300 && batcher.running() == 3; ++i) {
        play(batcher);
        const auto turn = batcher.turn_over();
        EXPECT_TRUE(turn.admitted.empty());
        if (!turn.preempted.empty()) {
            EXPECT_EQ(turn.preempted, (std::vector<SequenceId>{2}));
        }
    }
    EXPECT_EQ(batcher.running(), 2);
    batcher.add(4, 1, 16, false);
    batcher.remove(3);
    EXPECT_EQ(batcher.turn_over().admitted, (std::vector<SequenceId>{})) << "2 does not fit yet, 4 is behind it";
    batcher.remove(1);
    EXPECT_EQ(batcher.turn_over().admitted.front(), 2);
}

TEST_F(BatcherTest, HeldOnesKeepTheirPlaceAndRest) {
    Batcher batcher = make(2, 8);
    batcher.add(1, 0, 5, false);
    batcher.add(2, 0, 5, false);
    batcher.turn_over();
    batcher.hold(1, true);
    EXPECT_EQ(planned(batcher), "2:5:1");
    batcher.hold(1, false);
    batcher.set_cached(1, 4);
    EXPECT_EQ(planned(batcher), "1:1:1 2:5:1");
}

TEST_F(BatcherTest, MemoryThatWasRefusedIsNotCountedOn) {
    Batcher batcher = make(3, 16, 100000);
    for (const SequenceId id : {1, 2, 3}) batcher.add(id, 0, 1000, false);
    batcher.turn_over();
    EXPECT_TRUE(batcher.give_way(1));
    EXPECT_TRUE(batcher.turn_over().admitted.empty());
    EXPECT_EQ(batcher.limits().kv_bytes, 2 * paged(1000));
    batcher.remove(2);
    batcher.remove(3);
    EXPECT_EQ(batcher.turn_over().admitted, (std::vector<SequenceId>{1}));
    EXPECT_FALSE(batcher.give_way(1)) << "it is alone";
}

/// A crowd of sequences until all of them have drawn what they were to draw.
class Crowd {
public:
    explicit Crowd(uint32_t seed)
        : random_(seed),
          rows_(below(1, 24)),
          outputs_(below(1, 12)),
          kv_(paged(kLongest) + below(0, 200)),
          batcher_({below(1, std::min(rows_, outputs_)), rows_, outputs_, kv_}, paged) {}

    void run() {
        for (steps_ = 0; added_ < kSequences || !left_.empty(); ++steps_) {
            ASSERT_LT(steps_, 100000) << "somebody starves";
            arrive();
            turn_over();
            pass();
        }
    }

private:
    static constexpr int64_t kLongest = 120, kSequences = 40;
    struct One {
        int32_t priority;
        int64_t tokens, cached, to_draw;
        bool scores;
    };

    int64_t below(int64_t least, int64_t most) { return std::uniform_int_distribution<int64_t>(least, most)(random_); }

    void arrive() {
        if (added_ == kSequences || below(0, 3) > 0) return;
        const int64_t tokens = below(1, 90);
        const One one{static_cast<int32_t>(below(0, 2)), tokens, 0, below(1, kLongest - tokens), below(0, 4) == 0};
        batcher_.add(added_, one.priority, tokens, one.scores);
        left_.emplace(added_++, one);
    }

    void turn_over() {
        const Batcher::Turnover turn = batcher_.turn_over();
        for (const SequenceId id : turn.preempted) {
            running_.erase(std::find(running_.begin(), running_.end(), id));
            left_.at(id).cached = 0;
        }
        for (const SequenceId id : turn.admitted) {
            running_.push_back(id);
            for (const auto& [other, one] : left_)  // whoever waits is behind it
                if (std::find(running_.begin(), running_.end(), other) == running_.end()) {
                    EXPECT_TRUE(std::pair(one.priority, other) > std::pair(left_.at(id).priority, id));
                }
        }
        EXPECT_LE(batcher_.running(), batcher_.limits().max_sequences);
        EXPECT_EQ(batcher_.running(), std::ssize(running_));
        EXPECT_EQ(batcher_.running() + batcher_.waiting(), std::ssize(left_));
        EXPECT_LE(batcher_.kv_used(), kv_);
        EXPECT_TRUE(!running_.empty() || left_.empty()) << "nobody works";
    }

    void pass() {
        std::vector<Share> shares;
        batcher_.plan(shares);
        EXPECT_EQ(shares.empty(), running_.empty());
        int64_t rows = 0, outputs = 0;
        for (const Share& share : shares) {
            One& one = left_.at(share.id);
            rows += share.rows;
            outputs += share.outputs;
            one.cached += share.rows;
            ASSERT_LE(one.cached, one.tokens);
            const bool drew = one.cached == one.tokens;
            EXPECT_EQ(share.outputs, one.scores ? share.rows : drew ? 1 : 0);
            if (drew && --one.to_draw == 0) {
                batcher_.remove(share.id);
                running_.erase(std::find(running_.begin(), running_.end(), share.id));
                left_.erase(share.id);
                continue;
            }
            batcher_.computed(share.id, share.rows, drew);
            if (drew) ++one.tokens;
        }
        EXPECT_LE(rows, rows_);
        EXPECT_LE(outputs, outputs_);
    }

    std::mt19937 random_;
    const int64_t rows_, outputs_, kv_;
    Batcher batcher_;
    std::map<SequenceId, One> left_;
    std::vector<SequenceId> running_;
    SequenceId added_ = 0;
    int steps_ = 0;
};

TEST_F(BatcherTest, NeverOverBudgetAndEveryoneEnds) {
    for (uint32_t seed = 0; seed < 300; ++seed) {
        SCOPED_TRACE(seed);
        Crowd(seed).run();
        if (HasFailure()) break;
    }
}

}  // namespace
}  // namespace thermocline::engine
