// A directory that appears under its name complete or not at all: it is written under a temporary name beside it,
// forced to disk and renamed. Whatever goes wrong before leaves nothing (but after SIGKILL or a power cut, a directory
// called NAME.partial-XXXXXX). One thread, but for NewFile::write.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace thermocline::engine {

/// A file of known size, written in any order.
class NewFile {
public:
    /// Takes the room on the disk at once. Throws Error naming path and reason.
    NewFile(const std::filesystem::path& path, int64_t size);
    ~NewFile();
    NewFile(const NewFile&) = delete;

    /// Several threads may write different places. Throws Error.
    void write(int64_t offset, std::span<const std::byte> bytes) const;
    /// To the disk.
    void finish();

private:
    std::filesystem::path path_;
    int descriptor_;
};

class NewFolder {
public:
    /// Throws Error if `destination` is there and not an empty directory, cannot be made, or its disk has less than
    /// `bytes` free.
    NewFolder(const std::filesystem::path& destination, int64_t bytes);
    ~NewFolder();
    NewFolder(const NewFolder&) = delete;

    /// Where files are to be written until finish().
    const std::filesystem::path& path() const { return temporary_; }
    void write(const std::string& name, std::string_view bytes) const;
    /// Gives the directory its name. Throws Error.
    void finish();

private:
    std::filesystem::path destination_, temporary_;
};

}  // namespace thermocline::engine
