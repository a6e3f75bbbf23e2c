#include "src/quant/format.h"

#include <gtest/gtest.h>
#include <set>
#include <string>

namespace thermocline::quant {
namespace {

struct Expected {
    uint32_t id;
    const char* name;
    int block, bytes;
};

TEST(Format, GgufIdsHaveTheSizesOfTheTable) {
    const Expected table[] = {
        {0, "F32", 1, 4},         {1, "F16", 1, 2},         {30, "BF16", 1, 2},      {2, "Q4_0", 32, 18},
        {3, "Q4_1", 32, 20},      {6, "Q5_0", 32, 22},      {7, "Q5_1", 32, 24},     {8, "Q8_0", 32, 34},
        {10, "Q2_K", 256, 84},    {11, "Q3_K", 256, 110},   {12, "Q4_K", 256, 144},  {13, "Q5_K", 256, 176},
        {14, "Q6_K", 256, 210},   {16, "IQ2_XXS", 256, 66}, {17, "IQ2_XS", 256, 74}, {18, "IQ3_XXS", 256, 98},
        {19, "IQ1_S", 256, 50},   {20, "IQ4_NL", 32, 18},   {21, "IQ3_S", 256, 110}, {22, "IQ2_S", 256, 82},
        {23, "IQ4_XS", 256, 136}, {29, "IQ1_M", 256, 56},   {24, "I8", 1, 1},        {25, "I16", 1, 2},
        {26, "I32", 1, 4},        {27, "I64", 1, 8},        {28, "F64", 1, 8},       {34, "TQ1_0", 256, 54},
        {35, "TQ2_0", 256, 66},   {39, "MXFP4", 32, 17},    {40, "NVFP4", 64, 36},   {41, "Q1_0", 128, 18},
    };
    std::set<uint32_t> accepted;
    for (const Expected& row : table) {
        const auto format = from_gguf(row.id);
        ASSERT_TRUE(format) << row.name;
        EXPECT_EQ(traits(*format).name, row.name);
        EXPECT_EQ(traits(*format).block, row.block) << row.name;
        EXPECT_EQ(traits(*format).block_bytes, row.bytes) << row.name;
        EXPECT_EQ(refused_gguf_type(row.id), "") << row.name;
        accepted.insert(row.id);
    }
    for (uint32_t id = 0; id < 1000; ++id) {
        if (accepted.count(id)) continue;
        EXPECT_FALSE(from_gguf(id)) << id;
        EXPECT_EQ(refused_gguf_type(id).empty(), id == 42) << id;
    }
    EXPECT_EQ(refused_gguf_type(42), "");
    EXPECT_FALSE(from_gguf(UINT32_MAX));
}

TEST(Format, RefusalsSayWhy) {
    const auto says = [](uint32_t id, const char* word) {
        EXPECT_NE(refused_gguf_type(id).find(word), std::string_view::npos) << id;
    };
    for (const uint32_t id : {9u, 15u}) says(id, "run time");
    for (const uint32_t id : {4u, 5u, 31u, 32u, 33u, 36u, 37u, 38u}) says(id, "removed");
    for (const uint32_t id : {36u, 97u, 99u, 133u, 134u, 158u, 202u, 230u, 330u, 399u}) says(id, "ik_llama.cpp");
    for (const uint32_t id : {43u, 96u, 159u, 231u, 400u, UINT32_MAX}) says(id, "unknown");
}

TEST(Format, SafetensorsNames) {
    EXPECT_EQ(from_safetensors("BF16"), Format::kBF16);
    EXPECT_EQ(from_safetensors("F8_E4M3"), Format::kE4M3);
    EXPECT_EQ(from_safetensors("F8_E8M0"), Format::kE8M0);
    EXPECT_EQ(from_safetensors("F4"), Format::kE2M1Pair);
    EXPECT_EQ(from_safetensors("BOOL"), Format::kBool);
    for (const char* name : {"", "bf16", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "C64", "F6_E2M3", "Q4_0"}) {
        EXPECT_FALSE(from_safetensors(name)) << name;
    }
}

TEST(Format, EveryTraitRowIsFilled) {
    std::set<std::string_view> names;
    for (int i = 0; i < static_cast<int>(Format::kCount); ++i) {
        const FormatTraits& t = traits(static_cast<Format>(i));
        EXPECT_TRUE(names.insert(t.name).second) << t.name;
        EXPECT_GT(t.block, 0);
        EXPECT_GT(t.block_bytes, 0);
    }
    EXPECT_EQ(traits(Format::kE2M1Pair).name, "F4");
    EXPECT_EQ(traits(Format::kInt4Pair).name, "INT4");
    EXPECT_EQ(traits(Format::kQ2_0).block_bytes, 18);
    EXPECT_EQ(traits(Format::kE4M3Block128).name, "F8_E4M3_B128");
    EXPECT_FALSE(traits(Format::kI32).weight);
    EXPECT_TRUE(traits(Format::kE4M3).weight);
    EXPECT_TRUE(traits(Format::kE4M3Block128).weight);
}

TEST(Format, BytesOf) {
    EXPECT_EQ(bytes_of(Format::kBF16, 7), 14);
    EXPECT_EQ(bytes_of(Format::kE2M1Pair, 64), 32);
    EXPECT_EQ(bytes_of(Format::kQ4_K, 512), 288);
    EXPECT_EQ(bytes_of(Format::kQ4_K, 0), 0);
    EXPECT_DEATH(bytes_of(Format::kQ4_K, 128), "CHECK");
}

}  // namespace
}  // namespace thermocline::quant
