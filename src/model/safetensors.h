// The safetensors container (weight-formats.md section 2): header parsed and checked against the file, tensors entered
// into a WeightDirectory as views of the mapped file. Functions without state; nothing they read can make them
// allocate more than a small multiple of a header of at most 100 MB.
#pragma once

#include "src/model/weights.h"

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

namespace thermocline::model {

/// Reads the header of one file and adds its tensors (and the file) to `directory`. Throws Error naming file and tensor
/// when the header is cut off or malformed, a name is there twice, or ranges overlap, leave holes or miss the file
/// size.
void read_safetensors(const std::shared_ptr<const MappedFile>& file, WeightDirectory& directory);

/// The names of all files that `model.safetensors.index.json` (its text) mentions, sorted, each once.
std::vector<std::string> files_of_index(std::string_view text, const std::string& what);

/// The files of a model directory that hold its tensors: every *.safetensors, but consolidated* only when nothing
/// else is there. Throws Error naming the missing ones if an index or a "-00001-of-00004" name says there are more.
std::vector<std::filesystem::path> safetensors_files(const std::filesystem::path& folder);

}  // namespace thermocline::model
