#include "src/text/tokenizer_json.h"

#include "src/base/error.h"
#include "tests/text/golden_tokenizers.h"

#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <gtest/gtest.h>

namespace thermocline::text {
namespace {

/// tokenizer-small.json after `change`.
std::string changed(const std::function<void(Json&)>& change) {
    Json root = golden_json("tokenizer-small.json");
    change(root);
    return dump_json(root);
}

std::string error_of(const std::string& text, std::string_view config = {}) {
    try {
        Tokenizer tokenizer(parse_tokenizer_json(text, config, "T"));
        return "no error";
    } catch (const Error& error) {
        return error.what();
    }
}

Json template_processing(const char* single) {
    return parse_json(std::string(R"({"type": "TemplateProcessing", "single": )") + single + "}", "template");
}

constexpr const char* kBosThenText = R"([{"SpecialToken": {"id": "<｜begin▁of▁sentence｜>", "type_id": 0}},
                                         {"Sequence": {"id": "A", "type_id": 0}}])";

TEST(TokenizerJson, MergesMayBeStringsOrPairs) {
    const std::string strings = changed([](Json& root) {
        for (Json& merge : root["model"]["merges"]) {
            if (merge.is_array()) merge = merge[0].get<std::string>() + " " + merge[1].get<std::string>();
        }
    });
    const std::string pairs = changed([](Json& root) {
        for (Json& merge : root["model"]["merges"]) {
            if (merge.is_array()) continue;
            const auto text = merge.get<std::string>();
            merge = Json::array({text.substr(0, text.find(' ')), text.substr(text.find(' ') + 1)});
        }
    });
    const TokenizerData a = parse_tokenizer_json(strings, {}, "strings");
    const TokenizerData b = parse_tokenizer_json(pairs, {}, "pairs");
    EXPECT_FALSE(a.merges.empty());
    EXPECT_EQ(a.merges, b.merges);
    EXPECT_EQ(a.tokens, b.tokens);
}

TEST(TokenizerJson, NewlinesInTheRegexMayBeEscaped) {
    const std::string escaped = changed([](Json& root) {
        Json& regex = root["pre_tokenizer"]["pretokenizers"][2]["pattern"]["Regex"];
        std::string text;
        for (const char c : regex.get<std::string>()) {
            if (c == '\r')
                text += "\\r";
            else if (c == '\n')
                text += "\\n";
            else
                text += c;
        }
        ASSERT_NE(regex, text);
        regex = text;
    });
    EXPECT_EQ(error_of(escaped), "no error");
}

TEST(TokenizerJson, ConfigGivesBosAndEos) {
    const std::string small = golden_text("tokenizer-small.json");
    TokenizerData data = parse_tokenizer_json(small, {}, "T");
    EXPECT_EQ(data.bos_id, std::nullopt);
    EXPECT_FALSE(data.add_bos);
    data = parse_tokenizer_json(small, R"({"bos_token": "<｜begin▁of▁sentence｜>", "eos_token": null})", "T");
    EXPECT_EQ(data.bos_id, 0);
    EXPECT_EQ(data.eos_id, std::nullopt);
    EXPECT_FALSE(data.add_bos);
    data = parse_tokenizer_json(small,
                                R"({"bos_token": {"content": "<｜begin▁of▁sentence｜>"}, "add_bos_token": true})", "T");
    EXPECT_TRUE(data.add_bos);

    EXPECT_NE(error_of(small, R"({"bos_token": "<s>"})").find("bos_token is '<s>'"), std::string::npos);
    EXPECT_NE(error_of(small, R"({"eos_token": 3})").find("eos_token is 3"), std::string::npos);
    EXPECT_NE(error_of(small, R"({"add_bos_token": "yes"})").find("add_bos_token is \"yes\""), std::string::npos);
    EXPECT_NE(error_of(small, R"({"add_bos_token": true})").find("no BOS"), std::string::npos);
    EXPECT_NE(error_of(small, "[]").find("tokenizer_config is array"), std::string::npos);
}

TEST(TokenizerJson, TemplateWithBosSetsAddBosUnlessTheConfigDecides) {
    const std::string with_bos =
        changed([](Json& root) { root["post_processor"] = template_processing(kBosThenText); });
    TokenizerData data = parse_tokenizer_json(with_bos, {}, "T");
    EXPECT_TRUE(data.add_bos);
    EXPECT_EQ(data.bos_id, 0);
    EXPECT_FALSE(parse_tokenizer_json(with_bos, kV4Config, "T").add_bos);

    const std::string plain = changed([](Json& root) {
        root["post_processor"] = {
            {"type", "Sequence"},
            {"processors",
             {{{"type", "ByteLevel"}}, template_processing(R"([{"Sequence": {"id": "A", "type_id": 0}}])")}}};
    });
    EXPECT_FALSE(parse_tokenizer_json(plain, {}, "T").add_bos);

    const std::string with_eos = changed([](Json& root) {
        root["post_processor"] = template_processing(R"([{"Sequence": {"id": "A"}}, {"SpecialToken": {"id": "e"}}])");
    });
    EXPECT_NE(error_of(with_eos).find("post_processor.single"), std::string::npos);
}

TEST(TokenizerJson, ReadsADirectory) {
    const std::filesystem::path directory = std::filesystem::path(testing::TempDir()) / "thermocline_tokenizer_json";
    std::filesystem::create_directories(directory);
    std::ofstream(directory / "tokenizer.json") << golden_text("tokenizer-small.json");
    std::filesystem::remove(directory / "tokenizer_config.json");
    EXPECT_EQ(load_tokenizer_json(directory).eos_id, std::nullopt);
    std::ofstream(directory / "tokenizer_config.json") << kV4Config;
    EXPECT_EQ(load_tokenizer_json(directory).eos_id, 1);
    std::filesystem::remove_all(directory);
    EXPECT_THROW(load_tokenizer_json(directory), Error);
}

