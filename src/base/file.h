// Files read by mmap. A MappedFile is immutable and shared; views into it live as long as it does.
#pragma once

#include "src/base/pages.h"

#include <cstddef>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace thermocline {

class MappedFile {
public:
    /// Maps the whole file read-only. Throws Error naming the path if it cannot be opened or is not a regular file.
    static std::shared_ptr<const MappedFile> open(const std::filesystem::path& path);
    /// Wraps bytes that are already in memory (tests, fuzzers); `name` stands in for the path. The bytes are copied.
    static std::shared_ptr<const MappedFile> from_bytes(std::string_view bytes, const std::string& name);
    /// Bytes made in memory that stand in for a file.
    static std::shared_ptr<const MappedFile> from_pages(Pages pages, const std::string& name);
    ~MappedFile();
    MappedFile(const MappedFile&) = delete;
    MappedFile& operator=(const MappedFile&) = delete;

    std::span<const std::byte> bytes() const { return {data_, size_}; }
    size_t size() const { return size_; }
    const std::filesystem::path& path() const { return path_; }
    std::string_view text() const { return {reinterpret_cast<const char*>(data_), size_}; }
    /// Hints the kernel that [offset, offset + size) will be read soon.
    void will_need(size_t offset, size_t size) const;

private:
    MappedFile(std::filesystem::path path, const std::byte* data, size_t size, bool mapped)
        : path_(std::move(path)), data_(data), size_(size), mapped_(mapped) {}

    std::filesystem::path path_;
    const std::byte* data_;  // [size_]
    size_t size_;
    bool mapped_;
    std::optional<Pages> pages_;  // owner of data_, if neither a file nor a copy is
};

/// Whole small file as text. Throws Error naming the path; refuses files over `limit` bytes.
std::string read_text(const std::filesystem::path& path, size_t limit = size_t{256} << 20);

/// Writes a file anew, whole or not at all. Throws Error naming the path.
void write_text(const std::filesystem::path& path, std::string_view text);

}  // namespace thermocline
