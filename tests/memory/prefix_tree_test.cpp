// What a PrefixTree finds, shares, drops and counts, with bytes that name the tokens they came from.
#include "memory/prefix_tree.h"

#include <gtest/gtest.h>
#include <map>
#include <numeric>
#include <random>

namespace thermocline::memory {
namespace {

using Tokens = std::vector<int32_t>;
constexpr int64_t kBlock = PrefixTree::kBlockTokens;
constexpr int64_t kPlenty = int64_t{1} << 30;

/// Tokens 0, 1, 2 ... with others from `from` on.
Tokens counting(int64_t count, int64_t from = kPlenty, int32_t other = 100000) {
    Tokens tokens(static_cast<size_t>(count));
    std::iota(tokens.begin(), tokens.end(), 0);
    for (int64_t i = from; i < count; ++i) tokens[static_cast<size_t>(i)] += other;
    return tokens;
}

SharedBytes bytes_of(std::span<const int32_t> tokens) {
    const auto bytes = std::as_bytes(tokens);
    return std::make_shared<const std::vector<std::byte>>(bytes.begin(), bytes.end());
}

class PrefixTreeTest : public ::testing::Test {
protected:
    /// Entries are the tokens themselves; the tail is `tail_bytes` long.
    void put(PrefixTree& tree, const Tokens& tokens, const std::string& salt = "", size_t tail_bytes = 1000) {
        tree.put(salt, tokens,
                 {[&](int64_t begin, int64_t end) {
                      entries_made += end - begin;
                      return bytes_of(
                          std::span(tokens).subspan(static_cast<size_t>(begin), static_cast<size_t>(end - begin)));
                  },
                  [&] { return std::make_shared<const std::vector<std::byte>>(tail_bytes, std::byte{7}); }});
    }
    /// Position found; the entries must be those of the tokens.
    static int64_t find(PrefixTree& tree, const Tokens& tokens, const std::string& salt = "", int64_t limit = kPlenty) {
        const StoredState state = tree.find(salt, tokens, limit);
        std::vector<std::byte> joined;
        for (const SharedBytes& piece : state.entries) joined.insert(joined.end(), piece->begin(), piece->end());
        EXPECT_EQ(joined, *bytes_of(std::span(tokens).first(static_cast<size_t>(state.position))));
        EXPECT_EQ(state.tail != nullptr, state.position > 0);
        return state.position;
    }

