// NaN and infinity in weights: every format that can hold one is refused with the tensor and the place.
#include "src/model/scale_check.h"

#include "src/quant/format.h"
#include "tests/model/model_files.h"

#include <cmath>
#include <gtest/gtest.h>

namespace thermocline::model {
namespace {

using quant::Format;

constexpr int64_t kRows = 3, kCols = 512;

/// What check_codes says to a matrix of zeros with `bytes` at `offset` of the last block of row 1.
std::string verdict(Format format, int64_t offset, const std::string& bytes) {
    const quant::FormatTraits& traits = quant::traits(format);
    quant::Matrix matrix;
    matrix.format = format;
    matrix.rows = kRows;
    matrix.cols = kCols;
    matrix.row_bytes = quant::bytes_of(format, kCols);
    std::string data(static_cast<size_t>(kRows * matrix.row_bytes), '\0');
    data.replace(static_cast<size_t>(2 * matrix.row_bytes - traits.block_bytes + offset), bytes.size(), bytes);
    matrix.data = reinterpret_cast<const std::byte*>(data.data());
    return error_of([&] { check_codes(matrix, "w"); });
}

void expect_refused(Format format, int64_t offset, const std::string& bytes) {
    const quant::FormatTraits& traits = quant::traits(format);
    const std::string message = verdict(format, offset, bytes);
    const std::string place = "[1, " + std::to_string(kCols - traits.block) + "]";
    EXPECT_NE(message.find("tensor w (" + std::string(traits.name) + ") holds"), std::string::npos) << message;
    EXPECT_NE(message.find(place), std::string::npos) << message;
}

TEST(ScaleCheck, PlainNumbersMustBeFinite) {
    for (const char* bytes : {"\x80\x7f", "\xc0\xff"}) expect_refused(Format::kBF16, 0, std::string(bytes, 2));
    for (const char* bytes : {"\x01\x7c", "\x00\xfc"}) expect_refused(Format::kF16, 0, std::string(bytes, 2));
    expect_refused(Format::kF32, 0, bytes_of_floats({NAN}));
    expect_refused(Format::kF32, 0, bytes_of_floats({-INFINITY}));
    EXPECT_EQ(verdict(Format::kF32, 0, bytes_of_floats({3e38f})), "(no error)");
    EXPECT_EQ(verdict(Format::kF16, 0, std::string("\xff\x7b", 2)), "(no error)");
}

TEST(ScaleCheck, ScalesInsideBlocksMustBeFinite) {
    const std::string nan("\x00\x7e", 2), infinity("\x00\x7c", 2);
    for (const Format format :
         {Format::kQ4_0, Format::kQ4_1, Format::kQ5_0, Format::kQ5_1, Format::kQ8_0, Format::kQ4_K, Format::kQ5_K,
          Format::kIQ4_NL, Format::kIQ4_XS, Format::kIQ2_XXS, Format::kIQ2_XS, Format::kIQ2_S, Format::kIQ3_XXS,
          Format::kIQ3_S, Format::kIQ1_S, Format::kQ1_0, Format::kQ2_0}) {
        expect_refused(format, 0, nan);
        expect_refused(format, 0, infinity);
        EXPECT_EQ(verdict(format, 0, "\1\1"), "(no error)");
    }
    for (const Format format : {Format::kQ4_1, Format::kQ5_1, Format::kQ4_K, Format::kQ5_K})
        expect_refused(format, 2, nan);
    expect_refused(Format::kQ2_K, 80, nan);
    expect_refused(Format::kQ2_K, 82, infinity);
    expect_refused(Format::kQ3_K, 108, nan);
    expect_refused(Format::kQ6_K, 208, nan);
    expect_refused(Format::kTQ1_0, 52, nan);
    expect_refused(Format::kTQ2_0, 64, nan);
    expect_refused(Format::kMxfp4Block, 0, "\xff");
    expect_refused(Format::kE4M3Block128, 0, "\xff");
    expect_refused(Format::kE4M3Block128, 128, "\x7f");
    EXPECT_EQ(verdict(Format::kMxfp4Block, 1, "\xff"), "(no error)");
}

}  // namespace
}  // namespace thermocline::model
