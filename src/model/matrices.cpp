#include "src/model/matrices.h"

#include "src/base/error.h"
#include "src/model/nvfp4_check.h"
#include "src/quant/reference.h"
#include "src/quant/scalar.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <set>

namespace thermocline::model {

namespace {

using quant::Format;
using quant::Matrix;

int64_t trunk_layers(const Json& config) {
    const auto found = config.find("num_hidden_layers");
    return found != config.end() && found->is_number_unsigned() ? found->get<int64_t>() : 0;
}

std::string text_at(const Json& object, const char* key) {
    if (!object.is_object()) return "";
    const auto found = object.find(key);
    return found != object.end() && found->is_string() ? found->get<std::string>() : "";
}

bool says_ue8m0(const Json& config) {
    if (text_at(config, "scale_fmt") == "ue8m0") return true;
    const auto found = config.find("quantization_config");
    if (found == config.end()) return false;
    return text_at(*found, "scale_fmt") == "ue8m0" || text_at(*found, "quant_method").starts_with("mx") ||
           text_at(*found, "format").starts_with("mx") || text_at(*found, "quant_algo").starts_with("MX");
}

/// Shape without dimensions of 1.
Shape squeezed(Shape shape) {
    std::erase(shape, 1);
    return shape;
}

std::string describe(const TensorEntry& entry) {
    return "tensor " + printable(entry.name) + " is " + std::string(quant::traits(entry.format).name) + " " +
           to_string(entry.shape);
}

/// Rows [first, first + rows) of matrix `index` of a stack [count, stack_rows, cols], as a tensor of its own. Scales of
/// blocks are cut the same way, so `first` and `rows` are in units of rows of this tensor.
TensorEntry slice(const TensorEntry& stack, int64_t index, int64_t first, int64_t rows) {
    TensorEntry part = stack;
    const int64_t row_bytes = quant::bytes_of(stack.format, stack.shape[2]);
    part.shape = {rows, stack.shape[2]};
    part.data = stack.data + (index * stack.shape[1] + first) * row_bytes;
    part.offset = stack.offset + (index * stack.shape[1] + first) * row_bytes;
    part.bytes = rows * row_bytes;
    return part;
}

template <typename T>
int64_t read_integer(const std::byte* at) {
    T value;
    std::memcpy(&value, at, sizeof(T));
    // A huge unsigned number becomes negative: out of every range that is asked for.
    return static_cast<int64_t>(value);
}

/// Integer i of a table, or nothing if the format is no integer.
std::optional<int64_t> integer_at(const TensorEntry& entry, int64_t i) {
    const std::byte* at = entry.data + i * quant::traits(entry.format).block_bytes;
    switch (entry.format) {
        case Format::kI64:
            return read_integer<int64_t>(at);
        case Format::kU64:
            return read_integer<uint64_t>(at);
        case Format::kI32:
            return read_integer<int32_t>(at);
        case Format::kU32:
            return read_integer<uint32_t>(at);
        case Format::kI16:
            return read_integer<int16_t>(at);
        case Format::kU16:
            return read_integer<uint16_t>(at);
        case Format::kI8:
            return read_integer<int8_t>(at);
        case Format::kU8:
            return read_integer<uint8_t>(at);
        default:
            return std::nullopt;
    }
}

/// Largest scale byte of a sample of NVFP4 blocks.
int largest_block_scale(const Matrix& matrix) {
    int largest = 0;
    const int64_t step = std::max<int64_t>(1, matrix.rows / 64);
    for (int64_t row = 0; row < matrix.rows; row += step)
        for (int64_t block = 0; block < matrix.cols / 64; ++block)
            for (int64_t i = 0; i < 4; ++i)
                largest =
                    std::max(largest, static_cast<int>(matrix.data[row * matrix.row_bytes + block * 36 + i]) & 0x7f);
    return std::min(largest, 0x7e);
}

}  // namespace

MatrixFinder::MatrixFinder(const Checkpoint& checkpoint)
    : checkpoint_(&checkpoint),
      naming_(recognise_naming(checkpoint)),
      names_(naming_, trunk_layers(checkpoint.config)),
      ue8m0_(says_ue8m0(checkpoint.config)) {
    if (text_at(checkpoint.config, "model_type") == "deepseek_v41")
        fail("model_type is deepseek_v41, which is another architecture than deepseek_v4 and not supported");
    check_nvfp4_sample(checkpoint.weights, warnings_);
    if (checkpoint.config.contains("dspark_block_size"))
        warnings_.push_back("the DSpark drafter (tensors mtp.*) is not supported and left unused");
}

const TensorEntry* MatrixFinder::find_tensor(const std::string& official) const {
    for (const std::string& name : names_.tensors(official))
        if (const TensorEntry* entry = checkpoint_->weights.find(name)) return entry;
    return nullptr;
}

const TensorEntry& MatrixFinder::tensor(const std::string& official, const Shape& shape) {
    const TensorEntry* entry = find_tensor(official);
    if (!entry) {
        const std::vector<std::string> names = names_.tensors(official);
        fail("tensor ", printable(names.empty() ? official : names.front()), " is missing, expected shape ",
             to_string(shape));
    }
    use(*entry);
    if (squeezed(entry->shape) != squeezed(shape)) fail(describe(*entry), ", expected shape ", to_string(shape));
    return *entry;
}

LinearTensors MatrixFinder::find_linear(const std::string& official) const {
    for (const std::string& module : names_.modules(official)) {
        LinearTensors tensors = linear_tensors(checkpoint_->weights, module);
        if (!tensors.all().empty()) return tensors;
    }
    return {};
}

void MatrixFinder::use(const LinearTensors& tensors) {
    for (const TensorEntry* entry : tensors.all()) use(*entry);
}

std::vector<float> MatrixFinder::gguf_factors(const std::string& module, int64_t count, const Matrix& example) {
    std::vector<float> factors(static_cast<size_t>(count), 1.0f);
    if (example.format != Format::kNvfp4Block) return factors;
    const TensorEntry* scale = checkpoint_->weights.find(module + ".scale");
    if (!scale) {
        // Without a second level the block scales alone must make sense (the reference writer leaves out factors of 1).
        check_nvfp4_amax(module + ".weight",
                         quant::e4m3_to_float(static_cast<uint8_t>(largest_block_scale(example))) / 448.0);
        return factors;
    }
    use(*scale);
    const int64_t found = element_count(scale->shape).value_or(0);
    if (scale->format != Format::kF32 || (found != 1 && found != count))
        fail(describe(*scale), ", expected F32 with 1 or ", count, " elements");
    for (int64_t i = 0; i < count; ++i) {
        float& factor = factors[static_cast<size_t>(i)];
        std::memcpy(&factor, scale->data + (found == 1 ? 0 : i) * 4, 4);
        if (!std::isfinite(factor) || factor <= 0)
            fail("tensor ", printable(scale->name), " holds ", factor, " at [", i, "], expected a finite factor > 0");
    }
    return factors;
}

std::optional<Matrix> MatrixFinder::half_of_eh_proj(const std::string& name, int64_t rows, int64_t cols) {
    const bool first = name.ends_with(".e_proj");
    if (naming_ != Naming::kGguf || !name.starts_with("mtp.") || (!first && !name.ends_with(".h_proj")))
        return std::nullopt;
    const LinearTensors tensors = find_linear(name.substr(0, name.size() - std::strlen("e_proj")) + "eh_proj");
    if (!tensors.weight) return std::nullopt;
    use(tensors);
    Matrix both = plain_matrix(*tensors.weight, rows, 2 * cols);
    both.multiplier = gguf_factors(tensors.module, 1, both).front();
    if (cols % quant::traits(both.format).block != 0)
        fail(describe(*tensors.weight), ", whose halves are not whole blocks");
    Matrix half = both;
    half.cols = cols;
    half.data += first ? 0 : quant::bytes_of(both.format, cols);
    return half;
}

Matrix MatrixFinder::matrix(const std::string& name, int64_t rows, int64_t cols) {
    const LinearTensors tensors = find_linear(name);
    if (tensors.empty()) {
        if (const std::optional<Matrix> half = half_of_eh_proj(name, rows, cols)) return *half;
        if (const TensorEntry* bare = find_tensor(name)) {  // hc_*_fn: a matrix without the suffix ".weight"
            use(*bare);
            return plain_matrix(*bare, rows, cols);
        }
        const std::vector<std::string> modules = names_.modules(name);
        fail("tensor ", printable(modules.empty() ? name : modules.front()), ".weight is missing, expected [", rows,
             ", ", cols, "]");
    }
    use(tensors);
    if (naming_ != Naming::kGguf) return linear_matrix(tensors, rows, cols, ue8m0_);
    Matrix matrix = plain_matrix(*tensors.weight, rows, cols);
    matrix.multiplier = gguf_factors(tensors.module, 1, matrix).front();
    return matrix;
}

LinearTensors MatrixFinder::find_stacked(const std::string& official) const {
    for (const std::string& module : names_.modules(official)) {
        LinearTensors tensors = linear_tensors(checkpoint_->weights, module);
        if (!tensors.weight) tensors.weight = checkpoint_->weights.find(module);
        for (const char* suffix : {"_scale_inv", "_scale"})
            if (const TensorEntry* scale = checkpoint_->weights.find(module + suffix)) tensors.scales.push_back(scale);
        if (tensors.weight) return tensors;
    }
    return {};
}

std::vector<Matrix> MatrixFinder::stacked_experts(const LinearTensors& stack, int64_t experts, int64_t first_row,
                                                  int64_t stack_rows, int64_t rows, int64_t cols) {
    use(stack);
    const TensorEntry& weight = *stack.weight;
    if (weight.shape != Shape{experts, stack_rows, cols})
        fail(describe(weight), ", expected ", to_string(Shape{experts, stack_rows, cols}));
    if (stack.scales.size() > 1)
        fail(describe(weight), " and has ", stack.scales.size(), " scale tensors, expected one");
    const TensorEntry* scales = stack.scales.empty() || naming_ == Naming::kGguf ? nullptr : stack.scales.front();
    const bool scales_fit = scales && scales->shape.size() == 3 && scales->shape[0] == experts &&
                            scales->shape[1] > 0 && scales->shape[1] * first_row % stack_rows == 0 &&
                            scales->shape[1] * rows % stack_rows == 0;
    if (scales && !scales_fit)
        fail(describe(*scales), ", expected the blocks of [", experts, ", ", stack_rows, ", ", cols, "]");

    std::vector<Matrix> matrices;
    for (int64_t e = 0; e < experts; ++e) {
        const TensorEntry part = slice(weight, e, first_row, rows);
        LinearTensors tensors;
        TensorEntry scale;
        tensors.module = stack.module;
        tensors.weight = &part;
        if (scales) {
            scale = slice(*scales, e, scales->shape[1] * first_row / stack_rows, scales->shape[1] * rows / stack_rows);
            tensors.scales.push_back(&scale);
        }
        matrices.push_back(linear_matrix(tensors, rows, cols, ue8m0_));
    }
    if (naming_ == Naming::kGguf && !matrices.empty()) {
        const std::vector<float> factors = gguf_factors(stack.module, experts, matrices.front());
        for (size_t e = 0; e < matrices.size(); ++e) matrices[e].multiplier = factors[e];
    }
    return matrices;
}

std::vector<Matrix> MatrixFinder::experts(const std::string& prefix, const std::string& projection, int64_t experts,
                                          int64_t rows, int64_t cols) {
    if (naming_ != Naming::kOfficial) {
        const LinearTensors own = find_stacked(prefix + "." + projection);
        if (own.weight) return stacked_experts(own, experts, 0, rows, rows, cols);
        const LinearTensors both = projection == "w2" ? LinearTensors{} : find_stacked(prefix + ".w13");
        if (both.weight) return stacked_experts(both, experts, projection == "w1" ? 0 : rows, 2 * rows, rows, cols);
    }
    if (naming_ == Naming::kGguf) fail("the experts of ", printable(prefix), ".", projection, " are missing");
    std::vector<Matrix> matrices;
    for (int64_t e = 0; e < experts; ++e)
        matrices.push_back(matrix(prefix + "." + std::to_string(e) + "." + projection, rows, cols));
    return matrices;
}

void MatrixFinder::check_expert_ids(const std::string& prefix, int64_t count) const {
    std::string start;  // "layers.2.ffn.experts." as the checkpoint spells it
    std::set<int64_t> ids;
    const auto& tensors = checkpoint_->weights.tensors;
    for (const std::string& module : names_.modules(prefix + ".0.w1")) {
        if (!ids.empty()) break;
        start = module.substr(0, module.rfind('.', module.rfind('.') - 1) + 1);
        for (auto it = tensors.lower_bound(start); it != tensors.end() && it->first.starts_with(start); ++it) {
            int64_t id = -1;
            const char* digits = it->first.data() + start.size();
            if (std::from_chars(digits, it->first.data() + it->first.size(), id).ec == std::errc{}) ids.insert(id);
        }
    }
    if (ids.empty()) return;  // one tensor for all experts: its shape is checked when it is asked for
    if (*ids.begin() == 0 && *ids.rbegin() == count - 1 && static_cast<int64_t>(ids.size()) == count) return;
    fail("experts ", printable(start), "* have ", ids.size(), " ids from ", *ids.begin(), " to ", *ids.rbegin(),
         ", expected 0 to ", count - 1, " as the rows of the router say");
}

int64_t MatrixFinder::expert_count(const std::string& gate_name) {
    const TensorEntry* gate = find_tensor(gate_name + ".weight");
    if (!gate) fail("tensor ", printable(gate_name), ".weight (the router) is missing");
    if (gate->shape.size() != 2 || gate->shape[0] < 1) fail(describe(*gate), ", expected [experts, hidden]");
    const int64_t count = gate->shape[0];
    if (const TensorEntry* bias = find_tensor(gate_name + ".bias"))
        if (element_count(bias->shape) != count)
            fail(describe(*bias), ", expected ", count, " elements as the rows of ", printable(gate->name));
    if (naming_ != Naming::kGguf) {
        const std::string prefix = gate_name.substr(0, gate_name.rfind('.') + 1) + "experts";
        check_expert_ids(prefix, count);
    }
    return count;
}

std::vector<float> MatrixFinder::vector(const std::string& name, const Shape& shape) {
    const TensorEntry& entry = tensor(name, shape);
    const int64_t count = element_count(entry.shape).value_or(0);
    const int64_t cols = entry.shape.empty() ? 1 : entry.shape.back();
    const bool number = quant::traits(entry.format).weight && entry.format != Format::kE4M3 &&
                        entry.format != Format::kE2M1Pair && entry.format != Format::kInt4Pair;
    if (!number && entry.format != Format::kF64) fail(describe(entry), ", expected plain floating-point numbers");
    std::vector<float> values(static_cast<size_t>(count));
    if (entry.format == Format::kF64) {
        for (int64_t i = 0; i < count; ++i) {
            double value = 0;
            std::memcpy(&value, entry.data + 8 * i, 8);
            values[static_cast<size_t>(i)] = static_cast<float>(value);
        }
    } else if (count > 0) {
        Matrix matrix;
        matrix.format = entry.format;
        matrix.rows = count / cols;
        matrix.cols = cols;
        matrix.data = entry.data;
        matrix.row_bytes = quant::bytes_of(entry.format, cols);
        values = quant::decode_matrix(matrix);
    }
    for (int64_t i = 0; i < count; ++i)
        if (!std::isfinite(values[static_cast<size_t>(i)]))
            fail("tensor ", printable(entry.name), " holds ", values[static_cast<size_t>(i)], " at ", i,
                 ", expected finite numbers");
    return values;
}

std::vector<int32_t> MatrixFinder::table(const std::string& name, const Shape& shape, int64_t limit) {
    const TensorEntry& entry = tensor(name, shape);
    std::vector<int32_t> values(static_cast<size_t>(element_count(entry.shape).value_or(0)));
    for (size_t i = 0; i < values.size(); ++i) {
        const std::optional<int64_t> value = integer_at(entry, static_cast<int64_t>(i));
        if (!value) fail(describe(entry), ", expected integers");
        if (*value < 0 || *value >= limit)
            fail("tensor ", printable(entry.name), " holds ", *value, " at ", i, ", expected 0 to ", limit - 1);
        values[i] = static_cast<int32_t>(*value);
    }
    return values;
}

bool MatrixFinder::has(const std::string& name) const {
    if (find_tensor(name) || !find_linear(name).empty()) return true;
    const bool half = name.ends_with(".e_proj") || name.ends_with(".h_proj");
    return half && naming_ == Naming::kGguf && !find_linear(name.substr(0, name.size() - 6) + "eh_proj").empty();
}

std::vector<std::string> MatrixFinder::unused() const {
    std::vector<std::string> names;
    for (const auto& [name, entry] : checkpoint_->weights.tensors)
        if (!used_.contains(&entry)) names.push_back(name);
    return names;
}

int64_t MatrixFinder::unused_bytes() const {
    int64_t bytes = 0;
    for (const auto& [name, entry] : checkpoint_->weights.tensors)
        if (!used_.contains(&entry)) bytes += entry.bytes;
    return bytes;
}

}  // namespace thermocline::model
