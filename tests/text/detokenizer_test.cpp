#include "src/text/detokenizer.h"

#include "src/text/unicode.h"
#include "tests/text/golden_tokenizers.h"

#include <gtest/gtest.h>
#include <random>

namespace thermocline::text {
namespace {

const Tokenizer& small() {
    static const Tokenizer tokenizer(small_data());
    return tokenizer;
}

/// Ids of the single bytes of `bytes`: the worst way a model can spell a text.
std::vector<int32_t> byte_ids(std::string_view bytes) {
    std::vector<int32_t> ids;
    for (size_t i = 0; i < bytes.size(); ++i) ids.push_back(small().token_id(bytes.substr(i, 1)).value());
    return ids;
}

TEST(Detokenizer, HoldsACharacterUntilItIsWhole) {
    Detokenizer detokenizer(small());
    const std::vector<int32_t> ids = byte_ids("a😀é");
    const std::vector<std::string> expected = {"a", "", "", "", "😀", "", "é"};
    ASSERT_EQ(ids.size(), expected.size());
    for (size_t i = 0; i < ids.size(); ++i) EXPECT_EQ(detokenizer.push(ids[i]), expected[i]) << i;
    EXPECT_EQ(detokenizer.held_bytes(), 0u);
    EXPECT_EQ(detokenizer.flush(), "");
}

TEST(Detokenizer, AnUnfinishedCharacterIsReplacedAtTheEndOnly) {
    Detokenizer detokenizer(small());
    for (const int32_t id : byte_ids("\xF0\x9F\x98")) EXPECT_EQ(detokenizer.push(id), "");
    EXPECT_EQ(detokenizer.held_bytes(), 3u);
    EXPECT_EQ(detokenizer.flush(), "\xEF\xBF\xBD");
    EXPECT_EQ(detokenizer.flush(), "");
}

TEST(Detokenizer, AnIllFormedGroupIsReplacedAsSoonAsItIsKnown) {
    Detokenizer detokenizer(small());
    const std::vector<int32_t> ids = byte_ids("\xE4\xB8z\xFF");
    EXPECT_EQ(detokenizer.push(ids[0]), "");
    EXPECT_EQ(detokenizer.push(ids[1]), "");
    EXPECT_EQ(detokenizer.push(ids[2]), "\xEF\xBF\xBDz");
    EXPECT_EQ(detokenizer.push(ids[3]), "\xEF\xBF\xBD");
}

TEST(Detokenizer, SkipsSpecialTokensOnRequest) {
    Detokenizer shown(small());
    Detokenizer skipped(small(), true);
    EXPECT_EQ(shown.push(1), "<｜end▁of▁sentence｜>");
    EXPECT_EQ(skipped.push(1), "");
    EXPECT_EQ(skipped.push(small().token_id("<think>").value()), "<think>");
}

TEST(Detokenizer, StreamedTextIsTheDecodedText) {
    std::mt19937 random(7);
    const int32_t ids_past_the_end = 3;
    for (int round = 0; round < 500; ++round) {
        std::vector<int32_t> ids;
        for (int i = 0; i < 60; ++i) {
            // Single bytes (the low ids) half of the time, to make broken characters common.
            const int32_t range = random() % 2 ? 260 : small().vocab_size() + ids_past_the_end;
            ids.push_back(static_cast<int32_t>(random() % static_cast<uint32_t>(range)));
        }
        Detokenizer detokenizer(small());
        std::string streamed;
        for (const int32_t id : ids) {
            const std::string text = detokenizer.push(id);
            EXPECT_EQ(to_valid_utf8(text), text);
            EXPECT_LE(detokenizer.held_bytes(), 3u);
            streamed += text;
        }
        streamed += detokenizer.flush();
        EXPECT_EQ(streamed, small().decode(ids));
    }
}

}  // namespace
}  // namespace thermocline::text
