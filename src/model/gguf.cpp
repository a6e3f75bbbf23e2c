#include "src/model/gguf.h"

#include "src/base/error.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstring>
#include <optional>

namespace thermocline::model {

namespace {

constexpr uint64_t kMaxTensors = uint64_t{1} << 19;
constexpr uint64_t kMaxKeys = uint64_t{1} << 16;
constexpr uint64_t kMaxNameBytes = 63;
constexpr uint64_t kMaxKeyBytes = 65535;
constexpr uint64_t kMaxElements = uint64_t{1} << 22;       // of all metadata arrays of a file together
constexpr uint64_t kMaxStringBytes = uint64_t{128} << 20;  // of all metadata strings of a file together
constexpr int64_t kMaxSplits = 10'000;
constexpr uint32_t kAmbiguousType = 42;

enum ValueType : uint32_t {
    kU8,
    kI8,
    kU16,
    kI16,
    kU32,
    kI32,
    kF32,
    kBool,
    kString,
    kArray,
    kU64,
    kI64,
    kF64,
};

/// Reads little-endian values off the front of a file; every read is checked against its end.
class Cursor {
public:
    Cursor(std::span<const std::byte> bytes, std::string file) : bytes_(bytes), file_(std::move(file)) {}

    template <typename T>
    T read(const char* what) {
        need(sizeof(T), what);
        T value;
        std::memcpy(&value, bytes_.data() + at_, sizeof(T));
        at_ += sizeof(T);
        return value;
    }

    std::string text(const char* what, uint64_t limit) {
        const auto length = read<uint64_t>(what);
        if (length > bytes_.size() - at_)
            fail(file_, ": ", what, " at byte ", at_, " has a string length of ", length,
                 ", beyond the end of the file (", bytes_.size(), " bytes)");
        if (length > limit)
            fail(file_, ": ", what, " at byte ", at_, " has ", length, " bytes, expected at most ", limit);
        std::string value(reinterpret_cast<const char*>(bytes_.data() + at_), length);
        at_ += length;
        return value;
    }

    uint64_t position() const { return at_; }
    uint64_t left() const { return bytes_.size() - at_; }
    const std::string& file() const { return file_; }

private:
    void need(uint64_t count, const char* what) const {
        if (count > bytes_.size() - at_)
            fail(file_, ": truncated in ", what, " at byte ", at_, " (the file has ", bytes_.size(), " bytes)");
    }

