// Writers of small checkpoints for the tests of this room, and a walk over all weights of a DeepSeek-V4 model.
#pragma once

#include "src/model/matrices.h"
#include "src/quant/reference.h"

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace thermocline::model {

/// A directory that is removed with the object.
class TemporaryFolder {
public:
    TemporaryFolder();
    ~TemporaryFolder();
    TemporaryFolder(const TemporaryFolder&) = delete;
    const std::filesystem::path& path() const { return path_; }
    /// Writes a file into the folder and returns its path.
    std::filesystem::path write(const std::string& name, std::string_view bytes) const;

private:
    std::filesystem::path path_;
};

/// A tensor to be written: raw bytes and what the header shall say about them.
struct FileTensor {
    std::string name;
    std::string dtype;       // safetensors
    uint32_t gguf_type = 0;  // GGUF
    Shape shape;             // slowest first
    std::string bytes;
};

std::string bytes_of_floats(const std::vector<float>& values);
std::string bytes_of_bf16(const std::vector<float>& values);
FileTensor f32_tensor(const std::string& name, const Shape& shape, float value);
/// Reproducible numbers of mean 0 whose rows and columns differ in size, as those of trained matrices do.
std::vector<float> random_matrix(int64_t rows, int64_t cols, uint64_t seed, float size = 0.05f);

/// A safetensors file with these tensors one after the other.
std::string safetensors_file(const std::vector<FileTensor>& tensors);
/// The same with a header given as text.
std::string safetensors_raw(const std::string& header, const std::string& data);

/// Metadata and tensors of a GGUF file, version 3.
class GgufFile {
public:
    void u32(const std::string& key, uint32_t value);
    void i32(const std::string& key, int32_t value);
    void u16(const std::string& key, uint16_t value);
    void f32(const std::string& key, float value);
    void boolean(const std::string& key, bool value);
    void text(const std::string& key, const std::string& value);
    void i32s(const std::string& key, const std::vector<int32_t>& values);
    void f32s(const std::string& key, const std::vector<float>& values);
    void tensor(FileTensor tensor) { tensors_.push_back(std::move(tensor)); }
    std::string bytes(uint32_t alignment = 32, uint32_t version = 3) const;

private:
    void key(const std::string& name, uint32_t type);
    std::string keys_;
    uint64_t key_count_ = 0;
    std::vector<FileTensor> tensors_;
};

/// What the message of the Error thrown by `body` is; fails the test if none is thrown.
template <typename Body>
std::string error_of(Body&& body) {
    try {
        body();
    } catch (const std::exception& error) {
        return error.what();
    }
    return "(no error)";
}

/// Asks for every weight of the model that `config` (flat, official keys) describes, MTP included, with the shapes of
/// deepseek-v4.md 4.1. Throws what the finder throws. Returns the number of matrices.
int64_t resolve_all(MatrixFinder& finder, const Json& config);

/// tests/golden/models/NAME
std::string golden_model(const std::string& name);

}  // namespace thermocline::model
