// The tensors of a checkpoint: name -> format, shape, bytes. Copies nothing: every entry points into a mapped file.
// Filled by safetensors.cpp or gguf.cpp, which have validated ranges, overlaps and sizes; immutable afterwards and
// safe to read from any thread.
#pragma once

#include "src/base/file.h"
#include "src/base/json.h"
#include "src/base/tensor.h"
#include "src/quant/format.h"
#include "src/quant/matrix.h"

#include <cstddef>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace thermocline::model {

struct TensorEntry {
    std::string name;
    quant::Format format;             // element format on disk
    Shape shape;                      // row-major, slowest first (GGUF's ne reversed), in elements of `format`
    const std::byte* data = nullptr;  // into a mapped file; no alignment promised
    int64_t bytes = 0;
    int file = 0;             // index into WeightDirectory::files
    int64_t offset = 0;       // of the first byte in that file
    uint64_t checksum = 0;    // converted models (converted.h)
    bool sized_only = false;  // of an outline (dummy.h): `data` is zeros, there for its address
    // A matrix of a converted model, with its scales, as it is multiplied with.
    std::optional<quant::Matrix> converted = {};
};

struct WeightDirectory {
    std::vector<std::shared_ptr<const MappedFile>> files;
    std::map<std::string, TensorEntry> tensors;

    const TensorEntry* find(const std::string& name) const {
        const auto it = tensors.find(name);
        return it == tensors.end() ? nullptr : &it->second;
    }
};

/// GGUF metadata value lists, kept as JSON (arrays as arrays); keys as in the file.
using Metadata = std::map<std::string, Json>;

class DummyCodes;

/// Everything the files of a model say, before an architecture looks at it.
struct Checkpoint {
    std::string path;       // as given
    std::string container;  // "safetensors", "gguf", "converted" or "dummy"
    WeightDirectory weights;
    Json config;        // config.json, or the same keys derived from GGUF metadata (see gguf.h)
    Metadata metadata;  // GGUF only, converted or not

    /// What a converted model was made from; empty for others.
    struct Source {
        std::string container, path;
    };
    Source source;
    const std::string& source_container() const { return source.container.empty() ? container : source.container; }

    std::shared_ptr<const DummyCodes> dummy_codes;  // dummy weights only: makes what their tensors do not hold yet

    // Entries point into `weights.files`; a copy would be right but is never meant.
    Checkpoint() = default;
    Checkpoint(Checkpoint&&) = default;
    Checkpoint& operator=(Checkpoint&&) = default;
};

/// The text of a config.json as an object of bounded size. Throws Error.
Json parse_config(std::string_view text);
/// The same from a file.
Json read_config(const std::filesystem::path& file);

/// Opens a directory with config.json and *.safetensors, a .gguf file (first split), a directory with one of those, or
/// a converted model (converted.h). Throws Error.
Checkpoint open_checkpoint(const std::string& path);

}  // namespace thermocline::model