    int64_t entries_made = 0;  // tokens whose entries were asked for
};

TEST_F(PrefixTreeTest, FindsTheLongestPrefix) {
    PrefixTree tree(kPlenty);
    for (const int64_t position : {5, 100, 128, 200, 256, 700}) put(tree, counting(position));
    const std::pair<int64_t, int64_t> cases[] = {{4, 0},     {5, 5},     {99, 5},    {127, 100}, {128, 128},
                                                 {199, 128}, {255, 200}, {699, 256}, {700, 700}, {2000, 700}};
    for (const auto& [length, expected] : cases) {
        EXPECT_EQ(find(tree, counting(length)), expected) << length;
        EXPECT_EQ(find(tree, counting(2000), "", length), expected) << "limit " << length;
        EXPECT_EQ(find(tree, counting(2000, length)), expected) << "other tokens from " << length;
    }
    EXPECT_EQ(find(tree, counting(50), "salt"), 0);
    EXPECT_EQ(find(tree, {}), 0);
}

TEST_F(PrefixTreeTest, SharedPrefixesAreStoredOnce) {
    PrefixTree tree(kPlenty);
    put(tree, counting(10 * kBlock));
    EXPECT_EQ(entries_made, 10 * kBlock);
    put(tree, counting(12 * kBlock + 5));
    EXPECT_EQ(entries_made, 12 * kBlock + 5);
    put(tree, counting(12 * kBlock, 11 * kBlock + 3));
    EXPECT_EQ(entries_made, 13 * kBlock + 5) << "one block differs";
    const int64_t bytes = tree.bytes();
    put(tree, counting(10 * kBlock));
    EXPECT_EQ(tree.bytes(), bytes) << "it was there";
    EXPECT_EQ(tree.marks(), 3);
    put(tree, counting(10 * kBlock), "salt");
    EXPECT_EQ(entries_made, 23 * kBlock + 5) << "nothing is shared across salts";
    EXPECT_EQ(find(tree, counting(11 * kBlock), "salt"), 10 * kBlock);
}

TEST_F(PrefixTreeTest, ForgetsWhatTokensLedTo) {
    PrefixTree tree(kPlenty);
    for (const int64_t position : {100, 300, 500}) put(tree, counting(position));
    put(tree, counting(400, 250));
    put(tree, counting(300), "salt");
    tree.forget("", counting(450));
    EXPECT_EQ(find(tree, counting(450)), 0);
    EXPECT_EQ(find(tree, counting(600)), 500) << "500 is no prefix of what was forgotten";
    EXPECT_EQ(find(tree, counting(400, 250)), 400);
    EXPECT_EQ(find(tree, counting(300), "salt"), 300);
    tree.forget("", counting(600));
    tree.forget("", counting(600, 250));
    tree.forget("salt", counting(600));
    EXPECT_EQ(tree.bytes(), 0) << "blocks go with the last mark";
    EXPECT_EQ(tree.marks(), 0);
}

TEST_F(PrefixTreeTest, DropsWhatWasNotUsedForLong) {
    PrefixTree tree(40000);
    const auto story = [](int32_t which) { return counting(300, 0, which * 1000); };
    for (int32_t i = 0; i < 5; ++i) put(tree, story(i));
    for (int32_t i = 0; i < 60; ++i) {
        EXPECT_EQ(find(tree, story(0)), 300) << "in use all the time";
        put(tree, story(5 + i));
        EXPECT_LE(tree.bytes(), 40000);
        EXPECT_EQ(find(tree, story(5 + i)), 300) << "just stored";
    }
    EXPECT_EQ(find(tree, story(1)), 0);
    EXPECT_GT(tree.marks(), 4) << "room is used";
}

TEST_F(PrefixTreeTest, InnerMarksGoBeforeTheConversation) {
    PrefixTree tree(80000);
    for (int64_t end = 2; end <= 40; end += 2) {
        put(tree, counting(end * kBlock), "", 6000);
        EXPECT_LE(tree.bytes(), 80000);
        EXPECT_EQ(find(tree, counting(end * kBlock)), end * kBlock) << "a state is its entries and one tail";
    }
}

TEST_F(PrefixTreeTest, WhatIsTooLargeChangesNothing) {
    PrefixTree tree(20000), none(0);
    put(tree, counting(100));
    const int64_t bytes = tree.bytes();
    put(tree, counting(100, 0), "", 30000);
    put(tree, counting(100 * kBlock, 0));
    EXPECT_EQ(tree.bytes(), bytes);
    EXPECT_EQ(find(tree, counting(100)), 100);
    put(none, counting(100));
    EXPECT_EQ(none.bytes() + none.marks(), 0);
}

TEST_F(PrefixTreeTest, BytesInUseOutliveTheTree) {
    StoredState state;
    {
        PrefixTree tree(kPlenty);
        put(tree, counting(200));
        state = tree.find("", counting(200), 200);
        tree.clear();
        EXPECT_EQ(tree.bytes() + tree.marks(), 0);
    }
    EXPECT_EQ(state.position, 200);
    EXPECT_EQ(state.tail->size(), 1000u);
}

TEST_F(PrefixTreeTest, MemoryThatRunsOutLeavesItWhole) {
    PrefixTree tree(kPlenty);
    put(tree, counting(300));
    const int64_t bytes = tree.bytes();
    const Tokens longer = counting(1000);
    EXPECT_THROW(tree.put("", longer,
                          {[&](int64_t begin, int64_t end) -> SharedBytes {
                               if (begin >= 600) throw std::bad_alloc();
                               return bytes_of(std::span(longer).subspan(static_cast<size_t>(begin),
                                                                         static_cast<size_t>(end - begin)));
                           },
                           [] { return bytes_of({}); }}),
                 std::bad_alloc);
    EXPECT_EQ(tree.bytes(), bytes);
    EXPECT_EQ(find(tree, longer), 300);
}

/// The same in a plain list.
TEST_F(PrefixTreeTest, AgreesWithAList) {
    std::mt19937 random(1);
    PrefixTree tree(kPlenty);
    std::vector<Tokens> stored;
    for (int i = 0; i < 400; ++i) {
        Tokens tokens(1 + random() % 600);  // few different tokens and change points: many shared prefixes
        for (size_t t = 0; t < tokens.size(); ++t) tokens[t] = t % 97 == 0 ? static_cast<int32_t>(random() % 2) : 0;
        int64_t expected = 0;
        for (const Tokens& one : stored)
            if (one.size() <= tokens.size() && std::equal(one.begin(), one.end(), tokens.begin()))
                expected = std::max(expected, std::ssize(one));
        EXPECT_EQ(find(tree, tokens), expected);
        if (i % 3 == 0) {
            tree.forget("", tokens);
            std::erase_if(stored, [&](const Tokens& one) {
                return one.size() <= tokens.size() && std::equal(one.begin(), one.end(), tokens.begin());
            });
        } else {
            put(tree, tokens);
            stored.push_back(tokens);
        }
    }
}

}  // namespace
}  // namespace thermocline::memory
