#include "src/model/converted.h"

#include "src/base/checksum.h"
#include "src/base/error.h"
#include "src/model/config_fields.h"
#include "src/quant/strips.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstring>
#include <limits>

namespace thermocline::model {

namespace {

namespace fs = std::filesystem;
using quant::Format;
using quant::Matrix;

constexpr int64_t kVersion = 1;
constexpr const char* kAgain = ": convert the model again";
constexpr size_t kMaxIndexBytes = size_t{256} << 20;
constexpr int64_t kMaxDimension = int64_t{1} << 31, kMaxElements = int64_t{1} << 44;

struct FirstPage {
    char magic[8];  // "TCWEIGHT"
    uint32_t version;
    uint32_t page_bytes;
    uint64_t index_bytes;
    uint64_t index_checksum;
    uint64_t file_bytes;
};
constexpr char kMagic[8] = {'T', 'C', 'W', 'E', 'I', 'G', 'H', 'T'};

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

std::span<const std::byte> bytes_of(std::string_view text) {
    return {reinterpret_cast<const std::byte*>(text.data()), text.size()};
}

std::string hex(uint64_t number) {
    char text[17];
    std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(number));
    return text;
}

std::optional<uint64_t> from_hex(const std::string& text) {
    uint64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number, 16);
    if (error != std::errc() || end != text.data() + text.size() || text.size() != 16) return std::nullopt;
    return number;
}

std::optional<Format> format_named(const std::string& name) {
    for (int i = 0; i < static_cast<int>(Format::kCount); ++i)
        if (quant::traits(static_cast<Format>(i)).name == name) return static_cast<Format>(i);
    return std::nullopt;
}

/// Formats whose scales are no part of their blocks.
bool has_scales(Format format) {
    return format == Format::kE4M3 || format == Format::kE2M1Pair || format == Format::kInt4Pair;
}

/// The forms of scales that checkpoints come with (linear.cpp), and no others: the kernels count on them.
bool known_scales(const Matrix& m) {
    const auto is = [&](int64_t rows, int64_t cols) { return m.scale_rows == rows && m.scale_cols == cols; };
    const bool wide =
        m.scale_format == Format::kF32 || m.scale_format == Format::kBF16 || m.scale_format == Format::kF16;
    const bool e8m0 = m.scale_format == Format::kE8M0;
    switch (m.format) {
        case Format::kE4M3:
            if (e8m0 && m.cols % 32 == 0 && (is(1, 32) || is(1, 128))) return true;
            return (wide || e8m0) && (is(128, 128) || is(m.rows, m.cols) || is(1, m.cols));
        case Format::kE2M1Pair:
            return (e8m0 && m.cols % 32 == 0 && is(1, 32)) ||
                   (m.scale_format == Format::kE4M3 && m.cols % 16 == 0 && is(1, 16));
        case Format::kInt4Pair:
            return wide && m.scale_rows == 1 && m.scale_cols > 0 && m.scale_cols % 8 == 0 && m.cols % m.scale_cols == 0;
        default:
            return false;
    }
}

PartSizes sizes_of(const Matrix& m, bool zero_points) {
    PartSizes sizes;
    sizes.data = m.layout == quant::Layout::kStrips ? m.rows / quant::kStripRows * m.strip_bytes : m.rows * m.row_bytes;
    const int64_t groups = ceil_div(m.cols, m.scale_cols);
    if (has_scales(m.format) && !m.scale_in_strip)
        sizes.scales = ceil_div(m.rows, m.scale_rows) * quant::bytes_of(m.scale_format, groups);
    if (zero_points) sizes.zero_points = ceil_div(m.rows, 8) * groups * 4;
    return sizes;
}

/// Reads one entry of the index.
class EntryReader {
public:
    EntryReader(const ConfigFields& fields, std::string where, int64_t file_bytes)
        : fields_(fields), where_(std::move(where)), file_bytes_(file_bytes) {}

