#include "src/model/scale_check.h"

#include "src/base/error.h"
#include "src/quant/scalar.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace thermocline::model {

namespace {

using quant::Format;

// Matrices up to this size are looked at whole, of larger ones a stretch of some rows.
constexpr int64_t kWholeBytes = int64_t{1} << 20;
constexpr int64_t kSampledRows = 16;
constexpr int64_t kSampledRowBytes = 4096;

template <typename T>
T load(const std::byte* at) {
    T value;
    std::memcpy(&value, at, sizeof(T));
    return value;
}

/// Why a scale is bad, or null. One function per format so that the scan of a row stays a tight loop.
const char* fault_of_float(float value) {
    if (std::isnan(value)) return "NaN";
    if (std::isinf(value)) return "an infinity";
    return value > 0 ? nullptr : "a scale <= 0";
}

const char* fault(Format format, const std::byte* at) {
    const auto byte = static_cast<uint8_t>(*at);
    switch (format) {
        case Format::kE8M0:
            return byte == 0xff ? "NaN" : nullptr;
        case Format::kE4M3:
            return byte == 0x7f || byte == 0xff ? "NaN" : byte >= 0x80 ? "a negative scale" : nullptr;
        case Format::kBF16:
            return fault_of_float(quant::bf16_to_float(load<uint16_t>(at)));
        case Format::kF16:
            return fault_of_float(quant::f16_to_float(load<uint16_t>(at)));
        default:
            return fault_of_float(load<float>(at));
    }
}

/// True if a row of one-byte scales may hold a bad one: one pass that the compiler vectorises.
bool suspicious(Format format, const std::byte* row, int64_t count) {
    if (format != Format::kE8M0 && format != Format::kE4M3) return true;
    const uint8_t limit = format == Format::kE8M0 ? 0xff : 0x7f;
    uint8_t largest = 0;
    for (int64_t i = 0; i < count; ++i) largest = std::max(largest, static_cast<uint8_t>(row[i]));
    return largest >= limit;
}

/// Byte offsets of the F16 scales and minima of a GGUF block, the same one twice if there is only one; an F16 number is
/// such a block too. IQ1_M is not here: its scale is spread over four words.
struct F16Fields {
    Format format;
    int32_t at[2];
};

constexpr F16Fields kF16Fields[] = {
    {Format::kF16, {0, 0}},     {Format::kQ4_0, {0, 0}},    {Format::kQ4_1, {0, 2}},     {Format::kQ5_0, {0, 0}},
    {Format::kQ5_1, {0, 2}},    {Format::kQ8_0, {0, 0}},    {Format::kQ2_K, {80, 82}},   {Format::kQ3_K, {108, 108}},
    {Format::kQ4_K, {0, 2}},    {Format::kQ5_K, {0, 2}},    {Format::kQ6_K, {208, 208}}, {Format::kIQ4_NL, {0, 0}},
    {Format::kIQ4_XS, {0, 0}},  {Format::kIQ2_XXS, {0, 0}}, {Format::kIQ2_XS, {0, 0}},   {Format::kIQ2_S, {0, 0}},
    {Format::kIQ3_XXS, {0, 0}}, {Format::kIQ3_S, {0, 0}},   {Format::kIQ1_S, {0, 0}},    {Format::kTQ1_0, {52, 52}},
    {Format::kTQ2_0, {64, 64}}, {Format::kQ1_0, {0, 0}},    {Format::kQ2_0, {0, 0}},
};

const F16Fields* f16_fields(Format format) {
    for (const F16Fields& fields : kF16Fields)
        if (fields.format == format) return &fields;
    return nullptr;
}

/// Why a block (of a plain format: a number) cannot be a weight, or null. `fields` is f16_fields(format).
const char* fault_of_block(Format format, const F16Fields* fields, const std::byte* at) {
    const auto nan_code = [](std::byte code) { return (code & std::byte{0x7f}) == std::byte{0x7f}; };
    const auto finite = [](float value) { return std::isfinite(value) ? nullptr : "NaN or an infinity"; };
    switch (format) {
        case Format::kF32:
            return finite(load<float>(at));
        case Format::kBF16:
            return finite(quant::bf16_to_float(load<uint16_t>(at)));
        case Format::kE4M3:
            return nan_code(*at) ? "a NaN code" : nullptr;
        case Format::kE4M3Block128:
            if (std::any_of(at + 1, at + 129, nan_code)) return "a NaN code";
            [[fallthrough]];
        case Format::kMxfp4Block:
            return *at == std::byte{0xff} ? "a NaN scale" : nullptr;
        default:
            break;
    }
    if (!fields) return nullptr;
    const char* first = finite(quant::f16_to_float(load<uint16_t>(at + fields->at[0])));
    return first ? first : finite(quant::f16_to_float(load<uint16_t>(at + fields->at[1])));
}

}  // namespace

void check_scales(const quant::Matrix& matrix, const std::string& tensor) {
    if (!matrix.scales) return;
    const int64_t rows = (matrix.rows + matrix.scale_rows - 1) / matrix.scale_rows;
    const int64_t cols = (matrix.cols + matrix.scale_cols - 1) / matrix.scale_cols;
    const int64_t size = quant::bytes_of(matrix.scale_format, 1);
    for (int64_t row = 0; row < rows; ++row) {
        const std::byte* scales = matrix.scales + row * matrix.scale_stride;
        if (!suspicious(matrix.scale_format, scales, cols)) continue;
        for (int64_t col = 0; col < cols; ++col)
            if (const char* text = fault(matrix.scale_format, scales + col * size))
                fail("tensor ", printable(tensor), " holds ", text, " at [", row, ", ", col,
                     "], expected finite scales > 0");
    }
}

void check_codes(const quant::Matrix& matrix, const std::string& tensor) {
    const F16Fields* fields = f16_fields(matrix.format);
    const quant::FormatTraits& traits = quant::traits(matrix.format);
    const int64_t blocks = matrix.cols / traits.block;
    const bool whole = matrix.rows * blocks <= kWholeBytes / traits.block_bytes;
    const int64_t step = whole ? 1 : std::max<int64_t>(1, matrix.rows / kSampledRows);
    const int64_t sampled = whole ? blocks : std::min<int64_t>(blocks, kSampledRowBytes / traits.block_bytes);
    for (int64_t row = 0; row < matrix.rows; row += step) {
        for (int64_t i = 0; i < sampled; ++i) {
            // Another stretch of columns in every sampled row.
            const int64_t block = (i + row) % blocks;
            const std::byte* at = matrix.data + row * matrix.row_bytes + block * traits.block_bytes;
            if (const char* text = fault_of_block(matrix.format, fields, at))
                fail("tensor ", printable(tensor), " (", traits.name, ") holds ", text, " at [", row, ", ",
                     block * traits.block, "], expected finite weights");
        }
    }
}

}  // namespace thermocline::model