    std::span<const std::byte> bytes_;
    std::string file_;
    uint64_t at_ = 0;
};

/// What metadata may still take in this file.
struct Budget {
    uint64_t elements = kMaxElements;
    uint64_t string_bytes = kMaxStringBytes;
};

[[noreturn]] void refuse_type(const Cursor& cursor, uint32_t type, const std::string& key) {
    fail(cursor.file(), ": key ", printable(key), " has value type ", type,
         type == kArray ? " inside an array (arrays of arrays are not supported)" : ", expected 0 to 12");
}

Json read_scalar(Cursor& cursor, uint32_t type, Budget& budget, const std::string& key) {
    switch (type) {
        case kU8:
            return cursor.read<uint8_t>("a value");
        case kI8:
            return cursor.read<int8_t>("a value");
        case kU16:
            return cursor.read<uint16_t>("a value");
        case kI16:
            return cursor.read<int16_t>("a value");
        case kU32:
            return cursor.read<uint32_t>("a value");
        case kI32:
            return cursor.read<int32_t>("a value");
        case kF32:
            return static_cast<double>(cursor.read<float>("a value"));
        case kBool:
            return cursor.read<uint8_t>("a value") != 0;
        case kU64:
            return cursor.read<uint64_t>("a value");
        case kI64:
            return cursor.read<int64_t>("a value");
        case kF64:
            return cursor.read<double>("a value");
        case kString: {
            std::string text = cursor.text("a string value", budget.string_bytes);
            budget.string_bytes -= text.size();
            return text;
        }
        default:
            refuse_type(cursor, type, key);
    }
}

uint64_t least_bytes(uint32_t type) {
    switch (type) {
        case kU8:
        case kI8:
        case kBool:
            return 1;
        case kU16:
        case kI16:
            return 2;
        case kU32:
        case kI32:
        case kF32:
            return 4;
        default:
            return 8;
    }
}

Json read_value(Cursor& cursor, Budget& budget, const std::string& key) {
    const auto type = cursor.read<uint32_t>("a value type");
    if (type != kArray) return read_scalar(cursor, type, budget, key);
    const auto element = cursor.read<uint32_t>("an array type");
    if (element == kArray || element > kF64) refuse_type(cursor, element, key);
    const auto count = cursor.read<uint64_t>("an array length");
    if (count > cursor.left() / least_bytes(element))
        fail(cursor.file(), ": key ", printable(key), " is an array of ", count,
             " elements, beyond the end of the file");
    if (count > budget.elements)
        fail(cursor.file(), ": key ", printable(key), " is an array of ", count, " elements, expected at most ",
             budget.elements, " (", kMaxElements, " in all)");
    budget.elements -= count;
    Json::array_t values;
    values.reserve(count);
    for (uint64_t i = 0; i < count; ++i) values.push_back(read_scalar(cursor, element, budget, key));
    return values;
}

/// A tensor as the file describes it, before its place is checked.
struct TensorRecord {
    std::string name;
    Shape shape;  // slowest dimension first
    uint32_t type = 0;
    uint64_t offset = 0;
    int64_t elements = 0;
    std::optional<quant::Format> format;
};

TensorRecord read_record(Cursor& cursor) {
    TensorRecord record;
    record.name = cursor.text("a tensor name", kMaxNameBytes);
    const std::string tensor = cursor.file() + ": tensor " + printable(record.name);
    const auto dimensions = cursor.read<uint32_t>("a tensor record");
    if (dimensions > 4) fail(tensor, " has ", dimensions, " dimensions, expected at most 4");
    for (uint32_t i = 0; i < dimensions; ++i) record.shape.push_back(cursor.read<int64_t>("a tensor shape"));
    std::reverse(record.shape.begin(), record.shape.end());
    const std::optional<int64_t> elements = element_count(record.shape);
    if (!elements || *elements > INT64_MAX / 16)
        fail(tensor, " has shape ", to_string(record.shape), ", whose size overflows");
    record.elements = *elements;
    record.type = cursor.read<uint32_t>("a tensor type");
    record.offset = cursor.read<uint64_t>("a tensor offset");
    record.format = quant::from_gguf(record.type);
    if (!record.format && record.type != kAmbiguousType)
        fail(tensor, " has type ", record.type, ": ", quant::refused_gguf_type(record.type));
    return record;
}

int64_t row_length(const TensorRecord& record) { return record.shape.empty() ? 1 : record.shape.back(); }

uint64_t round_up(uint64_t value, uint64_t alignment) { return (value + alignment - 1) / alignment * alignment; }

/// Type 42 means Q2_0 upstream and blocks of 128 FP8 numbers in a fork: the bytes that the tensors occupy decide, and
/// they decide once for the whole file (section 8.1).
void resolve_ambiguous(std::vector<TensorRecord>& records, uint64_t data_bytes, uint64_t alignment,
                       const std::string& file) {
    std::optional<quant::Format> decided;
    for (size_t i = 0; i < records.size(); ++i) {
        TensorRecord& record = records[i];
        if (record.type != kAmbiguousType) continue;
        const uint64_t end = i + 1 < records.size() ? records[i + 1].offset : round_up(data_bytes, alignment);
        const auto fits = [&](quant::Format format) {
            if (row_length(record) % quant::traits(format).block != 0 || end < record.offset) return false;
            const auto bytes = static_cast<uint64_t>(quant::bytes_of(format, record.elements));
            return round_up(bytes, alignment) == end - record.offset;
        };
        for (const quant::Format format : {quant::Format::kQ2_0, quant::Format::kE4M3Block128})
            if (fits(format)) record.format = format;
        if (!record.format || (decided && *decided != *record.format))
            fail(file, ": tensor ", printable(record.name), " has type 42 and occupies ", end - record.offset,
                 " bytes, which is neither Q2_0 nor F8_E4M3_B128",
                 decided ? " as the tensors of this type before it" : "");
        decided = record.format;
    }
}

uint64_t alignment_of(const Metadata& keys, const std::string& file) {
    const auto found = keys.find("general.alignment");
    if (found == keys.end()) return 32;
    const uint64_t alignment = found->second.is_number_unsigned() ? found->second.get<uint64_t>() : 0;
    if (!std::has_single_bit(alignment) || alignment > (1u << 20))
        fail(file, ": general.alignment is ", printable(dump_json(found->second)),
             ", expected a power of two up to 2^20");
    return alignment;
}

Metadata read_keys(Cursor& cursor, uint64_t count) {
    Metadata keys;
    Budget budget;
    for (uint64_t i = 0; i < count; ++i) {
        std::string key = cursor.text("a key", kMaxKeyBytes);
        Json value = read_value(cursor, budget, key);
        const auto [place, added] = keys.emplace(std::move(key), std::move(value));
        if (!added) fail(cursor.file(), ": key ", printable(place->first), " is there twice");
    }
    return keys;
}

struct Counts {
    uint64_t tensors;
    uint64_t keys;
};

Counts read_start(Cursor& cursor, std::string_view text) {
    if (!text.starts_with("GGUF"))
        fail(cursor.file(), ": not a GGUF file (begins with \"", printable(text.substr(0, 4)),
             "\", expected \"GGUF\")");
    cursor.read<uint32_t>("the magic");
    const auto version = cursor.read<uint32_t>("the version");
    if ((version & 0xffff) == 0 && version != 0) fail(cursor.file(), ": big-endian GGUF is not supported");
    if (version != 2 && version != 3) fail(cursor.file(), ": GGUF version ", version, ", expected 2 or 3");
    const Counts counts{cursor.read<uint64_t>("the tensor count"), cursor.read<uint64_t>("the key count")};
    // The smallest record takes 24 bytes, the smallest key 13.
    if (counts.tensors > std::min(kMaxTensors, cursor.left() / 24))
        fail(cursor.file(), ": ", counts.tensors, " tensors, more than the file can hold (or than ", kMaxTensors, ")");
    if (counts.keys > std::min(kMaxKeys, cursor.left() / 13))
        fail(cursor.file(), ": ", counts.keys, " keys, more than the file can hold (or than ", kMaxKeys, ")");
    return counts;
}

/// Tensors must lie in the order of their records, each at the next multiple of the alignment.
void enter_tensors(std::vector<TensorRecord>& records, uint64_t data_start, uint64_t alignment,
                   const std::shared_ptr<const MappedFile>& file, WeightDirectory& directory) {
    const std::string name = printable(file->path().filename().string());
    const uint64_t data_bytes = file->size() - std::min<uint64_t>(data_start, file->size());
    uint64_t expected_offset = 0;
    for (TensorRecord& record : records) {
        const std::string tensor = name + ": tensor " + printable(record.name);
        const int32_t block = quant::traits(*record.format).block;
        if (row_length(record) % block != 0)
            fail(tensor, " (", quant::traits(*record.format).name, ") has rows of ", row_length(record),
                 " elements, expected a multiple of ", block);
        const auto bytes = static_cast<uint64_t>(quant::bytes_of(*record.format, record.elements));
        if (record.offset != expected_offset)
            fail(tensor, " is at offset ", record.offset, " of the data, expected ", expected_offset,
                 record.offset < expected_offset ? " (overlap)" : " (hole or misaligned)");
        if (record.offset > data_bytes || bytes > data_bytes - record.offset)
            fail(tensor, ": truncated, ends at byte ", data_start + record.offset + bytes, ", the file has ",
                 file->size());
        expected_offset = round_up(record.offset + bytes, alignment);
        const auto offset = static_cast<int64_t>(data_start + record.offset);
        TensorEntry entry{record.name,
                          *record.format,
                          std::move(record.shape),
                          file->bytes().data() + offset,
                          static_cast<int64_t>(bytes),
                          static_cast<int>(directory.files.size()),
                          offset};
        if (!directory.tensors.emplace(record.name, std::move(entry)).second) fail(tensor, " is there twice");
    }
}

}  // namespace

std::optional<int64_t> metadata_integer(const Metadata& metadata, const std::string& key) {
    const auto found = metadata.find(key);
    if (found == metadata.end()) return std::nullopt;
    const Json& value = found->second;
    if (value.is_boolean()) return value.get<bool>() ? 1 : 0;
    if (!value.is_number_integer() || (value.is_number_unsigned() && value.get<uint64_t>() > uint64_t{INT64_MAX}))
        fail("GGUF key ", printable(key), " is ", printable(dump_json(value)), ", expected an integer");
    return value.get<int64_t>();
}

void read_gguf(const std::shared_ptr<const MappedFile>& file, WeightDirectory& directory, Metadata& metadata) {
    Cursor cursor(file->bytes(), printable(file->path().filename().string()));
    const Counts counts = read_start(cursor, file->text());
    Metadata keys = read_keys(cursor, counts.keys);
    const uint64_t alignment = alignment_of(keys, cursor.file());
    std::vector<TensorRecord> records;
    for (uint64_t i = 0; i < counts.tensors; ++i) records.push_back(read_record(cursor));
    const uint64_t data_start = round_up(cursor.position(), alignment);
    if (!records.empty() && data_start > file->size()) fail(cursor.file(), ": truncated before the tensor data");
    resolve_ambiguous(records, file->size() - std::min<uint64_t>(data_start, file->size()), alignment, cursor.file());
    enter_tensors(records, data_start, alignment, file, directory);
    directory.files.push_back(file);
    metadata = std::move(keys);
}

namespace {

/// "x-00001-of-00003.gguf" -> "x", if the numbers are those.
std::optional<std::string> split_prefix(const std::string& name, int64_t number, int64_t count) {
    char tail[64];
    std::snprintf(tail, sizeof(tail), "-%05d-of-%05d.gguf", static_cast<int>(number), static_cast<int>(count));
    if (!name.ends_with(tail)) return std::nullopt;
    return name.substr(0, name.size() - std::strlen(tail));
}

}  // namespace

void read_gguf_model(const std::filesystem::path& path, WeightDirectory& directory, Metadata& metadata) {
    read_gguf(MappedFile::open(path), directory, metadata);
    const int64_t count = metadata_integer(metadata, "split.count").value_or(1);
    if (count <= 1) return;
    const std::string name = path.filename().string();
    if (count > kMaxSplits) fail(printable(name), ": split.count is ", count, ", expected at most ", kMaxSplits);
    const int64_t number = metadata_integer(metadata, "split.no").value_or(0);
    if (number != 0)
        fail(printable(name), ": part ", number + 1, " of ", count, " of a split model, give its first part");
    const std::optional<std::string> prefix = split_prefix(name, 1, count);
    if (!prefix)
        fail(printable(name), ": first of ", count, " parts, expected a name ending in -00001-of-N.gguf with N parts");

    std::vector<std::filesystem::path> parts;
    std::string missing;
    for (int64_t i = 2; i <= count; ++i) {
        char tail[64];
        std::snprintf(tail, sizeof(tail), "-%05d-of-%05d.gguf", static_cast<int>(i), static_cast<int>(count));
        parts.push_back(path.parent_path() / (*prefix + tail));
        if (!std::filesystem::exists(parts.back()) && missing.empty()) missing = parts.back().filename().string();
    }
    if (!missing.empty())
        fail(printable(name), ": missing shard ", printable(missing), " (", count, " parts expected)");
    for (int64_t i = 2; i <= count; ++i) {
        Metadata keys;
        read_gguf(MappedFile::open(parts[i - 2]), directory, keys);
        const int64_t found = metadata_integer(keys, "split.no").value_or(-1);
        if (found != i - 1)
            fail(printable(parts[i - 2].filename().string()), ": split.no is ", found, ", expected ", i - 1);
    }
    const int64_t total = metadata_integer(metadata, "split.tensors.count").value_or(-1);
    if (total != static_cast<int64_t>(directory.tensors.size()))
        fail(printable(name), ": split.tensors.count is ", total, ", the parts have ", directory.tensors.size(),
             " tensors");
}

}  // namespace thermocline::model