    ConvertedTensor read(const std::string& name) {
        ConvertedTensor tensor;
        tensor.name = name;
        tensor.format = format("format", fields_);
        tensor.shape = fields_.integers({"shape"}, 1, 1, kMaxDimension);
        const std::optional<int64_t> count = element_count(tensor.shape);
        if (!count || *count > kMaxElements) wrong("shape", "at most 2^44 numbers");
        tensor.is_matrix = fields_.has({"layout"});
        if (tensor.is_matrix)
            read_matrix(tensor);
        else if (tensor.format != Format::kF32 && tensor.format != Format::kI32)
            wrong("format", "F32 or I32 of what is no matrix");
        const PartSizes sizes = part_sizes(tensor);
        tensor.offset = place("offset", fields_, sizes.data, tensor.is_matrix ? kWeightsPage : kPartAlignment);
        if (fields_.integer({"bytes"}, 0, file_bytes_) != sizes.data)
            wrong("bytes", std::to_string(sizes.data) + " as format and shape say");
        if (sizes.scales > 0) tensor.scales = place("offset", *scales_, sizes.scales, kPartAlignment);
        if (sizes.zero_points > 0)
            tensor.zero_points = place("zero_points", fields_, sizes.zero_points, kPartAlignment);
        const std::optional<uint64_t> sum = from_hex(fields_.string_or({"checksum"}, ""));
        if (!sum) wrong("checksum", "16 hexadecimal digits");
        tensor.checksum = *sum;
        return tensor;
    }

private:
    [[noreturn]] void wrong(const char* field, const std::string& expected) const { fields_.wrong(field, expected); }

    Format format(const char* field, const ConfigFields& fields) const {
        const auto found = format_named(fields.string_or({field}, ""));
        if (!found) fields.wrong(field, "the name of a format");
        return *found;
    }

    /// Where a part of `bytes` bytes begins: behind the first page and inside the file.
    int64_t place(const char* field, const ConfigFields& fields, int64_t bytes, int64_t alignment) const {
        const int64_t offset = fields.integer({field}, kWeightsPage, file_bytes_);
        if (offset % alignment != 0) fields.wrong(field, "a multiple of " + std::to_string(alignment));
        if (bytes > file_bytes_ - offset)
            fail(where_, ": ", bytes, " bytes at ", offset, " end outside ", kWeightsFile, " of ", file_bytes_,
                 " bytes");
        return offset;
    }

    void read_matrix(ConvertedTensor& tensor) {
        if (tensor.shape.size() != 2) wrong("shape", "rows and columns");
        Matrix& m = tensor.matrix;
        m.format = tensor.format;
        m.rows = tensor.shape[0];
        m.cols = tensor.shape[1];
        const quant::FormatTraits& traits = quant::traits(m.format);
        if (!traits.weight) wrong("format", "one that a matrix can have");
        if (m.cols % traits.block != 0) wrong("shape", "a multiple of " + std::to_string(traits.block) + " columns");
        m.row_bytes = quant::bytes_of(m.format, m.cols);
        scales_ = fields_.object({"scales"});
        if (scales_.has_value() != has_scales(m.format))
            wrong("scales", has_scales(m.format) ? "the scales of " + std::string(traits.name) : "none");
        if (scales_) {
            m.scale_format = format("format", *scales_);
            m.scale_rows = scales_->integer({"rows"}, 1, kMaxDimension);
            m.scale_cols = scales_->integer({"cols"}, 1, kMaxDimension);
            if (!known_scales(m)) wrong("scales", "a form of scales that " + std::string(traits.name) + " can have");
            m.scale_stride = quant::bytes_of(m.scale_format, ceil_div(m.cols, m.scale_cols));
        }
        m.multiplier = static_cast<float>(fields_.number_or({"multiplier"}, std::numeric_limits<float>::denorm_min(),
                                                            std::numeric_limits<float>::max(), 1.0));
        const bool zero_points = fields_.has({"zero_points"});
        if (zero_points && m.format != Format::kInt4Pair) wrong("zero_points", "none but of INT4");
        read_layout(tensor, zero_points);
    }

    void read_layout(ConvertedTensor& tensor, bool zero_points) {
        static const std::byte kSomewhere{};
        Matrix& m = tensor.matrix;
        if (zero_points) m.zero_points = &kSomewhere;
        const std::string layout = fields_.string_or({"layout"}, "");
        if (layout == "strips") {
            if (has_scales(m.format)) m.scales = &kSomewhere;
            m = packed_form(m);
            if (m.layout != quant::Layout::kStrips) wrong("layout", "rows: this matrix has no strips");
            m.scales = nullptr;
        } else if (layout != "rows") {
            wrong("layout", "strips or rows");
        }
    }

    const ConfigFields& fields_;
    std::string where_;
    int64_t file_bytes_;
    std::optional<ConfigFields> scales_;
};

/// The entry of a checked tensor, a view of the file.
TensorEntry entry_of(const ConvertedTensor& tensor, const MappedFile& file) {
    const std::byte* base = file.bytes().data();
    TensorEntry entry{tensor.name,          tensor.format,           tensor.shape,
                      base + tensor.offset, part_sizes(tensor).data, 0,
                      tensor.offset,        tensor.checksum,         {}};
    if (!tensor.is_matrix) return entry;
    const PartSizes sizes = part_sizes(tensor);
    Matrix& m = entry.converted.emplace(tensor.matrix);
    m.data = entry.data;
    m.scales = sizes.scales > 0 ? base + tensor.scales : nullptr;
    m.zero_points = sizes.zero_points > 0 ? base + tensor.zero_points : nullptr;
    return entry;
}

