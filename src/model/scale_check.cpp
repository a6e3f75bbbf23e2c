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
    const bool codes = matrix.format == Format::kE4M3 || matrix.format == Format::kE4M3Block128;
    if (!codes && matrix.format != Format::kMxfp4Block) return;
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
            if (traits.block > 1 && *at == std::byte{0xff})
                fail("tensor ", printable(tensor), " holds a NaN scale in row ", row, ", block ", block);
            for (int64_t j = traits.block > 1 ? 1 : 0; codes && j < traits.block_bytes; ++j)
                if ((at[j] & std::byte{0x7f}) == std::byte{0x7f})
                    fail("tensor ", printable(tensor), " holds a NaN code in row ", row, ", expected FP8 E4M3 weights");
        }
    }
}

}  // namespace thermocline::model
