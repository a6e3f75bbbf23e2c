#include "src/text/unicode.h"

#include "tests/text/golden_tokenizers.h"

#include <gtest/gtest.h>
#include <map>

namespace thermocline::text {
namespace {

std::string from_hex(const std::string& hex) {
    std::string bytes;
    for (size_t i = 0; i < hex.size(); i += 2) bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
    return bytes;
}

TEST(Unicode, CountsOfEachClassAreThoseOfUnicode16) {
    // The counts that the regex engine of HF tokenizers 0.23.3 gives for \p{L} ... \s, and the named CJK ranges.
    const std::map<int, int> expected = {{kLetter, 141028}, {kMark, 2501}, {kNumber, 1911}, {kPunctuation, 855},
                                         {kSymbol, 8514},   {kSpace, 25},  {kNewline, 2},   {kCjk, 21094}};
    for (const auto& [bit, count] : expected) {
        int found = 0;
        for (uint32_t c = 0; c < 0x110000; ++c) found += (char_class_table()[c] & bit) != 0;
        EXPECT_EQ(found, count) << "class bit " << bit;
    }
}

TEST(Unicode, ClassesOfCharactersThatAreEasyToGetWrong) {
    const uint8_t* classes = char_class_table();
    EXPECT_EQ(classes[0x2167], kNumber);  // roman numeral eight
    EXPECT_EQ(classes[0xBD], kNumber);    // one half
    EXPECT_EQ(classes[0x85], kSpace);     // not a newline for the regexes
    EXPECT_EQ(classes[0x0A], kSpace | kNewline);
    EXPECT_EQ(classes[0x0B], kSpace);
    EXPECT_EQ(classes[0x1C], 0);  // Python's str.isspace, but not White_Space
    EXPECT_EQ(classes[0xFEFF], 0);
    EXPECT_EQ(classes[0x200B], 0);
    EXPECT_EQ(classes[0x9FA5], kLetter | kCjk);
    EXPECT_EQ(classes[0x9FA6], kLetter);
    EXPECT_EQ(classes[0x30FB], kPunctuation | kCjk);
    EXPECT_EQ(classes[0x3040], kCjk);  // unassigned, but inside the range
    EXPECT_EQ(classes[0x24], kSymbol);
}

TEST(Unicode, EveryCodePointSurvivesEncodingAndDecoding) {
    for (char32_t c = 0; c < 0x110000; ++c) {
        std::string text;
        append_code_point(c, text);
        const Utf8Char decoded = decode_utf8(text, 0);
        if (c >= 0xD800 && c < 0xE000) {
            ASSERT_EQ(decoded.status, Utf8Char::kInvalid);
            continue;
        }
        ASSERT_EQ(decoded.status, Utf8Char::kValid);
        ASSERT_EQ(decoded.code_point, c);
        ASSERT_EQ(decoded.length, text.size());
    }
}

TEST(Unicode, IllFormedGroupsAreReplacedAsPythonDoes) {
    const Json vectors = golden_json("tokenizer-small-vectors.json")["replace"];
    ASSERT_EQ(vectors.size(), 1000u);
    for (const Json& vector : vectors) {
        const auto hex = vector[0].get<std::string>();
        EXPECT_EQ(to_valid_utf8(from_hex(hex)), vector[1].get<std::string>()) << hex;
    }
}

TEST(Unicode, ATruncatedEndIsLeftAndReported) {
    std::string out;
    EXPECT_EQ(append_utf8("ab\xF0\x9F\x98", out), 2u);
    EXPECT_EQ(out, "ab");
    EXPECT_EQ(decode_utf8("\xE4\xB8", 0).status, Utf8Char::kTruncated);
    EXPECT_EQ(decode_utf8("\xE4\xB8", 0).length, 2);
    EXPECT_EQ(decode_utf8("\xE4"
                          "A",
                          0)
                  .status,
              Utf8Char::kInvalid);
    EXPECT_EQ(to_valid_utf8("ab\xF0\x9F\x98"), "ab\xEF\xBF\xBD");
}

}  // namespace
}  // namespace thermocline::text
