#include "src/model/safetensors.h"

#include "src/base/error.h"

#include <algorithm>
#include <cstring>
#include <optional>
#include <set>

namespace thermocline::model {

namespace {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;
constexpr size_t kMaxTensors = size_t{1} << 19;
constexpr size_t kMaxDimensions = 8;
constexpr size_t kMaxNameBytes = 1024;
constexpr size_t kMaxTokenBytes = size_t{1} << 20;  // of one JSON string or number: the parser copies it several times
constexpr size_t kMaxIndexBytes = 100'000'000;
constexpr size_t kMaxFiles = 10'000;

/// One entry of the header as written, before it is checked against the file.
struct HeaderEntry {
    std::string name;
    std::string dtype;
    Shape shape;
    std::vector<int64_t> offsets;
    bool has_shape = false;
};

/// Common part of the two SAX readers: turns parser errors into a text and refuses what a reader does not expect.
class JsonReader : public nlohmann::json_sax<Json> {
public:
    std::string problem;  ///< first thing that was wrong; empty if nothing was

    bool null() override { return scalar("null"); }
    bool boolean(bool) override { return scalar("a boolean"); }
    bool number_float(number_float_t, const string_t& text) override { return scalar("the number " + text); }
    bool number_integer(number_integer_t value) override { return scalar("the number " + std::to_string(value)); }
    bool number_unsigned(number_unsigned_t value) override { return scalar("the number " + std::to_string(value)); }
    bool binary(binary_t&) override { return scalar("binary"); }
    bool parse_error(size_t position, const std::string&, const nlohmann::json::exception&) override {
        if (problem.empty()) problem = "not valid JSON at byte " + std::to_string(position);
        return false;
    }

protected:
    virtual bool scalar(const std::string& found) = 0;
    bool refuse(const std::string& text) {
        problem = text;
        return false;
    }
};

/// {"name": {"dtype": "F32", "shape": [..], "data_offsets": [b, e]}, .., "__metadata__": {..}}
class HeaderReader : public JsonReader {
public:
    std::vector<HeaderEntry> entries;

    bool start_object(size_t) override {
        ++depth_;
        if (depth_ <= 2 || in_metadata_) return depth_ <= 8 || refuse("__metadata__ is nested too deeply");
        return unexpected("an object");
    }
    bool end_object() override {
        --depth_;
        if (depth_ != 1) return true;
        if (in_metadata_) {
            in_metadata_ = false;
            return true;
        }
        return complete();
    }
    bool key(string_t& text) override {
        if (text.size() > kMaxNameBytes) return refuse("a name of " + std::to_string(text.size()) + " bytes");
        if (depth_ == 1) {
            in_metadata_ = text == "__metadata__";
            if (in_metadata_) return true;
            if (entries.size() == kMaxTensors) return refuse("more than " + std::to_string(kMaxTensors) + " tensors");
            entries.emplace_back();
            entries.back().name = text;
            return true;
        }
        if (in_metadata_) return ++metadata_keys_ <= kMaxTensors || refuse("__metadata__ has too many keys");
        const bool known = text == "dtype" || text == "shape" || text == "data_offsets";
        field_ = text;
        return known || refuse(here() + " has the unknown field " + printable(text));
    }
    bool start_array(size_t) override {
        if (in_metadata_) return refuse("__metadata__ holds an array");
        if (depth_ != 2 || in_array_ || field_ == "dtype") return unexpected("an array");
        std::vector<int64_t>& list = field_ == "shape" ? entries.back().shape : entries.back().offsets;
        if (!list.empty() || (field_ == "shape" && entries.back().has_shape)) return refuse(here() + " is there twice");
        entries.back().has_shape |= field_ == "shape";
        in_array_ = true;
        return true;
    }
    bool end_array() override {
        in_array_ = false;
        return true;
    }
    bool string(string_t& text) override {
        if (in_metadata_) return true;
        if (depth_ != 2 || in_array_ || field_ != "dtype") return unexpected("the string " + printable(text));
        if (!entries.back().dtype.empty()) return refuse(here() + " is there twice");
        entries.back().dtype = text.substr(0, kMaxNameBytes);
        return true;
    }
    bool number_unsigned(number_unsigned_t value) override {
        if (in_metadata_) return true;
        if (!in_array_ || value > static_cast<uint64_t>(INT64_MAX))
            return scalar("the number " + std::to_string(value));
        std::vector<int64_t>& list = field_ == "shape" ? entries.back().shape : entries.back().offsets;
        if (list.size() == kMaxDimensions) return refuse(here() + " has more than 8 numbers");
        list.push_back(static_cast<int64_t>(value));
        return true;
    }

protected:
    bool scalar(const std::string& found) override { return in_metadata_ || unexpected(found); }

private:
    std::string here() const {
        return "tensor " + (entries.empty() ? "" : printable(entries.back().name)) +
               (depth_ == 2 ? ": field " + field_ : "");
    }
    bool unexpected(const std::string& found) {
        if (depth_ == 0) return refuse("found " + found + ", expected an object");
        if (field_ == "dtype" && depth_ == 2) return refuse(here() + " is " + found + ", expected a string");
        return refuse(here() + " is " + found + ", expected " +
                      (depth_ == 1 ? "an object" : "an array of integers from 0 to 2^63-1 (size out of range)"));
    }
    bool complete() {
        const HeaderEntry& entry = entries.back();
        if (entry.dtype.empty()) return refuse("tensor " + printable(entry.name) + " has no dtype");
        if (!entry.has_shape) return refuse("tensor " + printable(entry.name) + " has no shape");
        if (entry.offsets.size() != 2)
            return refuse("tensor " + printable(entry.name) + ": data_offsets has " +
                          std::to_string(entry.offsets.size()) + " numbers, expected 2");
        return true;
    }

