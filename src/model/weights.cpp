#include "src/model/weights.h"

#include "src/base/error.h"
#include "src/model/converted.h"
#include "src/model/gguf.h"
#include "src/model/gguf_config.h"
#include "src/model/safetensors.h"

#include <algorithm>
#include <filesystem>

namespace thermocline::model {

namespace {

namespace fs = std::filesystem;

constexpr size_t kMaxConfigKeys = 4096;  // of one object: Json looks keys up linearly

Checkpoint open_gguf(const fs::path& path, const std::string& given) {
    Checkpoint checkpoint;
    checkpoint.path = given;
    checkpoint.container = "gguf";
    read_gguf_model(path, checkpoint.weights, checkpoint.metadata);
    checkpoint.config = config_from_gguf(checkpoint.metadata, checkpoint.weights);
    return checkpoint;
}

void check_key_counts(const SortedJson& value) {
    if (value.is_object() && value.size() > kMaxConfigKeys)
        fail("config.json: an object has ", value.size(), " keys, expected at most ", kMaxConfigKeys);
    if (value.is_structured())
        for (const SortedJson& element : value) check_key_counts(element);
}

Checkpoint open_safetensors(const fs::path& folder, const std::string& given) {
    Checkpoint checkpoint;
    checkpoint.path = given;
    checkpoint.container = "safetensors";
    const fs::path config = folder / "config.json";
    if (!fs::exists(config)) fail(printable(given), ": has no config.json");
    checkpoint.config = read_config(config);
    for (const fs::path& file : safetensors_files(folder)) read_safetensors(MappedFile::open(file), checkpoint.weights);
    return checkpoint;
}

/// The GGUF files of a directory that begin a model: all that are not a later part of a split one.
std::vector<fs::path> gguf_files(const fs::path& folder) {
    std::vector<fs::path> files;
    for (const auto& item : fs::directory_iterator(folder)) {
        if (item.path().extension() != ".gguf") continue;
        const std::string stem = item.path().stem().string();
        const size_t of = stem.rfind("-of-");
        const bool part = of != std::string::npos && of + 9 == stem.size() && of >= 5;
        if (!part || stem.compare(of - 5, 5, "00001") == 0) files.push_back(item.path());
    }
    std::sort(files.begin(), files.end());
    return files;
}

bool has_safetensors(const fs::path& folder) {
    for (const auto& item : fs::directory_iterator(folder))
        if (item.path().extension() == ".safetensors") return true;
    return fs::exists(folder / "model.safetensors.index.json");
}

Checkpoint open_folder(const fs::path& folder, const std::string& given) {
    if (is_converted(folder)) return open_converted(folder, given);
    if (has_safetensors(folder)) return open_safetensors(folder, given);
    const std::vector<fs::path> files = gguf_files(folder);
    if (files.size() == 1) return open_gguf(files.front(), given);
    if (files.size() > 1)
        fail(printable(given), ": has ", files.size(), " GGUF models, give one file (e.g. ",
             printable(files.front().filename().string()), ")");
    fail(printable(given), ": has no *.safetensors and no .gguf file");
}

}  // namespace

Json parse_config(std::string_view text) {
    check_key_counts(parse_sorted_json(text, "config.json"));
    Json config = parse_json(text, "config.json");
    if (!config.is_object()) fail("config.json: found ", config.type_name(), ", expected an object");
    return config;
}

Json read_config(const fs::path& file) {
    constexpr size_t kMaxConfigBytes = size_t{2} << 20;
    return parse_config(read_text(file, kMaxConfigBytes));
}

Checkpoint open_checkpoint(const std::string& path) {
    try {
        if (!fs::exists(path)) fail(printable(path), ": no such file or directory");
        if (fs::is_directory(path)) return open_folder(path, path);
        if (fs::path(path).extension() == ".safetensors")
            fail(printable(path), ": give the directory that holds this file and its config.json");
        return open_gguf(path, path);
    } catch (const fs::filesystem_error& error) {
        fail(printable(path), ": ", error.code().message());
    }
}

}  // namespace thermocline::model