uint64_t checksum_of_entry(const TensorEntry& entry) {
    uint64_t sum = checksum_of({entry.data, static_cast<size_t>(entry.bytes)});
    if (!entry.converted) return sum;
    const Matrix& m = *entry.converted;
    const PartSizes sizes = sizes_of(m, m.zero_points != nullptr);
    if (m.scales) sum = checksum_of({m.scales, static_cast<size_t>(sizes.scales)}, sum);
    if (m.zero_points) sum = checksum_of({m.zero_points, static_cast<size_t>(sizes.zero_points)}, sum);
    return sum;
}

struct Range {
    int64_t begin, end;
    const std::string* name;
};

/// Two tensors may show the same bytes (a head that is the embedding), not a part of another's.
void check_overlaps(std::vector<Range>& ranges, const std::string& where) {
    std::sort(ranges.begin(), ranges.end(),
              [](const Range& a, const Range& b) { return a.begin != b.begin ? a.begin < b.begin : a.end < b.end; });
    for (size_t i = 1; i < ranges.size(); ++i) {
        const Range &a = ranges[i - 1], &b = ranges[i];
        if (b.begin < a.end && (a.begin != b.begin || a.end != b.end))
            fail(where, ": tensors ", printable(*a.name), " and ", printable(*b.name), " overlap at ", b.begin);
    }
}

void check_page(std::string_view index, const MappedFile& file) {
    const std::string name = printable(file.path().string());
    FirstPage page;
    if (file.size() < static_cast<size_t>(kWeightsPage)) fail(name, ": ", file.size(), " bytes, it is cut off", kAgain);
    std::memcpy(&page, file.bytes().data(), sizeof page);
    if (std::memcmp(page.magic, kMagic, sizeof kMagic) != 0) fail(name, ": is no file of converted weights");
    if (page.version != kVersion || page.page_bytes != kWeightsPage)
        fail(name, ": layout version ", page.version, ", expected ", kVersion, kAgain);
    if (page.file_bytes != file.size())
        fail(name, ": ", file.size(), " bytes, expected ", page.file_bytes, ", the file is damaged", kAgain);
    if (page.index_bytes != index.size() || page.index_checksum != checksum_of(bytes_of(index)))
        fail(name, ": belongs to another ", kIndexFile, " than the one beside it, or that was changed", kAgain);
}

Metadata read_metadata(const fs::path& file) {
    Metadata metadata;
    if (!fs::exists(file)) return metadata;
    const Json json = parse_json(read_text(file, kMaxIndexBytes), printable(file.string()));
    if (!json.is_object()) fail(printable(file.string()), ": is ", json.type_name(), ", expected an object");
    for (const auto& [key, value] : json.items()) metadata.emplace(key, value);
    return metadata;
}

Json json_of(const ConvertedTensor& tensor) {
    Json json = {{"name", tensor.name},
                 {"format", quant::traits(tensor.format).name},
                 {"shape", tensor.shape},
                 {"offset", tensor.offset},
                 {"bytes", part_sizes(tensor).data},
                 {"checksum", hex(tensor.checksum)}};
    if (!tensor.is_matrix) return json;
    const Matrix& m = tensor.matrix;
    json["layout"] = m.layout == quant::Layout::kStrips ? "strips" : "rows";
    if (has_scales(m.format)) {
        json["scales"] = {
            {"format", quant::traits(m.scale_format).name}, {"rows", m.scale_rows}, {"cols", m.scale_cols}};
        if (tensor.scales > 0) json["scales"]["offset"] = tensor.scales;
    }
    if (m.multiplier != 1.0f) json["multiplier"] = static_cast<double>(m.multiplier);  // float -> double is exact
    if (tensor.zero_points > 0) json["zero_points"] = tensor.zero_points;
    return json;
}

}  // namespace

PartSizes part_sizes(const ConvertedTensor& tensor) {
    if (tensor.is_matrix) return sizes_of(tensor.matrix, tensor.matrix.zero_points != nullptr);
    return {.data = quant::bytes_of(tensor.format, element_count(tensor.shape).value_or(0))};
}

