// The GGUF container (weight-formats.md section 8), versions 2 and 3, one file or split: metadata to JSON values,
// tensors entered into a WeightDirectory as views of the mapped files. Functions without state. Counts and lengths are
// checked against the file and against fixed limits before anything is allocated.
#pragma once

#include "src/model/weights.h"

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

namespace thermocline::model {

/// Reads one file: adds its tensors (and the file) to `directory` and sets `metadata` to its keys. Throws Error naming
/// file and tensor or key.
void read_gguf(const std::shared_ptr<const MappedFile>& file, WeightDirectory& directory, Metadata& metadata);

/// Reads a model that may be split: `path` is its only or its first file. Throws Error naming the missing parts.
void read_gguf_model(const std::filesystem::path& path, WeightDirectory& directory, Metadata& metadata);

/// An integer of the metadata whatever its width; nothing if the key is absent. Throws Error if it is no integer.
std::optional<int64_t> metadata_integer(const Metadata& metadata, const std::string& key);

}  // namespace thermocline::model
