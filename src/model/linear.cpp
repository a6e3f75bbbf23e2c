#include "src/model/linear.h"

#include "src/base/error.h"
#include "src/model/nvfp4_check.h"
#include "src/model/scale_check.h"

#include <cstring>

namespace thermocline::model {

namespace {

using quant::Format;
using quant::Matrix;

constexpr int64_t kFp8Block = 128;
constexpr int64_t kMxGroup = 32;

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool one_byte_code(Format format) {
    return format == Format::kU8 || format == Format::kI8 || format == Format::kE2M1Pair;
}

/// "U8 [64, 32]"
std::string found(const TensorEntry& tensor) {
    return std::string(quant::traits(tensor.format).name) + " " + to_string(tensor.shape);
}

[[noreturn]] void wrong(const TensorEntry& tensor, const std::string& expected) {
    fail("tensor ", printable(tensor.name), " is ", found(tensor), ", expected ", expected);
}

void expect_shape(const TensorEntry& tensor, const Shape& shape) {
    if (tensor.shape != shape) wrong(tensor, "shape " + to_string(shape));
}

/// Everything found of a linear that makes no known scheme, for the message.
[[noreturn]] void refuse_scheme(const LinearTensors& tensors) {
    std::string list;
    for (const TensorEntry* tensor : tensors.all())
        list += (list.empty() ? "" : ", ") + tensor->name.substr(tensors.module.size()) + " " + found(*tensor);
    fail("linear ", printable(tensors.module), " has no known quantisation: found ", printable(list, 400),
         ", expected a plain weight, FP8, MXFP4, NVFP4 or INT4 (pack-quantized) with their scales");
}

Matrix codes(const TensorEntry& tensor, Format format, int64_t rows, int64_t cols) {
    if (rows <= 0 || cols <= 0) wrong(tensor, "at least one row and one column");
    Matrix matrix;
    matrix.format = format;
    matrix.rows = rows;
    matrix.cols = cols;
    matrix.data = tensor.data;
    matrix.row_bytes = quant::bytes_of(format, cols);
    return matrix;
}

void set_scales(Matrix& matrix, const TensorEntry& scale, Format format, int64_t scale_rows, int64_t scale_cols) {
    matrix.scales = scale.data;
    matrix.scale_format = format;
    matrix.scale_rows = scale_rows;
    matrix.scale_cols = scale_cols;
    matrix.scale_stride = quant::bytes_of(format, ceil_div(matrix.cols, scale_cols));
    if (!scale.sized_only) check_scales(matrix, scale.name);
}

/// Packed pairs of 4-bit codes [rows, cols / 2] in bytes, or the logical shape if the dtype is F4.
void expect_pairs(const TensorEntry& tensor, int64_t rows, int64_t cols) {
    if (cols % 2 != 0) wrong(tensor, "an even number of columns, not " + std::to_string(cols));
    expect_shape(tensor, tensor.format == Format::kE2M1Pair ? Shape{rows, cols} : Shape{rows, cols / 2});
}

Matrix fp8_matrix(const LinearTensors& tensors, int64_t rows, int64_t cols, bool ue8m0) {
    expect_shape(*tensors.weight, {rows, cols});
    const TensorEntry& scale = *tensors.scales.front();
    Format format = scale.format;
    if (format == Format::kU8 && ue8m0) format = Format::kE8M0;
    if (format != Format::kF32 && format != Format::kBF16 && format != Format::kF16 && format != Format::kE8M0)
        wrong(scale, "a scale of F32, BF16, F16 or F8_E8M0 (U8 only where the config says ue8m0)");
    Matrix matrix = codes(*tensors.weight, Format::kE4M3, rows, cols);
    const Shape& shape = scale.shape;
    if (shape == Shape{ceil_div(rows, kFp8Block), ceil_div(cols, kFp8Block)})
        set_scales(matrix, scale, format, kFp8Block, kFp8Block);
    else if (element_count(shape) == 1)
        set_scales(matrix, scale, format, rows, cols);
    else if (shape == Shape{rows, 1} || shape == Shape{rows})
        set_scales(matrix, scale, format, 1, cols);
    else if (format == Format::kE8M0 && cols % kMxGroup == 0 && shape == Shape{rows, cols / kMxGroup})
        set_scales(matrix, scale, format, 1, kMxGroup);
    else
        wrong(scale, "scales of " + to_string(Shape{rows, cols}) + " per 128x128 block, tensor, row or 32 columns");
    check_codes(matrix, tensors.weight->name);
    return matrix;
}

Matrix mxfp4_matrix(const LinearTensors& tensors, int64_t rows, int64_t cols) {
    const TensorEntry& weight = tensors.packed ? *tensors.packed : *tensors.weight;
    expect_pairs(weight, rows, cols);
    const TensorEntry& scale = *tensors.scales.front();
    if (cols % kMxGroup != 0) wrong(weight, "a multiple of 32 columns for MXFP4, not " + std::to_string(cols));
    expect_shape(scale, {rows, cols / kMxGroup});
    Matrix matrix = codes(weight, Format::kE2M1Pair, rows, cols);
    set_scales(matrix, scale, Format::kE8M0, 1, kMxGroup);
    return matrix;
}

Matrix nvfp4_matrix(const LinearTensors& tensors, int64_t rows, int64_t cols) {
    const TensorEntry& weight = tensors.packed ? *tensors.packed : *tensors.weight;
    expect_pairs(weight, rows, cols);
    const TensorEntry& scale = *tensors.scales.front();
    check_nvfp4_scale_shape(scale, rows, cols);
    Matrix matrix = codes(weight, Format::kE2M1Pair, rows, cols);
    set_scales(matrix, scale, Format::kE4M3, 1, kNvfp4Group);
    matrix.multiplier = nvfp4_multiplier(tensors.divisor ? *tensors.divisor : *tensors.multiplier, tensors.divisor);
    return matrix;
}

void check_weight_shape(const TensorEntry& tensor, int64_t rows, int64_t cols) {
    if (element_count(tensor.shape) != 2 || (tensor.format != Format::kI64 && tensor.format != Format::kI32))
        wrong(tensor, "I64 [2]");
    int64_t values[2] = {};
    for (int i = 0; i < 2; ++i) {
        int32_t narrow = 0;
        if (tensor.format == Format::kI64) std::memcpy(&values[i], tensor.data + 8 * i, 8);
        if (tensor.format == Format::kI32) std::memcpy(&narrow, tensor.data + 4 * i, 4);
        if (tensor.format == Format::kI32) values[i] = narrow;
    }
    if (values[0] != rows || values[1] != cols)
        fail("tensor ", printable(tensor.name), " holds [", values[0], ", ", values[1], "], expected [", rows, ", ",
             cols, "]");
}

/// Activation-ordered groups cannot be multiplied as they lie; a table that says k / group says nothing.
void check_group_index(const TensorEntry& tensor, int64_t cols, int64_t group) {
    if (tensor.format != Format::kI32 || tensor.shape != Shape{cols})
        wrong(tensor, "I32 [" + std::to_string(cols) + "]");
    for (int64_t k = 0; k < cols; ++k) {
        int32_t index = 0;
        std::memcpy(&index, tensor.data + 4 * k, 4);
        if (index != k / group)
            fail("tensor ", printable(tensor.name), " puts column ", k, " into group ", index, ", expected ", k / group,
                 " (actorder \"group\" is not supported)");
    }
}

Matrix int4_matrix(const LinearTensors& tensors, int64_t rows, int64_t cols) {
    const TensorEntry& packed = *tensors.packed;
    if (packed.shape.size() == 2 && packed.shape[1] == ceil_div(cols, 4) && cols > 8)
        wrong(packed, "4-bit codes (8-bit pack-quantized is not supported)");
    if (cols % 8 != 0) wrong(packed, "a multiple of 8 columns, not " + std::to_string(cols));
    expect_shape(packed, {rows, cols / 8});
    if (tensors.shape) check_weight_shape(*tensors.shape, rows, cols);
    const TensorEntry& scale = *tensors.scales.front();
    const bool fits = scale.shape.size() == 2 && scale.shape[0] == rows && scale.shape[1] > 0;
    if (!fits || cols % scale.shape[1] != 0 || (cols / scale.shape[1]) % 8 != 0)
        wrong(scale,
              "[" + std::to_string(rows) + ", number of groups that divides " + std::to_string(cols) + " by 8s]");
    if (scale.format != Format::kF32 && scale.format != Format::kBF16 && scale.format != Format::kF16)
        wrong(scale, "a scale of BF16, F16 or F32");
    const int64_t group = cols / scale.shape[1];
    Matrix matrix = codes(packed, Format::kInt4Pair, rows, cols);
    set_scales(matrix, scale, scale.format, 1, group);
    if (tensors.group_index) check_group_index(*tensors.group_index, cols, group);
    if (tensors.zero_point) {
        if (tensors.zero_point->format != Format::kI32) wrong(*tensors.zero_point, "I32 words of 8 zero points");
        expect_shape(*tensors.zero_point, {ceil_div(rows, 8), scale.shape[1]});
        matrix.zero_points = tensors.zero_point->data;
    }
    return matrix;
}

}  // namespace

const char* scheme_text(Scheme scheme) {
    switch (scheme) {
        case Scheme::kUnknown:
            return "unknown";
        case Scheme::kPlain:
            return "plain";
        case Scheme::kFp8:
            return "FP8 e4m3";
        case Scheme::kMxfp4:
            return "MXFP4";
        case Scheme::kNvfp4Multiplier:
            return "NVFP4 (ModelOpt: global scale multiplies)";
        case Scheme::kNvfp4Divisor:
            return "NVFP4 (compressed-tensors: global scale divides)";
        case Scheme::kInt4:
            return "INT4 pack-quantized";
        case Scheme::kConverted:
            return "converted";
    }
    return "";
}

std::vector<const TensorEntry*> LinearTensors::all() const {
    std::vector<const TensorEntry*> list = scales;
    list.insert(list.end(), ignored.begin(), ignored.end());
    for (const TensorEntry* tensor : {weight, packed, divisor, multiplier, shape, zero_point, group_index})
        if (tensor) list.push_back(tensor);
    return list;
}

LinearTensors linear_tensors(const WeightDirectory& weights, const std::string& module) {
    LinearTensors tensors;
    tensors.module = module;
    tensors.weight = weights.find(module + ".weight");
    tensors.packed = weights.find(module + ".weight_packed");
    tensors.divisor = weights.find(module + ".weight_global_scale");
    tensors.multiplier = weights.find(module + ".weight_scale_2");
    tensors.shape = weights.find(module + ".weight_shape");
    tensors.zero_point = weights.find(module + ".weight_zero_point");
    tensors.group_index = weights.find(module + ".weight_g_idx");
    for (const char* suffix : {".weight_scale_inv", ".scale", ".weight_scale"})
        if (const TensorEntry* scale = weights.find(module + suffix)) tensors.scales.push_back(scale);
    for (const char* suffix : {".input_scale", ".input_global_scale", ".k_scale", ".v_scale"})
        if (const TensorEntry* scale = weights.find(module + suffix)) tensors.ignored.push_back(scale);
    return tensors;
}

Scheme scheme_of(const LinearTensors& t) {
    if ((t.weight != nullptr) == (t.packed != nullptr) || t.scales.size() > 1) return Scheme::kUnknown;
    if (t.weight && t.weight->converted) return Scheme::kConverted;
    const TensorEntry* scale = t.scales.empty() ? nullptr : t.scales.front();
    const bool global = t.divisor || t.multiplier;
    const bool byte_scale = scale && (scale->format == Format::kU8 || scale->format == Format::kE8M0);
    const bool int4_parts = t.shape || t.zero_point || t.group_index;
    const TensorEntry& codes = t.weight ? *t.weight : *t.packed;
    if (t.packed && codes.format == Format::kI32) return scale && !global ? Scheme::kInt4 : Scheme::kUnknown;
    if (int4_parts) return Scheme::kUnknown;
    if (one_byte_code(codes.format)) {
        if (!scale || (t.divisor && t.multiplier)) return Scheme::kUnknown;
        if (t.divisor) return Scheme::kNvfp4Divisor;
        if (t.multiplier) return Scheme::kNvfp4Multiplier;
        return byte_scale ? Scheme::kMxfp4 : Scheme::kUnknown;
    }
    if (t.packed || global) return Scheme::kUnknown;
    if (codes.format == Format::kE4M3) return scale ? Scheme::kFp8 : Scheme::kUnknown;
    return quant::traits(codes.format).weight && !scale ? Scheme::kPlain : Scheme::kUnknown;
}

quant::Matrix plain_matrix(const TensorEntry& tensor, int64_t rows, int64_t cols) {
    expect_shape(tensor, {rows, cols});
    if (!quant::traits(tensor.format).weight) wrong(tensor, "numbers that a matrix can hold");
    if (cols % quant::traits(tensor.format).block != 0)
        wrong(tensor, "a multiple of " + std::to_string(quant::traits(tensor.format).block) + " columns");
    Matrix matrix = codes(tensor, tensor.format, rows, cols);
    check_codes(matrix, tensor.name);
    return matrix;
}

quant::Matrix linear_matrix(const LinearTensors& tensors, int64_t rows, int64_t cols, bool ue8m0) {
    switch (scheme_of(tensors)) {
        case Scheme::kPlain:
            return plain_matrix(*tensors.weight, rows, cols);
        case Scheme::kFp8:
            return fp8_matrix(tensors, rows, cols, ue8m0);
        case Scheme::kMxfp4:
            return mxfp4_matrix(tensors, rows, cols);
        case Scheme::kNvfp4Multiplier:
        case Scheme::kNvfp4Divisor:
            return nvfp4_matrix(tensors, rows, cols);
        case Scheme::kInt4:
            return int4_matrix(tensors, rows, cols);
        case Scheme::kConverted:
            expect_shape(*tensors.weight, {rows, cols});
            return *tensors.weight->converted;
        case Scheme::kUnknown:
            break;
    }
    refuse_scheme(tensors);
}

}  // namespace thermocline::model
