// A converted model: a directory whose weights lie as the kernels read them, to be mapped and multiplied with as they
// are, by several processes at once.
//
//   thermocline.json  the index: layout version, what the model was made from, every tensor and its place
//   weights.bin       a page that vouches for the index, then the tensors; matrices begin on pages, the experts of a
//                     layer lie together, w1, w3, w2 of one after the other
//   config.json       of the source (GGUF: derived from its metadata), and the files that belong to text;
//   metadata.json     the metadata of a GGUF source
//
// One file of weights: one mapping, and no second file that could be another model's. Names are official ones whatever
// the source calls its tensors. Nothing is believed before it is checked: version, sizes, alignment, overlaps, shapes
// and scale geometry, the bits of the index and of vectors and tables; damaged_tensors() reads the matrices as well.
// Functions without state.
#pragma once

#include "src/model/weights.h"

#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace thermocline::model {

inline constexpr const char* kIndexFile = "thermocline.json";
inline constexpr const char* kWeightsFile = "weights.bin";
inline constexpr const char* kMetadataFile = "metadata.json";
inline constexpr int64_t kWeightsPage = 4096;  // alignment of matrices, size of the first page
inline constexpr int64_t kPartAlignment = 64;  // of scales, zero points, vectors and tables

struct ConvertedTensor {
    std::string name;  // official, with ".weight" for matrices
    quant::Format format;
    Shape shape;
    int64_t offset = 0;  // of the data in weights.bin
    uint64_t checksum = 0;

    bool is_matrix = false;
    quant::Matrix matrix;     // all but the pointers
    int64_t scales = 0;       // offset, if the matrix has scales beside its codes
    int64_t zero_points = 0;  // offset, if it has them
};

/// Bytes of the parts of a tensor, without gaps between rows; 0: it has no such part.
struct PartSizes {
    int64_t data = 0, scales = 0, zero_points = 0;
};
PartSizes part_sizes(const ConvertedTensor& tensor);

/// The text of thermocline.json.
std::string converted_index(const Checkpoint::Source& source, const std::vector<ConvertedTensor>& tensors);

/// The first page of weights.bin, which holds `file_bytes` bytes.
std::string weights_page(std::string_view index, int64_t file_bytes);

bool is_converted(const std::filesystem::path& folder);

/// Throws Error naming file and tensor; another layout version is refused with the advice to convert again.
Checkpoint open_converted(const std::filesystem::path& folder, const std::string& given);

/// The tensors of an index, entered as views of `weights`. Throws Error.
void read_converted_index(std::string_view index, const std::shared_ptr<const MappedFile>& weights,
                          Checkpoint& checkpoint);

/// Reads everything and returns one line for each tensor whose bytes are not those that were written. `progress` is
/// told of the bytes read.
std::vector<std::string> damaged_tensors(const Checkpoint& checkpoint, const std::function<void(int64_t)>& progress);

}  // namespace thermocline::model