std::string converted_index(const Checkpoint::Source& source, const std::vector<ConvertedTensor>& tensors) {
    Json list = Json::array();
    for (const ConvertedTensor& tensor : tensors) list.push_back(json_of(tensor));
    return dump_json({{"layout_version", kVersion},
                      {"source", {{"container", source.container}, {"path", source.path}}},
                      {"tensors", std::move(list)}});
}

std::string weights_page(std::string_view index, int64_t file_bytes) {
    FirstPage page{{},
                   kVersion,
                   static_cast<uint32_t>(kWeightsPage),
                   index.size(),
                   checksum_of(bytes_of(index)),
                   static_cast<uint64_t>(file_bytes)};
    std::memcpy(page.magic, kMagic, sizeof kMagic);
    std::string bytes(static_cast<size_t>(kWeightsPage), '\0');
    std::memcpy(bytes.data(), &page, sizeof page);
    return bytes;
}

bool is_converted(const fs::path& folder) { return fs::exists(folder / kIndexFile); }

void read_converted_index(std::string_view index, const std::shared_ptr<const MappedFile>& weights,
                          Checkpoint& checkpoint) {
    const std::string where = kIndexFile;
    const Json json = parse_json(index, where);
    const ConfigFields fields(json, where);
    if (const int64_t version = fields.integer({"layout_version"}, 1, INT32_MAX); version != kVersion)
        fail(where, ": layout version ", version, ", this program reads ", kVersion, kAgain);
    if (const auto source = fields.object({"source"}))
        checkpoint.source = {source->string_or({"container"}, ""), source->string_or({"path"}, "")};
    if (checkpoint.source.container.empty()) fields.wrong("source", "container and path");
    const auto list = json.find("tensors");
    if (list == json.end() || !list->is_array() || list->empty()) fields.wrong("tensors", "a list of tensors");

    checkpoint.weights.files.push_back(weights);
    std::vector<Range> ranges;
    for (const Json& item : *list) {
        const std::string name = ConfigFields(item, where + ": tensors").string_or({"name"}, "");
        const std::string tensor_where = where + ": tensor " + printable(name);
        const ConfigFields entry_fields(item, tensor_where);
        const auto tensor = EntryReader(entry_fields, tensor_where, static_cast<int64_t>(weights->size())).read(name);
        const auto [it, is_new] = checkpoint.weights.tensors.emplace(name, entry_of(tensor, *weights));
        if (!is_new || name.empty()) fail(tensor_where, ": is there twice or has no name");
        const PartSizes sizes = part_sizes(tensor);
        ranges.push_back({tensor.offset, tensor.offset + sizes.data, &it->first});
        if (sizes.scales > 0) ranges.push_back({tensor.scales, tensor.scales + sizes.scales, &it->first});
        if (sizes.zero_points > 0)
            ranges.push_back({tensor.zero_points, tensor.zero_points + sizes.zero_points, &it->first});
    }
    check_overlaps(ranges, where);
    // What is copied while loading is small: its bits are checked now.
    for (const auto& [name, entry] : checkpoint.weights.tensors)
        if (!entry.converted && checksum_of_entry(entry) != entry.checksum)
            fail(kWeightsFile, ": tensor ", printable(name), " is damaged (wrong checksum)", kAgain);
}

Checkpoint open_converted(const fs::path& folder, const std::string& given) {
    return with_context(printable(given), [&] {
        Checkpoint checkpoint;
        checkpoint.path = given;
        checkpoint.container = "converted";
        const auto index = MappedFile::open(folder / kIndexFile);
        if (index->size() > kMaxIndexBytes)
            fail(kIndexFile, ": ", index->size(), " bytes, expected at most ", kMaxIndexBytes);
        const auto weights = MappedFile::open(folder / kWeightsFile);
        check_page(index->text(), *weights);
        read_converted_index(index->text(), weights, checkpoint);
        checkpoint.config = read_config(folder / "config.json");
        checkpoint.metadata = read_metadata(folder / kMetadataFile);
        if (checkpoint.metadata.empty() && checkpoint.source.container == "gguf")
            fail(kMetadataFile, ": is missing, and the model was made from GGUF", kAgain);
        return checkpoint;
    });
}

std::vector<std::string> damaged_tensors(const Checkpoint& checkpoint, const std::function<void(int64_t)>& progress) {
    std::vector<std::string> problems;
    int64_t done = 0;
    for (const auto& [name, entry] : checkpoint.weights.tensors) {
        if (checksum_of_entry(entry) != entry.checksum)
            problems.push_back("tensor " + printable(name) + " is damaged (wrong checksum)" + kAgain);
        progress(done += entry.bytes);
    }
    return problems;
}

}  // namespace thermocline::model
