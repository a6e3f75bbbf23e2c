#include "src/quant/format.h"

#include "src/base/check.h"

#include <array>

namespace thermocline::quant {
namespace {

// In the order of the enum.
constexpr std::array<FormatTraits, static_cast<size_t>(Format::kCount)> kTraits = {{
    {"F64", 1, 8, false},     {"F32", 1, 4, true},        {"F16", 1, 2, true},        {"BF16", 1, 2, true},
    {"I64", 1, 8, false},     {"I32", 1, 4, false},       {"I16", 1, 2, false},       {"I8", 1, 1, false},
    {"U64", 1, 8, false},     {"U32", 1, 4, false},       {"U16", 1, 2, false},       {"U8", 1, 1, false},
    {"BOOL", 1, 1, false},    {"F8_E4M3", 1, 1, true},    {"F8_E5M2", 1, 1, false},   {"F8_E8M0", 1, 1, false},
    {"F4", 2, 1, true},       {"INT4", 2, 1, true},       {"Q4_0", 32, 18, true},     {"Q4_1", 32, 20, true},
    {"Q5_0", 32, 22, true},   {"Q5_1", 32, 24, true},     {"Q8_0", 32, 34, true},     {"Q2_K", 256, 84, true},
    {"Q3_K", 256, 110, true}, {"Q4_K", 256, 144, true},   {"Q5_K", 256, 176, true},   {"Q6_K", 256, 210, true},
    {"IQ4_NL", 32, 18, true}, {"IQ4_XS", 256, 136, true}, {"IQ2_XXS", 256, 66, true}, {"IQ2_XS", 256, 74, true},
    {"IQ2_S", 256, 82, true}, {"IQ3_XXS", 256, 98, true}, {"IQ3_S", 256, 110, true},  {"IQ1_S", 256, 50, true},
    {"IQ1_M", 256, 56, true}, {"TQ1_0", 256, 54, true},   {"TQ2_0", 256, 66, true},   {"MXFP4", 32, 17, true},
    {"NVFP4", 64, 36, true},  {"Q1_0", 128, 18, true},    {"Q2_0", 64, 18, true},     {"F8_E4M3_B128", 128, 129, true},
}};
static_assert(kTraits.back().block == 128, "a trait row is missing");

struct NamedFormat {
    std::string_view dtype;
    Format format;
};

constexpr NamedFormat kSafetensors[] = {
    {"F64", Format::kF64},     {"F32", Format::kF32},      {"F16", Format::kF16},      {"BF16", Format::kBF16},
    {"I64", Format::kI64},     {"I32", Format::kI32},      {"I16", Format::kI16},      {"I8", Format::kI8},
    {"U64", Format::kU64},     {"U32", Format::kU32},      {"U16", Format::kU16},      {"U8", Format::kU8},
    {"BOOL", Format::kBool},   {"F8_E4M3", Format::kE4M3}, {"F8_E5M2", Format::kE5M2}, {"F8_E8M0", Format::kE8M0},
    {"F4", Format::kE2M1Pair},
};

struct NumberedFormat {
    uint32_t id;
    Format format;
};

constexpr NumberedFormat kGguf[] = {
    {0, Format::kF32},      {1, Format::kF16},         {2, Format::kQ4_0},        {3, Format::kQ4_1},
    {6, Format::kQ5_0},     {7, Format::kQ5_1},        {8, Format::kQ8_0},        {10, Format::kQ2_K},
    {11, Format::kQ3_K},    {12, Format::kQ4_K},       {13, Format::kQ5_K},       {14, Format::kQ6_K},
    {16, Format::kIQ2_XXS}, {17, Format::kIQ2_XS},     {18, Format::kIQ3_XXS},    {19, Format::kIQ1_S},
    {20, Format::kIQ4_NL},  {21, Format::kIQ3_S},      {22, Format::kIQ2_S},      {23, Format::kIQ4_XS},
    {24, Format::kI8},      {25, Format::kI16},        {26, Format::kI32},        {27, Format::kI64},
    {28, Format::kF64},     {29, Format::kIQ1_M},      {30, Format::kBF16},       {34, Format::kTQ1_0},
    {35, Format::kTQ2_0},   {39, Format::kMxfp4Block}, {40, Format::kNvfp4Block}, {41, Format::kQ1_0},
};

constexpr uint32_t kAmbiguousGgufId = 42;

}  // namespace

const FormatTraits& traits(Format format) {
    CHECK(format < Format::kCount);
    return kTraits[static_cast<size_t>(format)];
}

int64_t bytes_of(Format format, int64_t elements) {
    const FormatTraits& t = traits(format);
    CHECK(elements >= 0 && elements % t.block == 0);
    return elements / t.block * t.block_bytes;
}

std::optional<Format> from_safetensors(std::string_view dtype) {
    for (const NamedFormat& row : kSafetensors) {
        if (row.dtype == dtype) return row.format;
    }
    return std::nullopt;
}

std::optional<Format> from_gguf(uint32_t type_id) {
    for (const NumberedFormat& row : kGguf) {
        if (row.id == type_id) return row.format;
    }
    return std::nullopt;
}

std::string_view refused_gguf_type(uint32_t type_id) {
    if (type_id == kAmbiguousGgufId || from_gguf(type_id)) return "";
    if (type_id == 9 || type_id == 15) return "Q8_1 and Q8_K exist only at run time, never in files";
    if (type_id == 36) return "removed from GGUF (was IQ4_NL_4_4); ik_llama.cpp uses the id for I2_S, not supported";
    if (type_id == 4 || type_id == 5) return "removed from GGUF (were Q4_2 and Q4_3)";
    if ((type_id >= 31 && type_id <= 33) || type_id == 37 || type_id == 38) {
        return "removed from GGUF (were interleaved repackings)";
    }
    if ((type_id >= 97 && type_id <= 99) || (type_id >= 133 && type_id <= 158)) {
        return "a private type of ik_llama.cpp, not supported";
    }
    if ((type_id >= 202 && type_id <= 230) || (type_id >= 330 && type_id <= 399)) {
        return "a private row-interleaved type of ik_llama.cpp, not supported";
    }
    return "unknown type id";
}

}  // namespace thermocline::quant