    int depth_ = 0;
    size_t metadata_keys_ = 0;
    bool in_metadata_ = false;
    bool in_array_ = false;
    std::string field_;
};

/// {"metadata": {..}, "weight_map": {tensor: file}}: collects the files.
class IndexReader : public JsonReader {
public:
    std::set<std::string> files;

    bool start_object(size_t) override {
        in_map_ = ++depth_ == 2 && section_ == "weight_map";
        found_map_ |= in_map_;
        return depth_ <= 8 || refuse("nested too deeply");
    }
    bool end_object() override {
        in_map_ = false;
        --depth_;
        return true;
    }
    bool key(string_t& text) override {
        if (depth_ == 1) section_ = text.substr(0, kMaxNameBytes);
        return ++keys_ <= kMaxTensors || refuse("more than " + std::to_string(kMaxTensors) + " keys");
    }
    bool start_array(size_t) override { return !in_map_ || refuse("weight_map holds an array"); }
    bool end_array() override { return true; }
    bool string(string_t& text) override {
        if (!in_map_) return true;
        if (text.size() > kMaxNameBytes || text.empty() || text.find('/') != std::string::npos)
            return refuse("weight_map names the file " + printable(text) + ", expected a name in the same directory");
        if (files.size() == kMaxFiles) return refuse("more than " + std::to_string(kMaxFiles) + " files");
        files.insert(text);
        return true;
    }
    bool complete() { return found_map_ || refuse("has no weight_map"); }

protected:
    bool scalar(const std::string& found) override {
        return !in_map_ || refuse("weight_map holds " + found + ", expected file names");
    }

private:
    int depth_ = 0;
    size_t keys_ = 0;
    bool in_map_ = false;
    bool found_map_ = false;
    std::string section_;
};

/// Refuses JSON with a string or number of absurd length before the parser copies it.
void check_tokens(std::string_view text, const std::string& what) {
    size_t length = 0;
    bool in_string = false;
    for (size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        const bool escape = in_string && c == '\\';
        const bool quote = c == '"';
        const bool between =
            !in_string && (c == ',' || c == ':' || c == '[' || c == ']' || c == '{' || c == '}' || c == ' ');
        length = quote || between ? 0 : length + 1;
        if (length > kMaxTokenBytes) fail(what, ": a string or number of more than ", kMaxTokenBytes, " bytes");
        if (quote) in_string = !in_string;
        if (escape) ++i;
    }
}

/// Format and byte count of one entry; throws if they do not fit together.
quant::Format checked_format(const HeaderEntry& entry, const std::string& file) {
    const std::string tensor = file + ": tensor " + printable(entry.name);
    const std::optional<quant::Format> format = quant::from_safetensors(entry.dtype);
    if (!format) fail(tensor, " has dtype ", printable(entry.dtype), ", which is not supported");
    const int64_t block = quant::traits(*format).block;
    const std::optional<int64_t> elements = element_count(entry.shape);
    if (!elements || *elements > INT64_MAX / 16)
        fail(tensor, " has shape ", to_string(entry.shape), ", whose size overflows 64 bits");
    if (*elements % block != 0 || (block > 1 && (entry.shape.empty() || entry.shape.back() % block != 0)))
        fail(tensor, " (", entry.dtype, ") has shape ", to_string(entry.shape), ", expected rows of a multiple of ",
             block);
    const int64_t expected = quant::bytes_of(*format, *elements);
    const int64_t begin = entry.offsets[0], end = entry.offsets[1];
    if (begin > end) fail(tensor, ": data_offsets [", begin, ", ", end, "] run backwards");
    if (end - begin != expected)
        fail(tensor, " (", entry.dtype, " ", to_string(entry.shape), ") has ", end - begin, " bytes, expected ",
             expected);
    return *format;
}

/// The ranges must cover the data exactly: `order` is sorted by begin.
void check_ranges(const std::vector<const HeaderEntry*>& order, int64_t data_bytes, const std::string& file) {
    int64_t end = 0;
    const HeaderEntry* previous = nullptr;
    for (const HeaderEntry* entry : order) {
        const int64_t begin = entry->offsets[0];
        if (begin < end)
            fail(file, ": tensor ", printable(entry->name), " at offset ", begin, " overlaps tensor ",
                 printable(previous->name), ", which ends at ", end);
        if (begin > end)
            fail(file, ": hole of ", begin - end, " bytes before tensor ", printable(entry->name), " at offset ",
                 begin);
        end = entry->offsets[1];
        previous = entry;
    }
    if (end > data_bytes)
        fail(file, ": truncated, tensor ", printable(previous->name), " ends at offset ", end,
             " of the data, the file has ", data_bytes, " bytes of data");
    if (end < data_bytes) fail(file, ": ", data_bytes - end, " bytes after the last tensor, expected none");
}

/// Length of the header; throws unless it lies inside the file and starts like one.
uint64_t header_bytes(std::span<const std::byte> bytes, const std::string& name) {
    if (bytes.size() < 10) fail(name, ": truncated, ", bytes.size(), " bytes are too few for a safetensors header");
    uint64_t length = 0;
    std::memcpy(&length, bytes.data(), sizeof(length));
    if (length < 2 || length > kMaxHeaderBytes)
        fail(name, ": header length is ", length, ", expected 2 to ", kMaxHeaderBytes, " (not a safetensors file?)");
    if (length > bytes.size() - 8)
        fail(name, ": truncated, its header of ", length, " bytes is cut off (the file has ", bytes.size(), " bytes)");
    if (bytes[8] != std::byte{'{'}) fail(name, ": header does not begin with '{', not a safetensors file");
    return length;
}

}  // namespace

void read_safetensors(const std::shared_ptr<const MappedFile>& file, WeightDirectory& directory) {
    const std::string name = printable(file->path().filename().string());
    const uint64_t length = header_bytes(file->bytes(), name);
    const char* text = file->text().data() + 8;
    check_tokens({text, length}, name);
    HeaderReader reader;
    if (!Json::sax_parse(text, text + length, &reader)) fail(name, ": header: ", reader.problem);

    std::vector<const HeaderEntry*> order;
    order.reserve(reader.entries.size());
    std::vector<quant::Format> formats;
    formats.reserve(reader.entries.size());
    for (const HeaderEntry& entry : reader.entries) {
        formats.push_back(checked_format(entry, name));
        order.push_back(&entry);
    }
    std::sort(order.begin(), order.end(),
              [](const HeaderEntry* a, const HeaderEntry* b) { return a->offsets < b->offsets; });
    check_ranges(order, static_cast<int64_t>(file->size() - 8 - length), name);

    const int file_index = static_cast<int>(directory.files.size());
    for (size_t i = 0; i < reader.entries.size(); ++i) {
        HeaderEntry& entry = reader.entries[i];
        const int64_t offset = static_cast<int64_t>(8 + length) + entry.offsets[0];
        TensorEntry tensor{entry.name,
                           formats[i],
                           std::move(entry.shape),
                           file->bytes().data() + offset,
                           entry.offsets[1] - entry.offsets[0],
                           file_index,
                           offset};
        const auto [place, added] = directory.tensors.emplace(entry.name, std::move(tensor));
        if (added) continue;
        const int other = place->second.file;
        fail(name, ": tensor ", printable(entry.name), " is there twice",
             other == file_index ? "" : ", also in " + printable(directory.files[other]->path().filename().string()));
    }
    directory.files.push_back(file);
}

std::vector<std::string> files_of_index(std::string_view text, const std::string& what) {
    if (text.size() > kMaxIndexBytes) fail(what, ": ", text.size(), " bytes, expected at most ", kMaxIndexBytes);
    check_tokens(text, what);
    IndexReader reader;
    if (!Json::sax_parse(text.data(), text.data() + text.size(), &reader) || !reader.complete())
        fail(what, ": ", reader.problem);
    return {reader.files.begin(), reader.files.end()};
}

namespace {

/// "model-00001-of-00003.safetensors" -> the names of all three; other names -> nothing.
std::vector<std::string> siblings(const std::string& name) {
    constexpr std::string_view kEnd = ".safetensors";
    constexpr size_t kTail = 5 + 4 + 5;  // "00001-of-00003"
    if (name.size() < kTail + 1 + kEnd.size()) return {};
    const size_t at = name.size() - kEnd.size() - kTail;
    const auto number = [&](size_t from) -> int {
        int value = 0;
        for (size_t i = from; i < from + 5; ++i) {
            if (name[i] < '0' || name[i] > '9') return -1;
            value = value * 10 + (name[i] - '0');
        }
        return value;
    };
    if (name[at - 1] != '-' || name.compare(at + 5, 4, "-of-") != 0 || number(at) < 0) return {};
    const int count = number(at + 9);
    std::vector<std::string> names;
    for (int i = 1; i <= std::min(count, static_cast<int>(kMaxFiles)); ++i) {
        std::string digits = std::to_string(i);
        names.push_back(name.substr(0, at) + std::string(5 - std::min<size_t>(5, digits.size()), '0') + digits +
                        name.substr(at + 5));
    }
    return names;
}

void check_none_missing(const std::filesystem::path& folder, const std::set<std::string>& present,
                        const std::set<std::string>& expected) {
    std::string missing;
    size_t count = 0;
    for (const std::string& name : expected) {
        if (present.contains(name)) continue;
        if (++count <= 4) missing += (missing.empty() ? "" : ", ") + printable(name);
    }
    if (count > 4) missing += " and " + std::to_string(count - 4) + " more";
    if (count > 0)
        fail(printable(folder.string()), ": missing shard ", missing, " (", present.size(), " of ",
             present.size() + count, " files found)");
}

}  // namespace

std::vector<std::filesystem::path> safetensors_files(const std::filesystem::path& folder) {
    std::set<std::string> present, consolidated;
    for (const auto& item : std::filesystem::directory_iterator(folder)) {
        const std::string name = item.path().filename().string();
        if (item.path().extension() != ".safetensors" || name.starts_with('.')) continue;
        (name.starts_with("consolidated") ? consolidated : present).insert(name);
    }
    if (present.empty()) present = std::move(consolidated);
    if (present.size() > kMaxFiles) fail(printable(folder.string()), ": more than ", kMaxFiles, " *.safetensors files");

    std::set<std::string> expected;
    const std::filesystem::path index = folder / "model.safetensors.index.json";
    if (std::filesystem::exists(index)) {
        const auto text = MappedFile::open(index);
        for (std::string& name : files_of_index(text->text(), "model.safetensors.index.json"))
            expected.insert(std::move(name));
    }
    for (const std::string& name : present) {
        if (expected.contains(name)) continue;
        for (std::string& sibling : siblings(name)) expected.insert(std::move(sibling));
    }
    check_none_missing(folder, present, expected);

    std::vector<std::filesystem::path> files;
    for (const std::string& name : present) files.push_back(folder / name);
    return files;
}

}  // namespace thermocline::model