TEST(TokenizerJson, RefusesWhatWouldChangeIds) {
    struct Case {
        std::function<void(Json&)> change;
        std::string named;
    };
    const std::vector<Case> cases = {
        {[](Json& r) {
             r["normalizer"] = {{"type", "NFC"}};
         },
         "normalizer is {\"type\":\"NFC\"}"},
        {[](Json& r) { r["decoder"]["type"] = "Metaspace"; }, "decoder is"},
        {[](Json& r) { r["model"]["type"] = "Unigram"; }, "model.type is \"Unigram\""},
        {[](Json& r) { r["model"]["byte_fallback"] = true; }, "model.byte_fallback is true"},
        {[](Json& r) { r["model"]["ignore_merges"] = true; }, "model.ignore_merges is true"},
        {[](Json& r) { r["model"]["dropout"] = 0.1; }, "model.dropout is 0.1"},
        {[](Json& r) { r["model"]["unk_token"] = "<unk>"; }, "model.unk_token is \"<unk>\""},
        {[](Json& r) { r["model"]["vocab"] = 3; }, "model.vocab is number"},
        {[](Json& r) { r["model"]["vocab"]["!"] = -1; }, "token '!' has id -1"},
        {[](Json& r) { r["model"]["vocab"]["!"] = 1u << 20; }, "token '!' has id 1048576"},
        {[](Json& r) { r["model"]["vocab"]["!"] = 18446744073709551615u; }, "token '!' has id 18446744073709551615"},
        {[](Json& r) { r["model"]["vocab"]["!"] = 1.5; }, "token '!' has id 1.5"},
        {[](Json& r) { r["model"]["vocab"]["!"] = r["model"]["vocab"]["\""]; }, "is both"},
        {[](Json& r) { r["model"]["vocab"].erase("!"); }, "no token for the single byte 33"},
        {[](Json& r) { r["model"]["vocab"][""] = 5000; }, "id 5000 is empty"},
        {[](Json& r) { r["model"]["merges"] = {"ab"}; }, "model.merges[0] is \"ab\""},
        {[](Json& r) {
             r["model"]["merges"] = Json::array({Json::array({"a", 1})});
         },
         "model.merges[0] is"},
        {[](Json& r) { r["model"]["merges"] = {"Ġ zzz"}; }, "merge 0 needs 'zzz'"},
        {[](Json& r) { r["model"]["merges"] = {"! ~"}; }, "merge 0 needs '!~'"},
        {[](Json& r) { r["added_tokens"][0]["lstrip"] = true; }, "lstrip is true"},
        {[](Json& r) { r["added_tokens"][0]["id"] = 5; }, "id 5 is both"},
        {[](Json& r) {
             Json second = r["added_tokens"][0];
             second["content"] = "a second token";
             second["id"] = 5000;
             r["added_tokens"].push_back(second);
             second["content"] = "a third token";
             r["added_tokens"].push_back(second);
         },
         "id 5000 is both 'a second token' and the added token 'a third token'"},
        {[](Json& r) {
             // In the byte alphabet of the vocabulary this is a space, as an added token the letter itself.
             r["added_tokens"][0]["id"] = r["model"]["vocab"]["Ġ"];
             r["added_tokens"][0]["content"] = "Ġ";
         },
         "is both ' ' and the added token"},
        {[](Json& r) { r["added_tokens"][0]["content"] = nullptr; }, "added_tokens.content is null"},
        {[](Json& r) { r["added_tokens"].push_back(r["added_tokens"][4]); }, "are both the added token"},
        {[](Json& r) { r["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "\\p{N}{1,2}"; }, "\\p{N}{1,2}"},
        {[](Json& r) { r["pre_tokenizer"]["pretokenizers"][1]["behavior"] = "Removed"; }, "expected an Isolated Split"},
        {[](Json& r) { r["pre_tokenizer"]["pretokenizers"][1]["invert"] = true; }, "expected an Isolated Split"},
        {[](Json& r) { r["pre_tokenizer"]["pretokenizers"][3]["use_regex"] = true; }, "expected use_regex"},
        {[](Json& r) { r["pre_tokenizer"]["pretokenizers"].erase(0); }, "none of the known sets"},
        {[](Json& r) { r["pre_tokenizer"] = nullptr; }, "pre_tokenizer is null"},
        {[](Json& r) { r = Json::array(); }, "pre_tokenizer is null"},
    };
    for (const Case& c : cases) {
        const std::string error = error_of(changed(c.change));
        EXPECT_NE(error.find(c.named), std::string::npos) << error << "\nexpected to name " << c.named;
    }
    EXPECT_NE(error_of("{").find("not valid JSON"), std::string::npos);
}

TEST(TokenizerJson, AHugeVocabularyIsReadInLinearTime) {
    const std::string text = changed([](Json& root) {
        Json::object_t& vocabulary = root["model"]["vocab"].get_ref<Json::object_t&>();
        // Appended to the underlying vector: inserting by key would search linearly here, too.
        for (int i = 0; i < 200000; ++i) vocabulary.push_back({"zz" + std::to_string(i), 2000 + i});
    });
    const auto start = std::chrono::steady_clock::now();
    const Tokenizer tokenizer(parse_tokenizer_json(text, {}, "T"));
    EXPECT_GE(tokenizer.vocab_size(), 200000);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
}

}  // namespace
}  // namespace thermocline::text
