#include "src/text/tokenizer.h"

#include "src/base/error.h"
#include "src/text/tokenizer_gguf.h"
#include "tests/text/golden_tokenizers.h"

#include <algorithm>
#include <gtest/gtest.h>
#include <random>
#include <thread>

namespace thermocline::text {
namespace {

using Ids = std::vector<int32_t>;

const Tokenizer& v4() {
    static const Tokenizer tokenizer(v4_data());
    return tokenizer;
}

const Tokenizer& small() {
    static const Tokenizer tokenizer(small_data());
    return tokenizer;
}

/// V3 is V4 without the added tokens from 128815 on.
Tokenizer v3() {
    TokenizerData data = v4_data();
    std::erase_if(data.added_tokens, [](const AddedToken& token) { return token.id > 128814; });
    data.add_bos = true;
    return Tokenizer(std::move(data));
}

void expect_golden(const Tokenizer& tokenizer, const std::string& file, size_t cases) {
    const Json golden = golden_json(file);
    ASSERT_EQ(golden.size(), cases);
    for (const Json& entry : golden) {
        const auto text = entry["text"].get<std::string>();
        const auto ids = entry["ids"].get<Ids>();
        EXPECT_EQ(tokenizer.encode(text), ids) << text;
        EXPECT_EQ(tokenizer.decode(ids), text);
    }
}

std::string raw_bytes(const Tokenizer& tokenizer, const Ids& ids) {
    std::string bytes;
    for (const int32_t id : ids) bytes += tokenizer.token_bytes(id);
    return bytes;
}

std::string repeated(std::string_view text, size_t times) {
    std::string out;
    for (size_t i = 0; i < times; ++i) out += text;
    return out;
}

TEST(Tokenizer, DeepSeekV4Goldens) { expect_golden(v4(), "tokenizer-deepseek-v4.json", 201); }

TEST(Tokenizer, DeepSeekV3Goldens) { expect_golden(v3(), "tokenizer-deepseek-v3.json", 171); }

TEST(Tokenizer, PromptGoldensHaveTheirIds) {
    int checked = 0;
    for (const Json& entry : golden_json("prompt-deepseek-v4.json")) {
        if (!entry.contains("prompt_ids")) continue;
        EXPECT_EQ(v4().encode(entry["prompt"].get<std::string>()), entry["prompt_ids"].get<Ids>()) << entry["name"];
        ++checked;
    }
    EXPECT_EQ(checked, 35);
}

TEST(Tokenizer, RandomTextsAgreeWithHfTokenizers) {
    const Json vectors = golden_json("tokenizer-small-vectors.json")["encode"];
    ASSERT_EQ(vectors.size(), 3000u);
    for (const Json& vector : vectors) {
        const auto text = vector[0].get<std::string>();
        const auto ids = vector[1].get<Ids>();
        EXPECT_EQ(small().encode(text), ids) << text;
        EXPECT_EQ(small().decode(ids), text);
    }
}

TEST(Tokenizer, SpecialTokensHaveTheirPublishedIds) {
    const std::vector<std::pair<std::string, int32_t>> expected = {{"<｜begin▁of▁sentence｜>", 0},
                                                                   {"<｜end▁of▁sentence｜>", 1},
                                                                   {"<｜User｜>", 128803},
                                                                   {"<｜Assistant｜>", 128804},
                                                                   {"<think>", 128821},
                                                                   {"</think>", 128822},
                                                                   {"｜DSML｜", 128825},
                                                                   {"<｜title｜>", 128836},
                                                                   {"!", 3},
                                                                   {" ", 223},
                                                                   {"\n", 201},
                                                                   {"\t", 200}};
    for (const auto& [text, id] : expected) {
        EXPECT_EQ(v4().token_id(text), id) << text;
        EXPECT_EQ(v4().token_bytes(id), text);
    }
    EXPECT_EQ(v4().token_id("<｜System｜>"), std::nullopt);
    EXPECT_EQ(v4().token_id(""), std::nullopt);
    EXPECT_EQ(v4().vocab_size(), 129280);
    EXPECT_EQ(v4().bos_id(), 0);
    EXPECT_EQ(v4().eos_id(), 1);
    EXPECT_FALSE(v4().add_bos());
    EXPECT_TRUE(v3().add_bos());
    EXPECT_TRUE(v4().is_special(1));
    EXPECT_FALSE(v4().is_special(128803));  // the file says so
    EXPECT_TRUE(v4().is_added(128803));
    EXPECT_FALSE(v4().is_added(223));
}

TEST(Tokenizer, AddedTokensAreTextWhenNotParsed) {
    EXPECT_EQ(v4().encode("<think></think>", true), (Ids{128821, 128822}));
    const Ids plain = v4().encode("<think></think>", false);
    EXPECT_EQ(plain, v3().encode("<think></think>"));
    EXPECT_EQ(v4().decode(plain), "<think></think>");
}

TEST(Tokenizer, SkipSpecialLeavesSpecialTokensOut) {
    EXPECT_EQ(v4().decode(Ids{0, 223, 128821, 1}), "<｜begin▁of▁sentence｜> <think><｜end▁of▁sentence｜>");
    EXPECT_EQ(v4().decode(Ids{0, 223, 128821, 1}, true), " <think>");
}

TEST(Tokenizer, IdsWithoutATokenDecodeToNothing) {
    EXPECT_EQ(v4().decode(Ids{-1, 129280, std::numeric_limits<int32_t>::max(), std::numeric_limits<int32_t>::min()}),
              "");
    EXPECT_EQ(v4().token_bytes(129280), "");
    EXPECT_FALSE(v4().is_special(-1));
}

TEST(Tokenizer, AnyBytesAreKept) {
    std::mt19937 random(1);
    const std::string_view alphabet = "a1 \n<\xE4\xB8\x96\xFF\xC3\x28\x80\xF0\x9F";
    for (int i = 0; i < 2000; ++i) {
        std::string text;
        for (int length = static_cast<int>(random() % 40); length > 0; --length) {
            text += i % 2 ? static_cast<char>(random()) : alphabet[random() % alphabet.size()];
        }
        EXPECT_EQ(raw_bytes(small(), small().encode(text)), text);
        EXPECT_EQ(raw_bytes(small(), small().encode(text, false)), text);
    }
}

TEST(Tokenizer, LongRunsOfOneCharacterTakeLinearTime) {
    // One piece each; quadratic merging would need 10^12 steps. "<" also starts an added token at every place.
    for (const std::string_view unit : {"a", " ", "\n", "<", "=", "1", "世", "\xFF", "e\xCC\x81", "<xy", "</thin"}) {
        const std::string text = repeated(unit, 1000000 / unit.size());
        EXPECT_EQ(raw_bytes(small(), small().encode(text)), text) << unit;
    }
}

TEST(Tokenizer, ThreadsShareOneTokenizer) {
    const Json vectors = golden_json("tokenizer-small-vectors.json")["encode"];
    std::vector<std::thread> threads;
    std::array<int, 4> wrong{};
    for (size_t t = 0; t < wrong.size(); ++t) {
        threads.emplace_back([&, t] {
            for (const Json& vector : vectors) {
                wrong[t] += small().encode(vector[0].get_ref<const std::string&>()) != vector[1].get<Ids>();
            }
        });
    }
    for (std::thread& thread : threads) thread.join();
    for (const int count : wrong) EXPECT_EQ(count, 0);
}

TEST(PreTokenizer, PiecesOfTheSplits) {
    const auto pieces = [](std::string_view text) {
        std::vector<std::string> out;
        PieceScanner scanner(text);
        for (std::string_view piece; scanner.next(piece);) out.emplace_back(piece);
        return out;
    };
    using Pieces = std::vector<std::string>;
    EXPECT_EQ(pieces(""), Pieces{});
    EXPECT_EQ(pieces("1234567"), (Pieces{"123", "456", "7"}));
    EXPECT_EQ(pieces("   leading"), (Pieces{"  ", " leading"}));
    EXPECT_EQ(pieces("a  1"), (Pieces{"a", "  ", "1"}));
    EXPECT_EQ(pieces("a \n  b"), (Pieces{"a", " \n", " ", " b"}));
    EXPECT_EQ(pieces("x.foo != y"), (Pieces{"x", ".foo", " !=", " y"}));
    EXPECT_EQ(pieces("end.\n\nNext"), (Pieces{"end", ".\n\n", "Next"}));
    EXPECT_EQ(pieces("こ・ん 世界"), (Pieces{"こ", "・", "ん", " ", "世界"}));
    EXPECT_EQ(pieces("\x01\x02"
                     "ab\x01"),
              (Pieces{"\x01",
                      "\x02"
                      "ab",
                      "\x01"}));
    EXPECT_EQ(pieces("\u3040\u3040"), (Pieces{"\u3040\u3040"}));
}

TEST(TokenizerGguf, SameIdsAsFromJson) {
    TokenizerData json = v4_data();
    GgufTokenizer gguf{.model = "gpt2", .pre = "joyai-llm", .bos_id = 0, .eos_id = 1};
    gguf.tokens = json.tokens;
    gguf.tokens.resize(129280);
    gguf.token_types.assign(129280, 1);
    for (const AddedToken& token : json.added_tokens) {
        gguf.tokens[token.id] = token.content;
        gguf.token_types[token.id] = token.special ? 3 : 4;
    }
    for (const auto& [left, right] : json.merges) gguf.merges.push_back(left + " " + right);
    const GgufTokenizer good = gguf;
    expect_golden(Tokenizer(tokenizer_from_gguf(std::move(gguf))), "tokenizer-deepseek-v4.json", 201);

    const auto refused = [&](auto&& spoil, const std::string& named) {
        GgufTokenizer bad = good;
        spoil(bad);
        try {
            Tokenizer tokenizer(tokenizer_from_gguf(std::move(bad)));
            ADD_FAILURE() << "accepted, expected an error about " << named;
        } catch (const Error& error) {
            EXPECT_NE(std::string(error.what()).find(named), std::string::npos) << error.what();
        }
    };
    refused([](GgufTokenizer& g) { g.model = "llama"; }, "tokenizer.ggml.model is 'llama'");
    refused([](GgufTokenizer& g) { g.pre = "deepseek-llm"; }, "tokenizer.ggml.pre is 'deepseek-llm'");
    refused([](GgufTokenizer& g) { g.tokens.clear(); }, "tokenizer.ggml.tokens has 0");
    refused([](GgufTokenizer& g) { g.token_types.pop_back(); }, "tokenizer.ggml.token_type has 129279");
    refused([](GgufTokenizer& g) { g.bos_id = 129280; }, "tokenizer.ggml.bos_token_id is 129280");
    refused([](GgufTokenizer& g) { g.eos_id = -1; }, "tokenizer.ggml.eos_token_id is -1");
    refused([](GgufTokenizer& g) { g.merges[5] = "ab"; }, "tokenizer.ggml.merges[5] is 'ab'");
    refused([](GgufTokenizer& g) { g.merges[5] = "a qqqqq"; }, "merge 5 needs 'qqqqq'");
    refused([](GgufTokenizer& g) { g.tokens[3] = "\""; }, "are both '\"'");
    refused([](GgufTokenizer& g) { g.bos_id.reset(), g.add_bos = true; }, "add_bos");
}

}  // namespace
}  // namespace thermocline::text
