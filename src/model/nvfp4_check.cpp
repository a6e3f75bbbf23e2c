#include "src/model/nvfp4_check.h"

#include "src/base/error.h"
#include "src/model/linear.h"
#include "src/quant/scalar.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <map>

namespace thermocline::model {

namespace {

using quant::Format;

constexpr double kFullScale = 6.0 * 448.0;
constexpr double kLeastAmax = 1e-4, kMostAmax = 1e3;
constexpr int64_t kTileRows = 128, kTileBlocks = 4;
constexpr int64_t kSampledRows = 512;  // whole tiles, so that they are the first bytes in either order
constexpr size_t kSampledGroups = 12, kSampledExperts = 4;
constexpr size_t kLeastVotes = 16;
constexpr double kAgreement = 0.9;

bool plausible(double multiplier) {
    const double amax = kFullScale * multiplier;
    return amax > kLeastAmax && amax < kMostAmax;
}

/// log2 of every E4M3 magnitude; zero counts as the smallest subnormal.
const std::array<float, 128>& log2_table() {
    static const std::array<float, 128> table = [] {
        std::array<float, 128> values{};
        for (int code = 0; code < 128; ++code)
            values[code] =
                std::log2(code == 0 || code == 0x7f ? 0x1p-9f : quant::e4m3_to_float(static_cast<uint8_t>(code)));
        return values;
    }();
    return table;
}

bool can_vote(const TensorEntry& scale) {
    return scale.format == Format::kE4M3 && scale.shape.size() == 2 && scale.shape[0] > 0 && scale.shape[1] > 0 &&
           scale.shape[0] % kTileRows == 0 && scale.shape[1] % kTileBlocks == 0;
}

/// "layers.3.ffn.experts.12.w1" -> "layers.3.ffn.experts.*.w1"
std::string without_expert(const std::string& module) {
    const size_t at = module.find(".experts.");
    if (at == std::string::npos) return module;
    const size_t number = at + std::strlen(".experts.");
    const size_t dot = module.find('.', number);
    return dot == std::string::npos ? module : module.substr(0, number) + "*" + module.substr(dot);
}

template <typename T>
std::vector<T> spread(const std::vector<T>& all, size_t count) {
    if (all.size() <= count) return all;
    std::vector<T> some;
    for (size_t i = 0; i < count; ++i) some.push_back(all[i * (all.size() - 1) / (count - 1)]);
    return some;
}

using Group = std::vector<LinearTensors>;  // the same projection of several experts of a layer

std::vector<Group> sample(const WeightDirectory& weights) {
    std::map<std::string, std::vector<std::string>> modules;
    for (const auto& [name, entry] : weights.tensors)
        for (const std::string suffix : {".weight_global_scale", ".weight_scale_2"})
            if (name.ends_with(suffix)) {
                const std::string module = name.substr(0, name.size() - suffix.size());
                modules[without_expert(module)].push_back(module);
            }
    std::vector<std::vector<std::string>> lists;
    for (auto& [key, list] : modules) lists.push_back(std::move(list));
    std::vector<Group> groups;
    // Experts of a tiny model may all be needed to get enough votes.
    const size_t experts = std::max(kSampledExperts, 48 / std::max<size_t>(1, lists.size()));
    for (const auto& list : spread(lists, kSampledGroups)) {
        Group group;
        for (const std::string& module : spread(list, experts)) {
            LinearTensors tensors = linear_tensors(weights, module);
            const Scheme scheme = scheme_of(tensors);
            if (scheme == Scheme::kNvfp4Divisor || scheme == Scheme::kNvfp4Multiplier)
                group.push_back(std::move(tensors));
        }
        groups.push_back(std::move(group));
    }
    return groups;
}

/// What a sample of one matrix looks like.
struct Statistics {
    int64_t blocks16 = 0, full16 = 0;  // blocks of 16 with a scale, and those with a code of magnitude 4 or 6
    int64_t blocks32 = 0, full32 = 0;  // the same for pairs of blocks
    int64_t zero_scales = 0;
    int largest_scale = 0;  // code
    double square_sum = 0;
    int64_t elements = 0;
};

void add_row(const std::byte* packed, const std::byte* scales, int64_t blocks, Statistics& statistics) {
    bool previous_full = false, previous_counts = false;
    for (int64_t block = 0; block < blocks; ++block) {
        const int scale = static_cast<int>(scales[block]) & 0x7f;
        int largest = 0;
        double squares = 0;
        for (int64_t i = 0; i < 8; ++i) {
            const auto byte = static_cast<uint8_t>(packed[8 * block + i]);
            for (const int code : {byte & 7, (byte >> 4) & 7}) {
                largest = std::max(largest, code);
                const double value = quant::e2m1_to_float(static_cast<uint8_t>(code));
                squares += value * value;
            }
        }
        const double factor = quant::e4m3_to_float(static_cast<uint8_t>(scale));
        statistics.square_sum += squares * factor * factor;
        statistics.elements += kNvfp4Group;
        statistics.largest_scale = std::max(statistics.largest_scale, scale);
        statistics.zero_scales += scale == 0;
        statistics.blocks16 += scale != 0;
        statistics.full16 += scale != 0 && largest >= 6;
        if (block % 2 == 1 && (scale != 0 || previous_counts)) {
            ++statistics.blocks32;
            statistics.full32 += largest >= 6 || previous_full;
        }
        previous_full = largest >= 6;
        previous_counts = scale != 0;
    }
}

bool shapes_fit(const LinearTensors& t) {
    const TensorEntry& packed = t.packed ? *t.packed : *t.weight;
    const TensorEntry& scale = *t.scales.front();
    return packed.format != Format::kE2M1Pair && scale.format == Format::kE4M3 && packed.shape.size() == 2 &&
           scale.shape.size() == 2 && packed.shape[0] == scale.shape[0] && packed.shape[1] == 8 * scale.shape[1];
}

Statistics statistics_of(const LinearTensors& t) {
    const TensorEntry& packed = t.packed ? *t.packed : *t.weight;
    const TensorEntry& scale = *t.scales.front();
    Statistics statistics;
    constexpr int64_t kRows = 64;
    const int64_t step = std::max<int64_t>(1, scale.shape[0] / kRows);
    for (int64_t row = 0; row < scale.shape[0]; row += step)
        add_row(packed.data + row * packed.shape[1], scale.data + row * scale.shape[1], scale.shape[1], statistics);
    return statistics;
}

/// Root mean squares within a group must not differ wildly; appends a warning for the first that does.
void check_spread(const Group& group, const std::vector<double>& rms, std::vector<std::string>& warnings) {
    if (rms.size() < 3) return;
    std::vector<double> sorted = rms;
    std::sort(sorted.begin(), sorted.end());
    const double median = sorted[sorted.size() / 2];
    for (size_t i = 0; i < rms.size(); ++i) {
        if (rms[i] <= 8 * median && rms[i] * 8 >= median) continue;
        std::ostringstream text;
        text << "NVFP4: root mean square of " << printable(group[i].module) << " is " << rms[i]
             << ", more than 8 times off the median of its layer, " << median;
        warnings.push_back(text.str());
        return;
    }
}

void check_statistics(const Statistics& total, const std::string& example, std::vector<std::string>& warnings) {
    const auto share = [](int64_t part, int64_t whole) {
        return whole == 0 ? 1.0 : static_cast<double>(part) / static_cast<double>(whole);
    };
    const std::string where = " (sampled from " + printable(example) + " and others)";
    if (share(total.full16, total.blocks16) < kAgreement && share(total.full32, total.blocks32) < kAgreement)
        warnings.push_back("NVFP4: few blocks reach the largest codes; grouping or nibble packing may be wrong" +
                           where);
    if (share(total.zero_scales, total.elements / kNvfp4Group) >= 0.01)
        warnings.push_back("NVFP4: more than 1 % of the block scales are zero" + where);
    if (total.elements > 0 && quant::e4m3_to_float(static_cast<uint8_t>(total.largest_scale)) < 64)
        warnings.push_back("NVFP4: no block scale reaches 64, unusual for a calibrated file" + where);
}

}  // namespace

void check_nvfp4_scale_shape(const TensorEntry& scale, int64_t rows, int64_t cols) {
    const std::string found = "tensor " + printable(scale.name) + " is " +
                              std::string(quant::traits(scale.format).name) + " " + to_string(scale.shape);
    const int64_t blocks = (cols + kNvfp4Group - 1) / kNvfp4Group;
    const std::string expected = ", expected F8_E4M3 " + to_string(Shape{rows, blocks});
    const int64_t padded_rows = (rows + kTileRows - 1) / kTileRows * kTileRows;
    const int64_t padded_blocks = (blocks + kTileBlocks - 1) / kTileBlocks * kTileBlocks;
    const int64_t elements = element_count(scale.shape).value_or(-1);
    if (cols % kNvfp4Group == 0 && scale.format == Format::kE4M3 && scale.shape == Shape{rows, blocks}) return;
    if (elements == padded_rows * padded_blocks && (scale.shape.size() == 1 || elements != rows * blocks))
        fail(found, ": block scales in swizzled 128x4 tile order are not supported", expected);
    if (elements * 2 == rows * blocks)
        fail(found, ": half of the block scales are missing (or the weights are MXFP4)", expected);
    fail(found, expected);
}

void check_nvfp4_amax(const std::string& name, double multiplier) {
    if (plausible(multiplier)) return;
    fail("tensor ", printable(name), " implies weights up to ", kFullScale * multiplier, ", expected ", kLeastAmax,
         " to ", kMostAmax);
}

float nvfp4_multiplier(const TensorEntry& global, bool divisor) {
    if (global.format != Format::kF32 || element_count(global.shape) != 1)
        fail("tensor ", printable(global.name), " is ", quant::traits(global.format).name, " ", to_string(global.shape),
             ", expected one F32 global scale");
    float value = 0;
    std::memcpy(&value, global.data, sizeof(value));
    if (!std::isfinite(value) || value <= 0)
        fail("tensor ", printable(global.name), " is ", value, ", expected a finite global scale > 0");
    const double multiplier = divisor ? 1.0 / value : value;
    if (!plausible(multiplier) && plausible(1.0 / multiplier))
        fail("tensor ", printable(global.name), " is ", value, ": global scale convention mismatch, as a ",
             divisor ? "divisor" : "multiplier", " it implies weights up to ", kFullScale * multiplier, ", as a ",
             divisor ? "multiplier" : "divisor", " up to ", kFullScale / multiplier);
    check_nvfp4_amax(global.name, multiplier);
    return static_cast<float>(multiplier);
}

int64_t swizzled_offset(int64_t n, int64_t kb, int64_t blocks) {
    const int64_t tiles = (blocks + kTileBlocks - 1) / kTileBlocks;
    return ((n / 128) * tiles + kb / 4) * 512 + (n % 32) * 16 + ((n % 128) / 32) * 4 + kb % 4;
}

double scale_structure(const std::byte* scales, int64_t rows, int64_t blocks, bool swizzled) {
    const std::array<float, 128>& log2 = log2_table();
    std::vector<double> row_sums(static_cast<size_t>(rows)), col_sums(static_cast<size_t>(blocks));
    double sum = 0, squares = 0;
    for (int64_t n = 0; n < rows; ++n) {
        for (int64_t kb = 0; kb < blocks; ++kb) {
            const int64_t offset = swizzled ? swizzled_offset(n, kb, blocks) : n * blocks + kb;
            const double value = log2[static_cast<size_t>(scales[offset]) & 0x7f];
            row_sums[static_cast<size_t>(n)] += value;
            col_sums[static_cast<size_t>(kb)] += value;
            sum += value;
            squares += value * value;
        }
    }
    const auto count = static_cast<double>(rows * blocks);
    const double mean = sum / count, total = squares - count * mean * mean;
    if (rows * blocks < 2 || total <= 1e-9 * count) return 0;
    double explained = 0;
    for (const double row : row_sums) {
        const double off = row / static_cast<double>(blocks) - mean;
        explained += static_cast<double>(blocks) * off * off;
    }
    for (const double col : col_sums) {
        const double off = col / static_cast<double>(rows) - mean;
        explained += static_cast<double>(rows) * off * off;
    }
    return explained / total - static_cast<double>(rows + blocks - 2) / (count - 1);
}

ScaleOrder scale_order(const std::vector<const TensorEntry*>& scales) {
    size_t votes = 0, swizzled_votes = 0;
    for (const TensorEntry* scale : scales) {
        if (!can_vote(*scale)) continue;
        const int64_t rows = std::min(scale->shape[0], kSampledRows), blocks = scale->shape[1];
        const double linear = scale_structure(scale->data, rows, blocks, false);
        const double swizzled = scale_structure(scale->data, rows, blocks, true);
        if (linear == swizzled) continue;  // no structure in either order
        ++votes;
        swizzled_votes += swizzled > linear;
    }
    const auto share = static_cast<double>(swizzled_votes) / static_cast<double>(std::max<size_t>(1, votes));
    if (votes < kLeastVotes || (share > 1 - kAgreement && share < kAgreement)) return ScaleOrder::kUndetermined;
    return share >= kAgreement ? ScaleOrder::kSwizzled : ScaleOrder::kLinear;
}

void check_nvfp4_sample(const WeightDirectory& weights, std::vector<std::string>& warnings) {
    const std::vector<Group> groups = sample(weights);
    std::vector<const TensorEntry*> voters;
    Statistics total;
    std::string example;
    for (const Group& group : groups) {
        std::vector<double> rms;
        for (const LinearTensors& tensors : group) {
            if (!shapes_fit(tensors)) continue;  // refused with its name when it is used
            const Statistics one = statistics_of(tensors);
            if (can_vote(*tensors.scales.front())) voters.push_back(tensors.scales.front());
            if (example.empty()) example = tensors.module;
            const TensorEntry& global = tensors.divisor ? *tensors.divisor : *tensors.multiplier;
            const double multiplier = nvfp4_multiplier(global, tensors.divisor != nullptr);
            rms.push_back(multiplier *
                          std::sqrt(one.square_sum / static_cast<double>(std::max<int64_t>(1, one.elements))));
            total.blocks16 += one.blocks16, total.full16 += one.full16;
            total.blocks32 += one.blocks32, total.full32 += one.full32;
            total.zero_scales += one.zero_scales, total.elements += one.elements;
            total.largest_scale = std::max(total.largest_scale, one.largest_scale);
        }
        if (rms.size() == group.size()) check_spread(group, rms, warnings);
    }
    if (example.empty()) return;
    check_statistics(total, example, warnings);
    const ScaleOrder order = scale_order(voters);
    if (order == ScaleOrder::kSwizzled)
        fail("tensor ", printable(voters.front()->name), " and ", voters.size() - 1,
             " others: NVFP4 block scales lie in swizzled 128x4 tile order, expected rows");
    if (order == ScaleOrder::kUndetermined && !voters.empty())
        warnings.push_back("NVFP4: cannot tell whether block scales are swizzled (" + std::to_string(voters.size()) +
                           " tensors looked at), taken as rows (example " + printable(example) + ")");
}

}  // namespace thermocline::model
